//! The commands `completions` and `man`: shell completions and manual pages.

use clap::CommandFactory;
use clap_complete::Shell;
use onnx_diffprune::Error;

use super::args::Cli;
use super::printer::Printer;

/// The name of the tool and the prefix of its manual pages' names.
const NAME: &str = "onnx-diffprune";

/// Prints the completion script of a shell.
pub(super) fn completions(shell: Shell, printer: &Printer) -> Result<bool, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    printer.exact(&String::from_utf8_lossy(&script));
    Ok(true)
}

/// Prints the manual page of a command, or of the whole tool, as roff.
///
/// # Errors
/// The command does not exist.
pub(super) fn page(name: Option<&str>, printer: &Printer) -> Result<bool, Error> {
    let mut whole = Cli::command().flatten_help(false);
    whole.build();
    let command = match name {
        None => whole,
        Some(name) => {
            let known: Vec<String> = whole.get_subcommands().map(|command| command.get_name().to_owned()).collect();
            whole
                .find_subcommand(name)
                .cloned()
                .ok_or_else(|| Error::usage(format!("no command {name:?}; the commands are {}", known.join(", "))))?
        }
    };
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut text);
    rendered.map_err(|error| Error::unmet(format!("the manual page can't be rendered: {error}")))?;
    printer.exact(&String::from_utf8_lossy(&text));
    Ok(true)
}
