//! Shows where ONNX Runtime is looked for and what is found.

use std::path::Path;

use serde_json::json;

use super::args::Cli;
use super::printer::Printer;
use crate::error::Error;
use crate::runtime::{MINIMUM_VERSION, Runtime, candidates};

pub(super) fn run(cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let places = candidates(cli.onnxruntime.as_deref());
    let opened = Runtime::open(cli.onnxruntime.as_deref());
    let json = json!({
        "used": opened.as_ref().ok().map(|runtime| json!({
            "library": runtime.library(),
            "version": runtime.version(),
            "found": runtime.how(),
            "execution_providers": runtime.execution_providers(),
        })),
        "error": opened.as_ref().err().map(ToString::to_string),
        "places": places.iter().map(|place| json!({
            "place": place.place,
            "how": place.how,
            "library": place.library,
            "refused": place.refused,
        })).collect::<Vec<_>>(),
    });
    printer.result(&json, || {
        let mut out = match &opened {
            Ok(runtime) => format!(
                "ONNX Runtime {}, execution providers: {}\n",
                runtime.version(),
                runtime.execution_providers().join(", ")
            ),
            Err(error) => {
                format!("no library can be used (ONNX Runtime {MINIMUM_VERSION} or newer is needed): {error}\n")
            }
        };
        out += "\nplaces, in this order:\n";
        for place in &places {
            let used = opened.as_ref().ok().map(|runtime| runtime.library());
            let found = match (&place.library, &place.refused) {
                (Some(library), None) if used == Some(library) => format!("used{}", inside(library, &place.place)),
                (Some(library), None) => format!("found{}", inside(library, &place.place)),
                (Some(library), Some(why)) => format!("can't use{}: {why}", inside(library, &place.place)),
                (None, Some(why)) => why.clone(),
                (None, None) => "nothing".to_owned(),
            };
            out += &format!("  {} ({}): {found}\n", place.place.display(), place.how);
        }
        out
    });
    match opened {
        Ok(_) => Ok(true),
        Err(error) => {
            let hint = error.hint();
            let error = Error::usage(error.to_string());
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
    }
}

/// The library as seen from the place where it was found; nothing where it is that place.
fn inside(library: &Path, place: &Path) -> String {
    match library.strip_prefix(place) {
        Ok(rest) if rest.as_os_str().is_empty() => String::new(),
        Ok(rest) => format!(" {}", rest.display()),
        Err(_) => format!(" {}", library.display()),
    }
}
