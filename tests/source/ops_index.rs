//! The indices of operators, `src/ops/fused.rs` and `src/ops/standard.rs`, and their table, `docs/operators.md`, are
//! generated from the files of `src/ops/`.
//!
//! `UPDATE=1 cargo test --test source` writes them. Without it, the test fails if one of them is stale.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A file of `src/ops/`.
struct OpsFile {
    /// The folder, `fused` or `standard`.
    folder: &'static str,
    /// Name of the module.
    module: String,
    /// The text of the file.
    text: String,
}

impl OpsFile {
    /// Returns the registrations that `RULES` lists, as written.
    fn registrations(&self) -> Vec<&str> {
        let start = self.text.find("static RULES").unwrap_or_else(|| panic!("{} has no RULES", self.module));
        let rest = &self.text[start..];
        let list = &rest[..rest.find("];").unwrap()];
        list.split("Registration::").skip(1).collect()
    }

    /// Returns the lines of the header, without the comment markers.
    fn header(&self) -> Vec<&str> {
        let lines = self.text.lines().map_while(|line| line.strip_prefix("//!"));
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect()
    }

    /// Returns the paragraph that begins with `label`, as one line without the label.
    fn paragraph(&self, label: &str) -> String {
        let header = self.header();
        let lines = header.iter().skip_while(|line| !line.starts_with(label)).take_while(|line| !line.is_empty());
        let text = lines.copied().collect::<Vec<_>>().join(" ");
        assert!(!text.is_empty(), "the header of {}.rs has no paragraph {label}", self.module);
        let text = text[label.len()..].trim().to_owned();
        // Links to other items work in rustdoc only. A bar would end the table cell.
        text.replace("[`", "`").replace("`]", "`").replace('|', "\\|")
    }

    /// Returns the page of the specification and the versions that the header lists.
    fn spec(&self) -> String {
        let text = self.paragraph("Spec:");
        let Some((pages, rest)) = text.rsplit_once('>') else { return text };
        let pages = pages.split('<').skip(1).map(|page| page.split('>').next().unwrap());
        let rest = rest.trim_start_matches('.').trim();
        let links: Vec<String> = pages
            .map(|page| {
                let name = page.trim_end_matches('/').rsplit('/').next().unwrap();
                format!("[{}]({page})", name.trim_start_matches("onnx__").trim_end_matches(".html"))
            })
            .collect();
        format!("{} {rest}", links.join(", ")).trim().to_owned()
    }

    /// Returns the optional rules that the implementation of a registration has. An operator without them is refused
    /// there, or needs none.
    fn further(&self, registration: &str) -> Vec<&'static str> {
        let mut blocks = self.text.split("\nimpl Operator for ").skip(1);
        // The name of the type, as in `&X)` or `X::parse(` or `Box::new(X)`.
        let words: BTreeSet<&str> = registration.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let block = blocks.find(|block| words.contains(block.split(' ').next().unwrap()));
        let block =
            block.unwrap_or_else(|| panic!("{}.rs: no implementation of Operator for {registration}", self.module));
        let block = &block[..block.find("\n}").unwrap()];
        let has = |rule: &&str| block.contains(&format!("    fn {rule}(&self"));
        ["patch", "macs", "lower", "gradient"].into_iter().filter(has).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The folders of operators, with descriptions.
const FOLDERS: [(&str, &str); 2] = [
    (
        "fused",
        "Operators that do the work of several: those of ONNX Runtime's optimisers, and the attention of the standard.",
    ),
    ("standard", "Operators of the standard, and variants of them."),
];

fn files() -> Vec<OpsFile> {
    FOLDERS.iter().flat_map(|(folder, _)| files_in(folder)).collect()
}

fn files_in(folder: &'static str) -> Vec<OpsFile> {
    let entries = std::fs::read_dir(root().join("src/ops").join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
            OpsFile { folder, module, text: std::fs::read_to_string(path).unwrap() }
        })
        .collect()
}

