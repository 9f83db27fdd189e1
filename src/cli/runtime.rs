//! Shows where ONNX Runtime is looked for and what is found.

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
                "uses {} (ONNX Runtime {}, {}), execution providers: {}\n",
                runtime.library().display(),
                runtime.version(),
                runtime.how(),
                runtime.execution_providers().join(", ")
            ),
            Err(error) => {
                format!("no library can be used (ONNX Runtime {MINIMUM_VERSION} or newer is needed): {error}\n")
            }
        };
        out += "\nplaces, in this order:\n";
        for place in &places {
            let found = match (&place.library, &place.refused) {
                (Some(library), None) => format!("found {}", library.display()),
                (Some(library), Some(why)) => format!("can't use {}: {why}", library.display()),
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
