//! The order of the rooms: each module of the library imports only earlier ones.
//!
//! [`ROOMS`] is the only list. `docs/how-it-works.md` shows it, and a test compares the two.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The modules of `src/`, lowest first, with their contents.
const ROOMS: &[(&str, &str)] = &[
    ("error", "the error type of the library"),
    ("files", "files of a run: checks of inputs, outputs that are moved into place together, temporary files"),
    ("onnx", "the file format, the builder of nodes, the search for unused nodes"),
    ("array", "arrays in memory"),
    ("npz", "NumPy's files"),
    ("kernels", "custom operators for the CPU"),
    ("metrics", "metrics of a long run: lines of JSON, TensorBoard's event files"),
    ("collective", "collective operations of several processes"),
    ("runtime", "ONNX Runtime: libraries, devices, sessions"),
    ("graph", "a model in memory: its nodes and values, sizes, constant values"),
    ("write", "streaming a model into a file"),
    ("operator", "the interface between the stages and the operators"),
    ("ops", "the operators"),
    ("infer", "shapes and constants"),
    ("load", "reading and checking a model, with functions and constant branches inlined"),
    ("fold", "weights that the graph computes from constants"),
    ("lower", "fused nodes rewritten in standard operators"),
    ("couple", "which channels must be removed together"),
    ("macs", "counts of parameters, MACs and memory"),
    ("analysis", "all of the above for one model"),
    ("inputs", "random inputs"),
    ("gradient", "differentiation, loss terms, choice of kernels, sums over timesteps"),
    ("diffusion", "schedules, processes, data, sampling"),
    ("score", "the criteria"),
    ("select", "which channels are removed"),
    ("rewrite", "the smaller graph"),
    ("changed", "weights that changed after a cut"),
    ("refit", "weights fitted by least squares after a cut"),
    ("plan", "the plan file"),
    ("verify", "verification of a cut"),
    ("training", "artifacts for training sessions"),
    ("evaluate", "similarity of images, distances between sets of features"),
    ("finetune", "training of a network by its denoising loss and a teacher"),
    ("pipeline", "folders of pipelines: components, configurations, the files around a network"),
    ("deploy", "conversion of networks for runtimes"),
    ("prune", "all stages in order, as callers of the library see them"),
    ("report", "the page with costs, losses and kept channels"),
    ("cli", "the command line"),
];

/// A path in a file that leads to another room, and its line.
#[derive(Debug)]
struct Import {
    room: String,
    line: usize,
}

/// Collects the rooms that a file names outside of tests.
struct Imports {
    /// The module of the file, `["graph", "dim"]`.
    module: Vec<String>,
    found: Vec<Import>,
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg_test = attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test");
        is_cfg_test || attribute.path().is_ident("test")
    })
}

impl Imports {
    /// Records the room of a path that begins with `crate` or `super`.
    fn note(&mut self, segments: &[String], line: usize) {
        let absolute: Vec<String> = match segments.first().map(String::as_str) {
            Some("crate") => segments[1..].to_vec(),
            Some("super") => {
                let ups = segments.iter().take_while(|segment| *segment == "super").count();
                let base = self.module.len().saturating_sub(ups);
                self.module[..base].iter().chain(&segments[ups..]).cloned().collect()
            }
            _ => return,
        };
        // A glob or the root itself may name the crate as a whole. No module imports that.
        let room = absolute.first().cloned().unwrap_or_else(|| "(the root)".to_owned());
        if self.module.first() != Some(&room) {
            self.found.push(Import { room, line });
        }
    }