/// Fails if the file at `path` is not `expected`. With `UPDATE=1`, writes it.
fn check(path: &str, expected: &str) {
    let full = root().join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(full.parent().unwrap()).unwrap();
        std::fs::write(&full, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&full).unwrap_or_default().replace("\r\n", "\n");
    let differing = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        found == expected,
        "{path} is stale at line {}: run `UPDATE=1 cargo test --test source`",
        differing.map_or_else(|| found.lines().count().min(expected.lines().count()) + 1, |at| at + 1)
    );
}

#[test]
fn the_index_lists_every_file() {
    for (folder, what) in FOLDERS {
        let mut text = format!(
            "//! {what} This index is generated from the files beside it by\n\
             //! `UPDATE=1 cargo test --test source`; do not edit it by hand.\n\n\
             use crate::operator::Registration;\n\n"
        );
        let files = files_in(folder);
        for file in &files {
            writeln!(text, "pub(in crate::ops) mod {};", file.module).unwrap();
        }
        text.push_str(
            "\n/// The registrations of every file, in the order of their names.\n#[rustfmt::skip]\n\
             pub(super) static BY_FILE: &[&[Registration]] = &[\n",
        );
        for file in &files {
            writeln!(text, "    {}::RULES,", file.module).unwrap();
        }
        text.push_str("];\n");
        check(&format!("src/ops/{folder}.rs"), &text);
    }
}

#[test]
fn the_table_lists_every_operator() {
    let mut rules = onnx_diffprune::ops::all();
    let mut text = String::from(
        "# Operators\n\n\
         This page lists the operators that this version supports, and how each couples the axes of its inputs and\n\
         outputs. An operator that is not listed is a barrier: the tool keeps all channels that it touches, and the run\n\
         names it.\n\n\
         Every operator has the rules `infer` (element types and shapes), `couple` (which indices must be removed\n\
         together) and `reference` (its masked form, for verification). Instead of `reference`, a fused operator has\n\
         `lower`, which writes it in operators that have a reference; its gradient is that of the lowered form. The last\n\
         column lists further rules: `patch` rewrites attributes and constants that state a size, `macs` counts\n\
         multiply-accumulate operations, `gradient` differentiates. `m:` stands for the domain `com.microsoft`.\n\n\
         The table is generated from the files of `src/ops/` by `UPDATE=1 cargo test --test source`.\n\n\
         | Operators | Specification | Coupling | Further rules |\n| --- | --- | --- | --- |\n",
    );
    for file in files() {
        let index = if file.folder == "fused" {
            include_str!("../../src/ops/fused.rs")
        } else {
            include_str!("../../src/ops/standard.rs")
        };
        if !index.contains(&format!("    {}::RULES,", file.module)) {
            println!(
                "src/ops/{}/{}.rs is new: run this test again, with the index that lists it",
                file.folder, file.module
            );
            return;
        }
        // Operators of one file share a row if they have the same rules.
        let mut rows: Vec<(Vec<String>, Vec<&str>)> = Vec::new();
        for (registration, rule) in file.registrations().into_iter().zip(rules.by_ref()) {
            let further = file.further(registration);
            let types = rule.op_types().iter().map(|op| match op.domain {
                "" => format!("`{}`", op.name),
                "com.microsoft" => format!("`m:{}`", op.name),
                domain => panic!("no abbreviation for the domain {domain}"),
            });
            match rows.iter_mut().find(|(_, rules)| *rules == further) {
                Some((row, _)) => row.extend(types),
                None => rows.push((types.collect(), further)),
            }
        }
        let (spec, coupling) = (file.spec(), file.paragraph("Coupling:"));
        for (types, further) in rows {
            writeln!(text, "| {} | {spec} | {coupling} | {} |", types.join(" "), further.join(", ")).unwrap();
        }
    }
    assert!(rules.next().is_none(), "an operator is registered in no file");
    check("docs/operators.md", &text);
}

#[test]
fn no_operator_is_registered_twice() {
    let mut seen = BTreeSet::new();
    for op in onnx_diffprune::ops::all().flat_map(|op| op.op_types()) {
        assert!(seen.insert(op), "{op:?} is registered twice");
    }
}
