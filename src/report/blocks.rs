//! The table of blocks, and the channel groups in collapsible lists below it.

use super::drawing::{change, heads};
use super::plots::{importance, kept_bar, short};
use super::style::{escape, name, table};
use crate::plan::{GroupPlan, Plan};
use crate::prune::{BlockTimes, Change, Outline};

/// Approximate number of importance bars on a page, and minimum number for one group: this limits the size of a page with
/// hundreds of groups.
const BARS: usize = 24_000;
const LEAST_BARS: usize = 24;

/// Maximum number of groups for which all lists are open and printed.
const OPEN: usize = 12;

/// Formats a number with a unit prefix.
fn human(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(size, _)| value >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", value / size),
        None => format!("{value:.0}"),
    }
}

/// Returns the table of channels, MACs and, if measured, latency by block.
pub(super) fn block_table(outline: &Outline, times: Option<&BlockTimes>) -> String {
    if outline.blocks.is_empty() {
        return String::new();
    }
    let most = outline.blocks.iter().map(|block| block.macs.0).fold(0.0, f64::max);
    let mut columns = vec![
        ("block", "name"),
        ("level", "less"),
        ("channels", ""),
        ("MACs before", "n"),
        ("after", "n"),
        ("kept", if times.is_some() { "wide less" } else { "wide" }),
    ];
    if times.is_some() {
        columns.extend([("ms before", "n"), ("after", "n")]);
    }
    let bar = |(before, after): (f64, f64)| {
        let share = |part: f64, whole: f64| if whole > 0.0 { (1000.0 * part / whole) as usize } else { 0 };
        match before > 0.0 {
            true => kept_bar(share(after, before), 1000, share(most, before).max(1000)),
            false => String::new(),
        }
    };
    let ms = |times: (f64, f64)| [format!("{:.2}", times.0), format!("{:.2}", times.1)];
    let mut rows = Vec::new();
    for (at, block) in outline.blocks.iter().enumerate() {
        let level = outline.levels.get(block.level).map_or("", |level| level.size.as_str());
        let inner = (block.widest != block.channels).then(|| format!("widest {}", change(block.widest)));
        let line = |text: String| format!("<br/><span class='soft'>{}</span>", escape(&text));
        let detail: String = inner.into_iter().chain(heads(block)).map(line).collect();
        let mut row = vec![
            name(&block.name),
            escape(level),
            format!("<span class='nowrap'>{}{detail}</span>", change(block.channels)),
            human(block.macs.0),
            human(block.macs.1),
            bar(block.macs),
        ];
        row.extend(times.and_then(|times| times.blocks.get(at)).copied().map(ms).into_iter().flatten());
        rows.push(row);
    }
    let other_time = times.map_or((0.0, 0.0), |times| times.other);
    if outline.other_macs.0 > 0.0 || other_time.0 > 0.0 {
        let mut row = vec!["elsewhere".to_owned(), String::new(), String::new()];
        row.extend([human(outline.other_macs.0), human(outline.other_macs.1), bar(outline.other_macs)]);
        row.extend(times.map(|times| ms(times.other)).into_iter().flatten());
        rows.push(row);
    }
    let timed = match times {
        Some(times) => format!(
            " Times are medians over {} runs with the profiler of ONNX Runtime, which adds some time itself.",
            times.runs
        ),
        None => String::new(),
    };
    format!(
        "<h2>MACs{} by block</h2>\n<p class='soft'>MACs include those between activations, at the sizes listed \
         below.{timed}</p>\n{}",
        if times.is_some() { " and latency" } else { "" },
        table("Blocks in the order of the data flow", &columns, &rows)
    )
}

