//! The command `runtime`: shows where ONNX Runtime is searched for, and what is found.

use std::path::{Path, PathBuf};

use onnx_diffprune::devices::{Candidate, DeviceStatus, MINIMUM_VERSION, candidates, library_providers};
use onnx_diffprune::{Device, Error, Runtime};
use serde_json::json;

use super::args::Cli;
use super::printer::Printer;

pub(super) fn run(cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let places = candidates(cli.onnxruntime.as_deref());
    let opened = Runtime::open(cli.onnxruntime.as_deref());
    let libraries = libraries(&places);
    let devices: Vec<DeviceStatus> = match &opened {
        Ok(runtime) => Device::KINDS.into_iter().map(|device| runtime.device_status(device)).collect(),
        Err(_) => Vec::new(),
    };
    let json = json!({
        "used": opened.as_ref().ok().map(|runtime| json!({
            "library": runtime.library(),
            "version": runtime.version(),
            "found": runtime.how(),
            "execution_providers": runtime.execution_providers(),
        })),
        "libraries": libraries.iter().map(|(library, found)| json!({
            "library": library,
            "version": found.as_ref().ok().map(|(version, _)| version),
            "execution_providers": found.as_ref().ok().map(|(_, providers)| providers),
            "refused": found.as_ref().err(),
        })).collect::<Vec<_>>(),
        "devices": devices.iter().map(|status| json!({
            "device": status.device.to_string(),
            "usable": status.refused.is_none(),
            "refused": status.refused,
            "preloaded": status.preloaded,
        })).collect::<Vec<_>>(),
        "error": opened.as_ref().err().map(ToString::to_string),
        "places": places.iter().map(|place| json!({
            "place": place.place,
            "how": place.how,
            "library": place.library,
            "refused": place.refused,
        })).collect::<Vec<_>>(),
    });
    let text = || {
        let mut out = match &opened {
            Ok(runtime) => format!(
                "ONNX Runtime {}, execution providers: {}\n",
                runtime.version(),
                runtime.execution_providers().join(", ")
            ),
            Err(error) => {
                format!("no usable library found (ONNX Runtime 1.{MINIMUM_VERSION} or newer is needed): {error}\n")
            }
        };
        out += "\nsearched places, in this order:\n";
        for place in &places {
            let used = opened.as_ref().ok().map(|runtime| runtime.library());
            let found = match (&place.library, &place.refused) {
                (Some(library), None) if used == Some(library) => format!("used{}", inside(library, &place.place)),
                (Some(library), None) => format!("found{}", inside(library, &place.place)),
                (Some(library), Some(why)) => format!("not usable{}: {why}", inside(library, &place.place)),
                (None, Some(why)) => why.clone(),
                (None, None) => "nothing".to_owned(),
            };
            out += &format!("  {} ({}): {found}\n", place.place.display(), place.how);
        }
        out + &describe(&libraries, &devices)
    };
    match &opened {
        Ok(_) => printer.result(&json, text),
        Err(error) => printer.failure(json, text, error),
    }
    opened.map(|_| true)
}

/// A library, with its version and execution providers, or why it can't be used.
type Library = (PathBuf, Result<(String, Vec<String>), String>);

/// Returns every library that was found, once.
fn libraries(places: &[Candidate]) -> Vec<Library> {
    let mut libraries: Vec<Library> = Vec::new();
    for library in places.iter().filter_map(|place| place.library.as_ref()) {
        if libraries.iter().all(|(known, _)| known != library) {
            let found = library_providers(library).map_err(|error| error.to_string());
            libraries.push((library.clone(), found));
        }
    }
    libraries
}

fn describe(libraries: &[Library], devices: &[DeviceStatus]) -> String {
    let mut out = String::new();
    if !libraries.is_empty() {
        out += "\nlibraries:\n";
    }
    for (library, found) in libraries {
        out += &match found {
            Ok((version, providers)) => format!("  {} ({version}): {}\n", library.display(), providers.join(", ")),
            Err(refused) => format!("  {refused}\n"),
        };
    }
    if !devices.is_empty() {
        out += "\ndevices:\n";
    }
    for status in devices {
        out += &match &status.refused {
            None => format!("  {}: usable\n", status.device),
            Some(reason) => format!("  {}: not usable: {reason}\n", status.device),
        };
        for library in &status.preloaded {
            out += &format!("    loads {}\n", library.display());
        }
    }
    out
}

/// Returns the path of the library relative to the place where it was found; empty if the place is the library.
fn inside(library: &Path, place: &Path) -> String {
    match library.strip_prefix(place) {
        Ok(rest) if rest.as_os_str().is_empty() => String::new(),
        Ok(rest) => format!(" {}", rest.display()),
        Err(_) => format!(" {}", library.display()),
    }
}
