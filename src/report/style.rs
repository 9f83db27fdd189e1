//! Shared parts of all pages: style sheet, escaping, tables, images.
//!
//! Every page is one file without scripts, external fonts or links. It is also well-formed XML.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #566170; --line: #d9dee5; --paper: #ffffff; --panel: #f3f5f8;
  --deep: #e6eaf0; --kept: #1f7a8c; --gone: #cf5b37; --good: #2f7d4f; --bad: #b3261e;
  --n0: var(--good); --n1: var(--kept); --n2: var(--gone); --n3: #7b5ea7; --n4: #8a6800; --n5: #c2477f; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a3aebc; --line: #343c48; --paper: #14181e;
  --panel: #1c222b; --deep: #283140; --kept: #4fb3c7; --gone: #e58a6a; --good: #6cc08b; --bad: #f2877f; --n3: #b59be0;
  --n4: #d6ad3c; --n5: #e884b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 1120px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; break-after: avoid; }
p { margin: .4rem 0; max-width: 75ch; overflow-wrap: anywhere; } .soft { color: var(--soft); }
code, pre { font: 13px/1.5 ui-monospace, 'DejaVu Sans Mono', monospace; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: .75rem 1rem; border-radius: 6px; white-space: pre-wrap; }
.scroll { overflow-x: auto; } .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--kept); outline-offset: 2px; }
table { border-collapse: collapse; min-width: min(100%, 480px); font-size: 14px; } table.full { width: 100%; } caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 500; } tbody th { color: inherit; font-weight: 400; }
tr { break-inside: avoid; } thead { display: table-header-group; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.name { overflow-wrap: break-word; min-width: 9em; max-width: 32em; } .wide { width: 22%; min-width: 80px; }
.nowrap { white-space: nowrap; }
.used th { width: 11em; vertical-align: top; } .used td { overflow-wrap: anywhere; }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: var(--paper); font-weight: 600; }
.good { background: var(--good); } .bad { background: var(--bad); } .none { background: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(125px, 1fr)); gap: .75rem; margin: 1rem 0; padding: 0; }
.tiles div { background: var(--panel); border-radius: 6px; padding: .6rem .8rem; break-inside: avoid; }
  .tiles div { overflow-wrap: anywhere; } .tiles dt { color: var(--soft); font-size: 13px; } .tiles dd { margin: 0; } .small { font-size: 12px; } .tiles .big { white-space: nowrap; font-size: 1.2rem; font-weight: 600; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 1rem; }
.samples.many { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; } figcaption { font-size: 14px; padding-top: .3rem; }
.samples img { width: 100%; max-width: 360px; image-rendering: pixelated; border-radius: 4px; display: block; }
svg { display: block; width: 100%; height: auto; break-inside: avoid; }
svg text { fill: var(--soft); font: 11px system-ui, 'DejaVu Sans', sans-serif; } svg.plot { max-width: 700px; }
svg.network { max-width: 760px; } svg.network text { font-size: 9.5px; }
svg.network .block { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 8.5px; fill: var(--ink); }
svg.network .level { font-weight: 600; fill: var(--ink); }
.band { fill: var(--panel); } .band.odd { fill: var(--deep); } .flow { stroke: var(--soft); stroke-width: 1; }
.skip { fill: none; stroke: var(--n3); stroke-width: 1.1; } .tip { fill: var(--n3); }
rect.kept { fill: var(--kept); } rect.gone { fill: none; stroke: var(--gone); stroke-width: .8; }
rect.cut { fill: var(--gone); opacity: .45; }
.end { text-anchor: end; } .middle { text-anchor: middle; } .grid { stroke: var(--line); }
.line { fill: none; stroke-width: 2; } .line.kept { stroke: var(--kept); } .line.dropped { stroke: var(--soft);
  stroke-width: 1.2; stroke-dasharray: 3 3; } circle.kept { fill: var(--kept); }
.threshold { stroke: var(--gone); stroke-dasharray: 6 4; }
.bar { fill: none; } .bar.kept { stroke: var(--kept); } .bar.gone { stroke: var(--gone); }
.track { background: var(--gone); height: 11px; border-radius: 2px; overflow: hidden; min-width: 2px; }
.fill { background: var(--kept); height: 100%; } .rank { width: 150px; } .rank svg { width: 140px; }
.of-original { stroke: var(--good); } .of-cut { stroke: var(--gone); } .of-refitted { stroke: var(--kept); }
.of-tuned { stroke: var(--n3); }
details { border-bottom: 1px solid var(--line); } summary { cursor: pointer; padding: .45rem 0; overflow-wrap: anywhere; }
details > :not(summary) { margin-bottom: .75rem; }
.n0 { stroke: var(--n0); } .n1 { stroke: var(--n1); } .n2 { stroke: var(--n2); } .n3 { stroke: var(--n3); }
.n4 { stroke: var(--n4); } .n5 { stroke: var(--n5); }
circle.n0 { fill: var(--n0); } circle.n1 { fill: var(--n1); } circle.n2 { fill: var(--n2); } circle.n3 { fill: var(--n3); }
circle.n4 { fill: var(--n4); } circle.n5 { fill: var(--n5); }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
.key i:first-child { margin-left: 0; } .key i.outline { border: 1.5px solid var(--gone); }
@media (max-width: 620px) { body { padding: 1rem .75rem 3rem; } th, td { padding-right: .5rem; font-size: 14px; }
  .rank, .less { display: none; } .samples { grid-template-columns: repeat(2, 1fr); } .used th { width: 8em; } }
