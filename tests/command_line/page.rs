//! Checks a report page as a browser would: that it is well-formed and loads nothing, and what text it shows.

use std::path::Path;

/// A checked page.
pub(crate) struct Page {
    /// The file.
    pub(crate) html: String,
    /// Its text without tags, with white space collapsed to single spaces.
    pub(crate) text: String,
}

/// Reads a page. It must be well-formed XML after its first line, and must load nothing from outside.
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
        // A word may break here; this is not a space.
        text.push_str(if tag == "wbr/" { "" } else { " " });
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{before:?} closes a tag that is not the innermost one");
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
        assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric()), "{name:?} is not a tag");
        check_attributes(name, attributes.trim_end_matches('/'));
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
    let style = html.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).expect("a style").0;
    assert!(!style.contains("url(") && !style.contains("@import"), "the style loads files");
    assert!(!html.contains("<script") && !html.contains("<link") && !html.contains("NaN"));
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace("&quot;", "\"");
    let text = text.replace("&amp;", "&").split_whitespace().collect::<Vec<_>>().join(" ");
    Page { html, text }
}

/// Asserts that every ampersand of a text begins an entity.
fn check_text(text: &str) {
    for entity in text.split('&').skip(1) {
        let known = ["lt;", "gt;", "amp;", "#39;", "quot;"];
        assert!(known.iter().any(|known| entity.starts_with(known)), "{entity:?}");
    }
    assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text:?}");
}

/// Asserts that attributes are quoted, that none runs a script, and that resources are embedded.
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
