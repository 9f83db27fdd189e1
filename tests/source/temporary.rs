//! Temporary files are created in one place, so that a signal that ends the program can remove them all. Files are
//! opened in one place, so that a pipe or device is never opened.

use std::path::Path;

use super::rooms::files;

/// The folders in which files are opened and temporary files created. The runtime module opens the libraries of ONNX
/// Runtime and files of the system.
const ALLOWED: [&str; 2] = ["src/files/", "src/runtime/"];

/// Calls that must not occur elsewhere.
const WORDS: [&str; 9] = [
    "tempfile::",
    "temp_dir()",
    "File::open",
    "File::create",
    "OpenOptions",
    "fs::read(",
    "fs::read_to_string(",
    "fs::write(",
    "fs::rename(",
];

#[test]
fn files_are_opened_and_created_in_one_place() {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in files(&root.join("src")) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        if ALLOWED.iter().any(|place| name.starts_with(place))
            || name == "src/runtime.rs"
            || name.ends_with("/tests.rs")
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // Tests are at the end of a file. Examples in documentation are code of callers.
        let code = text.split("#[cfg(test)]\n").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let is_called = |word: &str| {
                line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric()))
            };
            if let Some(word) = WORDS.iter().find(|word| is_called(word)) {
                found.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "use crate::files instead:\n{}", found.join("\n"));
}