pre { break-inside: avoid; } .printed { display: none; }
@media print { .printed { display: block; } @page { size: A4; margin: 14mm; }
  body { font-size: 10.5pt; padding: 0; max-width: none; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; } svg.network { max-height: 255mm; } .samples, .samples.many { grid-template-columns: repeat(auto-fit, minmax(40mm, 1fr)); }
  details:not(.long)::details-content { content-visibility: visible; block-size: auto; } details.long { display: none; } }
";

/// Escapes text for HTML. Control characters and characters that change the writing direction are written as escapes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '\'' => safe.push_str("&#39;"),
            '"' => safe.push_str("&quot;"),
            '\n' | '\t' => safe.push(letter),
            '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(safe, "{}", letter.escape_unicode());
            }
            other if other.is_control() => {
                let _ = write!(safe, "{}", other.escape_unicode());
            }
            other => safe.push(other),
        }
    }
    safe
}

/// Escapes a name from the file, with possible line breaks after its parts.
pub(super) fn name(text: &str) -> String {
    let mut safe = String::new();
    for part in escape(text).split_inclusive(['.', '/', '_']) {
        safe.push_str(part);
        safe.push_str("<wbr/>");
    }
    safe
}

/// Returns the beginning of a page with its title.
pub(super) fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'/>\
         <meta name='viewport' content='width=device-width, initial-scale=1'/><title>{0}</title><style>{STYLE}</style>\
         </head><body>\n<main>\n<h1>{0}</h1>\n",
        escape(title)
    )
}

/// The end of a page.
pub(super) const END: &str = "</main>\n</body></html>\n";

/// A column of a table: its name, and the class of its cells (`n` for numbers).
pub(super) type Column<'a> = (&'a str, &'a str);

/// Returns a table with a header; cells are HTML. The first cell of every row is its header. The table scrolls
/// horizontally if the page is too narrow.
pub(super) fn table(caption: &str, columns: &[Column<'_>], rows: &[Vec<String>]) -> String {
    let label = escape(caption);
    let mut text = format!(
        "<div class='scroll' role='region' tabindex='0' aria-label='{label}'><table{}><caption>{label}</caption><thead><tr>",
        if columns.iter().any(|(_, class)| class.contains("wide")) { " class='full'" } else { "" }
    );
    for (name, class) in columns {
        let _ = write!(text, "<th scope='col' class='{class}'>{}</th>", escape(name));
    }
    text += "</tr></thead><tbody>\n";
    for row in rows {
        text += "<tr>";
        for (at, (cell, (_, class))) in row.iter().zip(columns).enumerate() {
            let _ = match at {
                0 => write!(text, "<th scope='row' class='{class}'>{cell}</th>"),
                _ => write!(text, "<td class='{class}'>{cell}</td>"),
            };
        }
        text += "</tr>\n";
    }
    text + "</tbody></table></div>\n"
}

/// Returns the table of what was used: names and values.
pub(super) fn used(rows: &[[String; 2]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from("<table class='used'><tbody>\n");
    for [name, value] in rows {
        let _ = writeln!(
            text,
            "<tr><th scope='row'>{}</th><td>{}</td></tr>",
            escape(name),
            escape(value).replace('\n', "<br/>")
        );
    }
    text + "</tbody></table>\n"
}

/// Returns a list of paragraphs with a title; empty if there are none.
pub(super) fn list(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
    format!("<h2>{title}</h2>\n<ul>{lines}</ul>\n")
}

/// Returns images side by side: names, PNG files, and captions as HTML.
pub(super) fn pictures<'p>(of: impl ExactSizeIterator<Item = (&'p str, &'p [u8], String)>) -> String {
    let many = if of.len() > 3 { " many" } else { "" };
    let mut text = format!("<div class='samples{many}'>");
    for (name, png, note) in of {
        let (name, data) = (escape(name), STANDARD.encode(png));
        let _ = write!(text, "<figure><img alt='samples of {name}' src='data:image/png;base64,{data}'/>");
        let _ = write!(text, "<figcaption><strong>{name}</strong>{note}</figcaption></figure>");
    }
    text + "</div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escape("<b> & 'x' \"y\""), "&lt;b&gt; &amp; &#39;x&#39; &quot;y&quot;");
        assert_eq!(escape("a\u{1b}[2J\u{202e}b\0"), "a\\u{1b}[2J\\u{202e}b\\u{0}");
    }
}
