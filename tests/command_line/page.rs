//! A page read as a browser would: is it well-formed, does it ask for anything beside itself, what does it say.

use std::path::Path;

/// A page that was checked.
pub(crate) struct Page {
    /// The file.
    pub(crate) html: String,
    /// What it says, without tags, white space as single spaces.
    pub(crate) text: String,
}

/// Reads a page, which must be well-formed XML but for its first line, and ask for nothing outside itself.
pub(crate) fn page(path: &Path) -> Page {
    let html = std::fs::read_to_string(path).unwrap();
    let (mut open, mut text): (Vec<&str>, String) = (Vec::new(), String::new());
    let mut rest = html.strip_prefix("<!doctype html>").expect("a page begins with its type");
    while let Some((before, after)) = rest.split_once('<') {
        if open.last() != Some(&"style") {
            check_text(before);
            text.push_str(before);
        }
        let (tag, after) = after.split_once('>').expect("a tag ends");
        // Where a word may break there is no space.
        text.push_str(if tag == "wbr/" { "" } else { " " });
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "a tag that was not the last one ends in {before:?}");
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
        assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric()), "{name:?} is no tag");
        check_attributes(name, attributes.trim_end_matches('/'));
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
    let style = html.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).expect("a style").0;
    assert!(!style.contains("url(") && !style.contains("@import"), "the style asks for files");
    assert!(!html.contains("<script") && !html.contains("<link") && !html.contains("NaN"));
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace("&quot;", "\"");
    let text = text.replace("&amp;", "&").split_whitespace().collect::<Vec<_>>().join(" ");
    Page { html, text }
}

/// Every ampersand of a text begins an entity.
fn check_text(text: &str) {
    for entity in text.split('&').skip(1) {
        let known = ["lt;", "gt;", "amp;", "#39;", "quot;"];
        assert!(known.iter().any(|known| entity.starts_with(known)), "{entity:?}");
    }
    assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text:?}");
}

/// Attributes are quoted, none runs a script, and what a page loads is in it.
fn check_attributes(tag: &str, attributes: &str) {
    let mut rest = attributes.trim();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("='").unwrap_or_else(|| panic!("{tag}: {rest:?}"));
        let (value, after) = value.split_once('\'').unwrap_or_else(|| panic!("{tag}: {rest:?}"));
        assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-'), "{tag}: {name:?}");
        assert!(!name.starts_with("on"), "{tag}: {name}");
        check_text(value);
        if ["src", "href", "srcset", "action", "data"].contains(&name) {
            assert!(value.starts_with("data:image/png;base64,"), "{tag}: {value}");
        }
        rest = after.trim_start();
    }
}
