//! The command line tool: converts arguments into files, tables and exit codes. It only uses the public API of the
//! library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::run(std::env::args_os().collect()))
}
