//! The drawing of a network: blocks in the order of the data flow, in one band per level.
//!
//! A thick bar shows the channels that leave a block, a thin bar those of its widest layer, and squares show heads. The
//! filled part is kept. Lines at the right are skip connections.

use std::fmt::Write;

use super::style::escape;
use crate::prune::{Change, Outline, OutlineBlock};

/// Maximum number of blocks that each have a row; with more, similar neighbours share a row.
const MOST_ROWS: usize = 40;

/// The layout: the width of the drawing, the middle and half the maximum length of bars, and the left ends of the numbers
/// and of the lines of skip connections.
const WIDTH: f64 = 480.0;
const MIDDLE: f64 = 254.0;
const HALF: f64 = 80.0;
const NUMBERS: f64 = 342.0;
const SKIPS: f64 = 412.0;

/// Maximum number of letters of a name.
const LETTERS: usize = 30;

/// A row: one block, or several similar ones.
struct Row<'a> {
    first: &'a OutlineBlock,
    /// Positions of the blocks.
    blocks: std::ops::Range<usize>,
    y: f64,
}

impl Row<'_> {
    fn height(&self) -> f64 {
        let inner = if self.first.widest == self.first.channels { 0.0 } else { 4.0 };
        15.0 + inner + if self.first.heads.is_some() { 7.0 } else { 0.0 }
    }
}

/// Returns the rows of a drawing. If there are many blocks, similar neighbours share a row.
fn rows(outline: &Outline) -> Vec<Row<'_>> {
    let merges = outline.blocks.len() > MOST_ROWS;
    let look = |block: &OutlineBlock| (block.level, block.channels, block.widest, block.heads, block.layers);
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (at, block) in outline.blocks.iter().enumerate() {
        let passes = |at: usize| outline.skips.iter().any(|(from, to)| *from == at || *to == at);
        match rows.last_mut() {
            Some(row) if merges && look(row.first) == look(block) && !passes(at) && !passes(row.blocks.start) => {
                row.blocks.end = at + 1;
            }
            _ => rows.push(Row { first: block, blocks: at..at + 1, y: 0.0 }),
        }
    }
    rows
}

/// Formats a change, such as `64 → 45`.
pub(super) fn change((before, after): Change) -> String {
    if before == after { before.to_string() } else { format!("{before} → {after}") }
}

/// Describes the heads of a block.
pub(super) fn heads(of: &OutlineBlock) -> Option<String> {
    let (count, size) = of.heads?;
    let plural = if count.0 == 1 { "head" } else { "heads" };
    Some(format!("{} {plural} of {}", change(count), change(size)))
}

fn shortened(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    if count <= letters {
        return name.to_owned();
    }
    let (front, back) = (letters / 2 - 1, letters - letters / 2);
    let start: String = name.chars().take(front).collect();
    let end: String = name.chars().skip(count - back).collect();
    format!("{start}…{end}")
}

/// Draws a centred bar in two colours: the kept part, and the removed part at both of its ends.
fn bar(svg: &mut String, (before, after): Change, longest: usize, (y, height): (f64, f64)) {
    let half = |channels: usize| HALF * channels as f64 / longest.max(1) as f64;
    // A bar that does not fit is drawn at the maximum length.
    let fits = (HALF / half(before).max(0.1)).min(1.0);
    let (whole, kept) = ((half(before) * fits).max(0.6), half(after) * fits);
    let _ = write!(
        svg,
        "<rect class='cut' x='{:.1}' y='{y:.1}' width='{:.1}' height='{height}' rx='1'/>\
         <rect class='kept' x='{:.1}' y='{y:.1}' width='{:.1}' height='{height}' rx='1'/>",
        MIDDLE - whole,
        2.0 * whole,
        MIDDLE - kept,
        2.0 * kept
    );
}

fn squares(svg: &mut String, (before, after): Change, y: f64) {
    let step = (2.0 * HALF / before.max(1) as f64).min(7.0);
    let side = (step - 1.5).max(0.8);
    let start = MIDDLE - step * before as f64 / 2.0 + (step - side) / 2.0;
    for at in 0..before {
        let class = if at < after { "kept" } else { "gone" };
        let x = start + step * at as f64;
        let _ = write!(svg, "<rect class='{class}' x='{x:.1}' y='{y:.1}' width='{side:.1}' height='4.5'/>");
    }
}

/// Returns the legend of a drawing.
fn key(outline: &Outline) -> String {
    let inner = outline.blocks.iter().any(|block| block.widest != block.channels);
    let heads = outline.blocks.iter().any(|block| block.heads.is_some());
    let mut text = String::from(
        "<p class='key soft'><i style='background:var(--kept)'></i>kept\
         <i style='background:var(--gone);opacity:.45'></i>removed. Thick bars: channels that leave a block, before and after.",
    );
    text += if inner { " Thin bars: the widest layer of the block, on a separate scale." } else { "" };
    text += if heads { " Squares: heads of attention." } else { "" };
    text += if outline.skips.is_empty() { "" } else { " Lines at the right: skip connections." };
    text += if outline.is_named {
        ""
    } else {
        " The names in the file show no blocks: each block is a run of layers at one level."
    };
    text + "</p>\n"
}