    fn note_tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.note(&with(&name.ident), name.ident.span().start().line),
            syn::UseTree::Rename(rename) => self.note(&with(&rename.ident), rename.ident.span().start().line),
            syn::UseTree::Glob(glob) => self.note(before, glob.star_token.spans[0].start().line),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.note_tree(item, before)),
        }
    }

    /// Visits paths inside macros, which are not parsed.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.note_tokens(group.stream()),
                TokenTree::Ident(ident) if ident == "crate" || ident == "super" => {
                    let line = ident.span().start().line;
                    let mut segments = vec![ident.to_string()];
                    let is_colon =
                        |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
                    while is_colon(at + 1) && is_colon(at + 2) {
                        let Some(TokenTree::Ident(next)) = tokens.get(at + 3) else { break };
                        segments.push(next.to_string());
                        at += 3;
                    }
                    if segments.len() > 1 {
                        self.note(&segments, line);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

impl<'a> Visit<'a> for Imports {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test_only(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.note_tree(&item.tree, &[]);
    }

    // `pub(in crate::ops)` names a module but imports nothing.
    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.note(&segments, path.segments[0].ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'a syn::Macro) {
        self.note_tokens(invocation.tokens.clone());
        visit::visit_macro(self, invocation);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Returns all files of a folder and its subfolders.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the rooms that a text names, as the file of `module`.
fn imports(module: &[&str], text: &str) -> Vec<Import> {
    let mut imports = Imports { module: module.iter().map(|name| (*name).to_owned()).collect(), found: Vec::new() };
    imports.visit_file(&syn::parse_file(text).unwrap());
    imports.found
}

fn place(room: &str) -> Option<usize> {
    ROOMS.iter().position(|(name, _)| *name == room)
}

#[test]
fn no_room_imports_a_later_one() {
    let source = root().join("src");
    let mut faults = Vec::new();
    for path in files(&source) {
        let relative = path.strip_prefix(&source).unwrap().with_extension("");
        let module: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        if ["lib", "main"].contains(&module[0]) {
            continue;
        }
        let Some(own) = place(module[0]) else {
            faults.push(format!("{}: the module {} is not in ROOMS", path.display(), module[0]));
            continue;
        };
        // The tests of a module may be in a file of their own.
        if module.last() == Some(&"tests") {
            continue;
        }
        for import in imports(&module, &std::fs::read_to_string(&path).unwrap()) {
            let at = format!("src/{}.rs:{}", relative.display(), import.line);
            match place(&import.room) {
                None => faults.push(format!("{at}: {} is not in ROOMS", import.room)),
                Some(place) if place > own => {
                    faults.push(format!("{at}: {} imports the later {}", module[0], import.room))
                }
                Some(_) => {}
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn operators_import_only_operator_graph_and_onnx() {
    let allowed = BTreeSet::from(["operator", "graph", "onnx"]);
    let source = root().join("src");
    for path in files(&source.join("ops")) {
        let relative = path.strip_prefix(&source).unwrap().with_extension("");
        let module: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        for import in imports(&module, &std::fs::read_to_string(&path).unwrap()) {
            assert!(allowed.contains(import.room.as_str()), "{}:{}: {}", path.display(), import.line, import.room);
        }
    }
}

#[test]
fn every_form_of_import_is_recognised() {
    let rooms =
        |text: &str| -> Vec<String> { imports(&["write", "slice"], text).into_iter().map(|i| i.room).collect() };
    assert_eq!(rooms("use crate::verify::verify;"), ["verify"]);
    assert_eq!(rooms("use crate::{error::Error, plan::{Plan, SCHEMA}};"), ["error", "plan", "plan"]);
    assert_eq!(rooms("use super::super::plan as p;"), ["plan"]);
    assert_eq!(rooms("use super::wire::Field;"), [""; 0]);
    assert_eq!(rooms("fn f() { crate::plan::read(); }"), ["plan"]);
    assert_eq!(rooms("fn f(x: &crate::cli::Cli) {}"), ["cli"]);
    assert_eq!(rooms("fn f() { println!(\"{}\", g(crate::plan::SCHEMA)); }"), ["plan"]);
    assert_eq!(rooms("pub(in crate::plan) fn f() {}"), [""; 0]);
    assert_eq!(rooms("#[cfg(test)] mod tests { use crate::verify::verify; }"), [""; 0]);
    assert_eq!(rooms("mod inner { fn f() { super::super::super::plan::f() } }"), ["plan"]);
}

#[test]
fn how_it_works_lists_the_rooms() {
    let text = std::fs::read_to_string(root().join("docs/how-it-works.md")).unwrap();
    let rows: Vec<String> = ROOMS.iter().map(|(room, what)| format!("| `{room}` | {what} |")).collect();
    let table = rows.join("\n");
    if std::env::var_os("UPDATE").is_some() {
        let is_row = |line: &&str| {
            line.starts_with("| `") && ROOMS.iter().any(|(room, _)| line.starts_with(&format!("| `{room}` |")))
        };
        let first = text.lines().position(|line| is_row(&line)).expect("how-it-works.md has a table of rooms");
        let after: Vec<&str> = text.lines().skip(first).skip_while(is_row).collect();
        let before: Vec<&str> = text.lines().take(first).collect();
        let new = [before, rows.iter().map(String::as_str).collect(), after].concat().join("\n") + "\n";
        std::fs::write(root().join("docs/how-it-works.md"), new).unwrap();
        return;
    }
    assert!(text.contains(&table), "docs/how-it-works.md shows another list: run `UPDATE=1 cargo test --test source`");
}
