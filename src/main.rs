//! The command line tool: arguments in, files, tables and exit codes out. Everything it does is in the library, of which it
//! uses what every caller can.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::run(std::env::args_os().collect()))
}