/// Returns the drawing with its legend.
pub(super) fn network(outline: &Outline) -> String {
    if outline.blocks.is_empty() {
        return String::new();
    }
    let mut rows = rows(outline);
    let most = |of: fn(&OutlineBlock) -> usize| {
        // Vectors, such as the time embedding, are often wider than the spatial activations.
        let positions = |block: &OutlineBlock| outline.levels.get(block.level).map_or(1.0, |level| level.positions);
        let flowing = outline.blocks.iter().filter(|block| positions(block) > 1.0).map(of).max();
        flowing.or(outline.blocks.iter().map(of).max()).unwrap_or(1)
    };
    let (longest, widest) = (most(|block| block.channels.0), most(|block| block.widest.0));
    let (mut y, mut bands, mut level) = (4.0, Vec::new(), None);
    for row in &mut rows {
        if level != Some(row.first.level) {
            bands.push((row.first.level, y));
            (level, y) = (Some(row.first.level), y + 15.0);
        }
        row.y = y;
        y += row.height();
    }
    let height = y + 6.0;
    let mut svg = format!(
        "<svg class='network' viewBox='0 0 {WIDTH} {height:.0}' role='img' aria-label='The network: {} blocks at {} levels, \
         {} skip connections; the table of blocks has the numbers'>",
        outline.blocks.len(),
        outline.levels.len(),
        outline.skips.len()
    );
    for (at, (level, from)) in bands.iter().enumerate() {
        let to = bands.get(at + 1).map_or(y + 3.0, |(_, next)| *next) - 1.5;
        let x = 7.0 * (*level).min(6) as f64;
        let class = if level % 2 == 1 { "band odd" } else { "band" };
        let (wide, high) = (SKIPS - 4.0 - x, to - from);
        let _ = write!(svg, "<rect class='{class}' x='{x}' y='{from:.1}' width='{wide}' height='{high:.1}' rx='3'/>");
        let size = outline.levels.get(*level).map_or("", |level| level.size.as_str());
        let size = if size.is_empty() { "one vector".to_owned() } else { size.to_owned() };
        let _ = write!(svg, "<text class='level' x='{}' y='{:.1}'>{}</text>", x + 5.0, from + 11.0, escape(&size));
    }
    for row in &rows {
        let block = row.first;
        let x = 7.0 * block.level.min(6) as f64 + 5.0;
        let name = match row.blocks.len() {
            1 => block.name.clone(),
            count => format!("{} to {} ({count})", block.name, last_part(&outline.blocks[row.blocks.end - 1].name)),
        };
        let letters = LETTERS - block.level.min(6);
        let detail = [Some(format!("channels {}", change(block.channels))), heads(block)];
        let detail: Vec<String> = detail.into_iter().flatten().collect();
        let _ = write!(svg, "<g><title>{}: {}</title>", escape(&name), detail.join(", "));
        let _ = write!(
            svg,
            "<text class='block' x='{x}' y='{:.1}'>{}</text>",
            row.y + 9.0,
            escape(&shortened(&name, letters))
        );
        bar(&mut svg, block.channels, longest, (row.y + 2.0, 9.0));
        let mut below = row.y + 12.5;
        if block.widest != block.channels {
            bar(&mut svg, block.widest, widest, (below, 2.5));
            below += 4.0;
        }
        if let Some((count, _)) = block.heads {
            squares(&mut svg, count, below + 0.5);
        }
        let _ = write!(svg, "<text x='{NUMBERS}' y='{:.1}'>{}</text></g>", row.y + 9.5, change(block.channels));
    }
    skips(&mut svg, outline, &rows);
    format!("<figure>{}{svg}</svg></figure>\n", key(outline))
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Draws the lines of skip connections, the longest on the outside.
fn skips(svg: &mut String, outline: &Outline, rows: &[Row<'_>]) {
    let row = |block: usize| rows.iter().position(|row| row.blocks.contains(&block)).unwrap_or(0);
    let mut lines: Vec<(usize, usize)> = outline.skips.iter().map(|(from, to)| (row(*from), row(*to))).collect();
    lines.retain(|(from, to)| from < to);
    lines.sort_by_key(|(from, to)| to - from);
    lines.dedup();
    // Two lines may share a lane if they do not overlap.
    let mut lanes: Vec<Vec<(usize, usize)>> = Vec::new();
    let placed: Vec<(usize, (usize, usize))> = lines
        .into_iter()
        .map(|line| {
            let meets = |other: &(usize, usize)| other.0 <= line.1 && line.0 <= other.1;
            let lane = lanes.iter().position(|lane| !lane.iter().any(meets)).unwrap_or(lanes.len());
            if lane == lanes.len() {
                lanes.push(Vec::new());
            }
            lanes[lane].push(line);
            (lane, line)
        })
        .collect();
    let step = ((WIDTH - SKIPS - 8.0) / lanes.len().max(1) as f64).min(9.0);
    for (lane, (from, to)) in placed {
        let x = SKIPS + 6.0 + step * lane as f64;
        let (y0, y1) = (rows[from].y + 7.0, rows[to].y + 5.0);
        let _ = write!(
            svg,
            "<path class='skip' d='M{SKIPS} {y0:.1}H{x:.1}V{y1:.1}H{:.1}'/>\
             <path class='tip' d='M{:.1} {y1:.1}l4.5 -2.4v4.8z'/>",
            SKIPS + 1.0,
            SKIPS - 2.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shortened("down.0.resnets.1", 30), "down.0.resnets.1");
        let name = shortened("a_very_long_module.with_a_long_child.and.one.more", 20);
        assert!(
            name.chars().count() == 20
                && name.starts_with("a_very_lo…")
                && name.ends_with("and.one.more".split_at(2).1),
            "{name}"
        );
    }

    #[test]
    fn an_unchanged_count_is_one_number() {
        assert_eq!((change((3, 3)), change((64, 45))), ("3".to_owned(), "64 → 45".to_owned()));
    }
}
