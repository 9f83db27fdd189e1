//! Handles the signals that end the program: temporary files are removed first.

use std::sync::atomic::{AtomicBool, Ordering};

use onnx_diffprune::program::end;

/// Whether the command handles the first signal itself, and whether that signal was received.
static IS_DEFERRED: AtomicBool = AtomicBool::new(false);
static WAS_RECEIVED: AtomicBool = AtomicBool::new(false);

/// Sets whether the command handles the first signal itself: it asks [`was_received`] and ends on its own. The next
/// signal ends the program as usual.
pub(super) fn defer_first(defers: bool) {
    IS_DEFERRED.store(defers, Ordering::SeqCst);
}

/// Whether a signal has asked the command to end.
pub(super) fn was_received() -> bool {
    WAS_RECEIVED.load(Ordering::SeqCst)
}

/// Installs handlers that remove temporary files before SIGINT, SIGTERM, SIGHUP, SIGQUIT or SIGXCPU ends the program. A
/// second signal ends it at once.
///
/// The program then dies of the signal, which shells show as exit code 128 + its number. A signal that is ignored from the
/// start, as under `nohup`, remains ignored.
#[cfg(unix)]
pub(super) fn watch() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    use signal_hook::low_level::emulate_default_handler;

    let heard = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, libc::SIGXCPU].into_iter().filter(|signal| !is_ignored(*signal));
    // Without handlers, the signals end the program as well, but leave temporary files behind.
    let Ok(mut signals) = signal_hook::iterator::Signals::new(heard) else { return };
    std::thread::spawn(move || {
        let mut number = 0;
        for signal in signals.forever() {
            if IS_DEFERRED.load(Ordering::SeqCst) && !WAS_RECEIVED.swap(true, Ordering::SeqCst) {
                continue;
            }
            let die = move || {
                let _ = emulate_default_handler(signal);
                std::process::exit(128 + signal)
            };
            if number > 0 {
                die();
            }
            number += 1;
            std::thread::spawn(move || {
                let _ending = end();
                die();
            });
        }
    });
}

#[cfg(not(unix))]
pub(super) fn watch() {}

#[cfg(unix)]
#[allow(unsafe_code)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: only reads the action of a signal; the struct that it is written into is plain data.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Blocks forever if a signal is ending the program, as any failure in the meantime is a consequence of that.
pub(super) fn settle() {
    drop(end());
}
