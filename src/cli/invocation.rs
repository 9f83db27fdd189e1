//! How this run was called. The arguments need not be those of the process: a program in another language may embed the
//! command line.

use std::cell::RefCell;
use std::ffi::OsString;

thread_local! {
    /// The arguments of the run on this thread.
    static ARGUMENTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Begins a run on this thread with these arguments; the first is the name of the program.
pub(super) fn begin(arguments: &[OsString]) {
    let arguments = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    ARGUMENTS.with(|held| held.replace(arguments));
}

/// Returns the arguments of the run on this thread. Bytes that are not valid Unicode are replaced.
pub(super) fn arguments() -> Vec<String> {
    ARGUMENTS.with_borrow(Vec::clone)
}

/// Returns the command line, quoted so that it can be run again in a shell.
pub(super) fn command_line() -> String {
    let quoted = |argument: String| match argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,".contains(c)) {
        true => argument,
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    };
    arguments().into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_can_be_run_again() {
        begin(&["onnx-diffprune", "a b.onnx", "--keep=it's"].map(OsString::from));
        assert_eq!(command_line(), r"onnx-diffprune 'a b.onnx' '--keep=it'\''s'");
        let elsewhere = std::thread::spawn(arguments).join();
        assert_eq!(elsewhere.unwrap_or_default(), [""; 0], "another thread has another run");
    }
}
