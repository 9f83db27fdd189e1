//! Signals that end the program: what is temporary is removed first.

use std::sync::atomic::{AtomicBool, Ordering};

use onnx_diffprune::program::end;

/// Whether the first signal is left to the command, and whether it has come.
static IS_AWAITED: AtomicBool = AtomicBool::new(false);
static HAS_COME: AtomicBool = AtomicBool::new(false);

/// Whether the first signal is left from now on to the command, which asks [`has_come`] and ends in its own time; the next
/// ends the program as usual.
pub(super) fn leave_first(leaves: bool) {
    IS_AWAITED.store(leaves, Ordering::SeqCst);
}

/// Whether a signal has asked the command to end.
pub(super) fn has_come() -> bool {
    HAS_COME.load(Ordering::SeqCst)
}

/// Has SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGXCPU remove what is temporary before they end the program, whatever it is doing. A second
/// one ends it at once.
///
/// The program then dies of the signal as any other does, which shells show as 128 + its number. A signal that is ignored
/// from the start, as under `nohup`, stays ignored.
#[cfg(unix)]
pub(super) fn watch() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    use signal_hook::low_level::emulate_default_handler;

    let heard = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, libc::SIGXCPU].into_iter().filter(|signal| !is_ignored(*signal));
    // Without a handler the signals end the program as well, if not as tidily.
    let Ok(mut signals) = signal_hook::iterator::Signals::new(heard) else { return };
    std::thread::spawn(move || {
        let mut number = 0;
        for signal in signals.forever() {
            if IS_AWAITED.load(Ordering::SeqCst) && !HAS_COME.swap(true, Ordering::SeqCst) {
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
    // SAFETY: asks for the action of a signal and changes nothing; what it is written into is plain data.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Waits for good if a signal is just ending the program: whatever failed meanwhile failed because of it.
pub(super) fn settle() {
    drop(end());
}
