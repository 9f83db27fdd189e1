//! Progress of a run: a bar on a terminal, else lines at intervals.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The interval between lines without a terminal.
const PERIOD: Duration = Duration::from_secs(30);

/// Progress of a run; disappears when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    lines: Option<Lines>,
}

impl Progress {
    /// Returns progress over a number of steps. The bar is shown if standard error is a terminal and the result is not
    /// JSON.
    pub(super) fn new(steps: u64, is_json: bool) -> Self {
        let bar = ProgressBar::new(steps);
        let is_terminal = std::io::stderr().is_terminal();
        if is_json || !is_terminal {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg} {elapsed} (about {eta} left)") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        let print = |line: &str| {
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        };
        let lines = (!is_terminal).then(|| Lines::start(steps, PERIOD, print)).flatten();
        Self { bar, lines }
    }

    /// Returns progress that is not shown.
    pub(super) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), lines: None }
    }

    /// Begins the next step.
    pub(super) fn step(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.inc(1);
        self.follow(what, false);
    }

    /// Hides the progress while `print` prints.
    pub(super) fn pause(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Sets the number of completed steps.
    pub(super) fn at(&self, done: u64, what: &'static str) {
        self.bar.set_message(what);
        self.bar.set_position(done);
        self.follow(what, true);
    }

    fn follow(&self, what: &'static str, is_even: bool) {
        if let Some(lines) = &self.lines {
            lines.set(what, self.bar.position(), is_even);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How far a run has come.
#[derive(Default)]
struct State {
    what: &'static str,
    done: u64,
    /// The number of completed steps when the first progress was reported, and the time then, to estimate the time
    /// left: steps of a resumed run took no time here. `None`: the steps differ in duration, so there is no estimate.
    from: Option<(u64, Duration)>,
    has_ended: bool,
}

/// Prints a line at intervals, from a separate thread, until it is dropped.
struct Lines {
    started: Instant,
    shared: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    fn start(total: u64, period: Duration, print: impl Fn(&str) + Send + 'static) -> Option<Self> {
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let (started, seen) = (Instant::now(), Arc::clone(&shared));
        let follow = move || {
            let (state, changed) = &*seen;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let mut due = started + period;
            while !state.has_ended {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    due += period;
                    print(&line(&state, total, started.elapsed()));
                    continue;
                }
                state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(follow).ok()?;
        Some(Self { started, shared, thread: Some(thread) })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let (state, changed) = &*self.shared;
        change(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    fn set(&self, what: &'static str, done: u64, is_even: bool) {
        let elapsed = self.started.elapsed();
        self.change(|state| {
            (state.what, state.done) = (what, done);
            state.from = is_even.then(|| state.from.unwrap_or((done, elapsed)));
        });
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.change(|state| state.has_ended = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Formats a line of progress, such as `[12/50] generating samples, 1:30, about 4:45 left`. The estimate assumes that
/// the remaining steps take as long as those before.
fn line(state: &State, total: u64, elapsed: Duration) -> String {
    let what = if state.what.is_empty() { "working" } else { state.what };
    let left = state.from.filter(|(from, _)| *from < state.done && state.done < total).map(|(from, since)| {
        let share = (total - state.done) as f64 / (state.done - from) as f64;
        format!(", about {} left", minutes(elapsed.saturating_sub(since).mul_f64(share)))
    });
    format!("[{}/{total}] {what}, {}{}", state.done, minutes(elapsed), left.unwrap_or_default())
}

/// Formats a duration as minutes and seconds, `1:30`.
fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn lines_are_printed_at_intervals_until_the_end() {
        let (sender, receiver) = channel();
        let print = move |line: &str| {
            let _ = sender.send(line.to_owned());
        };
        let lines = Lines::start(50, Duration::from_millis(20), print).unwrap();
        lines.set("generating samples", 12, true);
        let first = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(first, "[12/50] generating samples, 0:00");
        lines.set("verifying", 13, false);
        let mut found = receiver.iter().take(200);
        assert!(found.any(|line| line.starts_with("[13/50] verifying")), "further lines follow");
        drop(lines);
        // The thread has ended and dropped the sender, so no more lines can follow.
        receiver.try_iter().for_each(drop);
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn time_is_shown_in_minutes() {
        let at = |done, from| State { what: "gradients by timestep", done, from, has_ended: false };
        let text = |done, from| line(&at(done, from), 10, Duration::from_secs(754));
        assert_eq!(text(3, None), "[3/10] gradients by timestep, 12:34");
        let from = Some((0, Duration::ZERO));
        assert_eq!(text(0, from), "[0/10] gradients by timestep, 12:34");
        assert_eq!(text(4, from), "[4/10] gradients by timestep, 12:34, about 18:51 left");
        assert_eq!(text(10, from), "[10/10] gradients by timestep, 12:34");
        // Six of the eight steps come from a checkpoint; the first of the others began after 354 s.
        assert_eq!(
            text(8, Some((6, Duration::from_secs(354)))),
            "[8/10] gradients by timestep, 12:34, about 6:40 left"
        );
    }
}
