//! `src/ops.rs` lists every file of `src/ops/`.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn the_index_of_operators_is_complete() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<String> = std::fs::read_dir(source.join("ops"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let path = source.join("ops.rs");
    let committed = std::fs::read_to_string(&path).unwrap();
    let between = |text: &str, start: &str, end: &str, new: &str| {
        let from = text.find(start).unwrap() + start.len();
        let to = from + text[from..].find(end).unwrap();
        format!("{}{new}{}", &text[..from], &text[to..])
    };
    let modules: String = files.iter().map(|file| format!("mod {file};\n")).collect();
    let rules: String = files.iter().map(|file| format!("    {file}::RULES,\n")).collect();
    let fresh = between(&committed, "use crate::operator::Operator;\n\n", "\n/// The rules of every file", &modules);
    let fresh = between(&fresh, "&[&[&dyn Operator]] = &[\n", "];", &rules);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == fresh, "stale; run: UPDATE=1 cargo test --test ops_index");
}