/// Returns the section of the channel groups, with a collapsible list for every block.
pub(super) fn groups(plan: &Plan, outline: Option<&Outline>) -> String {
    let all = &plan.groups;
    if all.is_empty() {
        return String::new();
    }
    let mut section = String::from(
        "<h2>Channel groups</h2>\n<p class='key soft'><i style='background:var(--kept)'></i>kept\
         <i style='background:var(--gone)'></i>removed</p>\n<p class='soft'>Groups of coupled channels, listed by the \
         block whose weights produce them. The importance plot shows the channels of a group from the most to the least \
         important; every group has its own scale. If the number of norm groups is kept, equally many channels are \
         removed from each norm group, so a removed channel can be more important than a kept one.</p>\n",
    );
    if all.len() > OPEN {
        section += "<p class='printed soft'>The lists are collapsed and not printed.</p>\n";
    }
    let mut is_placed = vec![false; all.len()];
    let heads_of = |group: &GroupPlan| -> Option<Change> {
        let outline = outline?;
        let at = all.iter().position(|of| std::ptr::eq(of, group))?;
        let block = outline.blocks.iter().find(|block| block.groups.contains(&at))?;
        block.heads.filter(|_| outline.head_groups.contains(&at)).map(|(_, size)| size)
    };
    let blocks = outline.map_or(&[][..], |outline| outline.blocks.as_slice());
    for block in blocks.iter().filter(|block| !block.groups.is_empty()) {
        block.groups.iter().for_each(|at| is_placed[*at] = true);
        let of: Vec<&GroupPlan> = block.groups.iter().filter_map(|at| all.get(*at)).collect();
        section += &list_of_groups(&block.name, &of, &heads_of, all.len());
    }
    let rest: Vec<&GroupPlan> = all.iter().zip(&is_placed).filter(|(_, placed)| !**placed).map(|(of, _)| of).collect();
    if !rest.is_empty() {
        let title = if blocks.is_empty() { "All groups" } else { "Elsewhere" };
        section += &list_of_groups(title, &rest, &heads_of, all.len());
    }
    section
}

fn list_of_groups(title: &str, of: &[&GroupPlan], heads: &dyn Fn(&GroupPlan) -> Option<Change>, all: usize) -> String {
    let widest = of.iter().map(|group| group.channels).max().unwrap_or(1);
    let (kept, whole) =
        of.iter().fold((0, 0), |(kept, whole), group| (kept + group.kept.len(), whole + group.channels));
    let is_ranked = of.iter().any(|group| !group.scores.is_empty());
    let mut columns = vec![("channel group", "name"), ("kept", "n"), ("", "wide")];
    columns.extend(is_ranked.then_some(("importance", "rank")));
    let rows: Vec<Vec<String>> = of.iter().map(|group| row(group, heads(group), (widest, all), is_ranked)).collect();
    format!(
        "<details{}{}><summary><strong>{}</strong> <span class='soft'>{} group{}, {kept} of {whole} kept</span></summary>\n\
         {}</details>\n",
        if all > OPEN { " class='long'" } else { "" },
        if all <= OPEN { " open='open'" } else { "" },
        escape(title),
        of.len(),
        if of.len() == 1 { "" } else { "s" },
        table(&format!("Channel groups of {title}"), &columns, &rows)
    )
}

fn row(group: &GroupPlan, heads: Option<Change>, (widest, all): (usize, usize), is_ranked: bool) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let (one, many) = match heads {
        Some(size) => {
            notes.push(format!("heads of {}", change(size)));
            ("head", "heads")
        }
        None => ("channel", "channels"),
    };
    notes.extend(group.criterion.as_ref().map(|criterion| format!("ranked by {criterion}")));
    notes.extend(group.reason.clone().filter(|_| group.kept.len() == group.channels));
    let notes = match notes.is_empty() {
        true => String::new(),
        false => format!("<br/><span class='soft'>{}</span>", escape(&notes.join("; "))),
    };
    let unit = if group.channels == 1 { one } else { many };
    let mut row = vec![
        format!("{}{notes}", name(&group.name)),
        format!("{} of {} {unit}", group.kept.len(), group.channels),
        kept_bar(group.kept.len(), group.channels, widest),
    ];
    if is_ranked {
        let mut is_kept = vec![false; group.channels];
        group.kept.iter().for_each(|at| {
            if let Some(kept) = is_kept.get_mut(*at) {
                *kept = true;
            }
        });
        let bars = (BARS / all.max(1)).clamp(LEAST_BARS, 192);
        let largest = group.scores.iter().copied().fold(0.0, f64::max);
        row.push(match group.scores.is_empty() {
            true => String::new(),
            false => format!(
                "{}<span class='soft'>largest {}</span>",
                importance(&group.scores, bars, &|channel| is_kept.get(channel).copied().unwrap_or(true)),
                short(largest)
            ),
        });
    }
    row
}
