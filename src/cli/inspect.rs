//! Shows what a network is made of and what could be pruned.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::dot::{Config, Dot};
use petgraph::graph::DiGraph;
use serde_json::json;

use super::args::InspectArgs;
use super::config::{check_sizes, parse_sizes};
use super::printer::{Printer, human, percent, table, wrapped};
use crate::analysis::{Analysis, analyse};
use crate::couple::group::{ChannelGroup, Grouping, Member, Role};
use crate::error::Error;
use crate::graph::fact::Fact;
use crate::graph::sizes::sizes_for;
use crate::graph::{Graph, Node, NodeId};
use crate::load::load;

pub(super) fn run(args: &InspectArgs, printer: &Printer) -> Result<bool, Error> {
    let progress = printer.progress(3);
    progress.step("reading");
    let model = load(&args.input)?;
    progress.step("coupling channels");
    let analysis = analyse(&model)?;
    let given = parse_sizes(&args.size)?;
    let sizes = sizes_for(&analysis.facts, &given);
    check_sizes(&given, &sizes, &args.input)?;
    progress.step("grouping");
    let groupings = analysis.groupings(args.attention, args.norm_groups);
    drop(progress);
    if args.dot {
        printer.raw(&groupings.iter().map(|grouping| dot(&analysis, grouping)).collect::<String>());
        return Ok(true);
    }
    let cost = analysis.count(|counter| counter.cost(None, &sizes));
    let by_node = analysis.count(|counter| counter.macs_by_node(None, &sizes));
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    let mut blocks: BTreeMap<String, f64> = BTreeMap::new();
    for (node, macs) in analysis.graph.nodes.iter().zip(&by_node) {
        *operators.entry(node.op()).or_default() += 1;
        if *macs > 0.0 {
            *blocks.entry(block_of(&node.name)).or_default() += macs;
        }
    }
    let describe = |value: &usize| {
        let fact = analysis.facts.values[*value].as_ref();
        (analysis.graph.values[*value].name.clone(), fact.map_or("unknown".to_owned(), Fact::describe))
    };
    let inputs: Vec<_> = analysis.graph.inputs.iter().map(describe).collect();
    let outputs: Vec<_> = analysis.graph.outputs.iter().map(describe).collect();
    let barriers: Vec<(String, String, String)> = analysis
        .coupling
        .barriers
        .iter()
        .map(|barrier| {
            let node = &analysis.graph.nodes[barrier.node];
            (node.name.clone(), node.op(), barrier.cause.clone())
        })
        .collect();
    let groups: Vec<_> = groupings.iter().flat_map(|grouping| group_rows(&analysis, grouping)).collect();
    let texts = if args.members { analysis.coupling_texts() } else { Vec::new() };
    let coupling: Vec<(&Node, &str)> =
        analysis.graph.nodes.iter().zip(&texts).filter_map(|(node, text)| Some((node, text.as_deref()?))).collect();
    let json = json!({
        "model": args.input,
        "opset": analysis.graph.opset,
        "inputs": inputs,
        "outputs": outputs,
        "operators": operators,
        "sizes": sizes,
        "cost": cost,
        "macs_by_block": blocks,
        "groups": groups.iter().map(|group| group.json(&analysis.graph)).collect::<Vec<_>>(),
        "coupling": coupling.iter().map(|(node, text)| json!({"node": node.name, "op": node.op(), "text": text})).collect::<Vec<_>>(),
        "barriers": barriers.iter().map(|(node, op, cause)| json!({"node": node, "op": op, "cause": cause})).collect::<Vec<_>>(),
    });
    printer.result(&json, || {
        let mut out = format!("{} (opset {})\n", args.input.display(), analysis.graph.opset);
        for (kind, values) in [("input ", &inputs), ("output", &outputs)] {
            for (name, fact) in values {
                out += &format!("  {kind} {name}: {fact}\n");
            }
        }
        out += &format!(
            "\n{} parameters, {} MACs and {} between activations, {}B of activations",
            human(cost.parameters as f64),
            human(cost.macs),
            human(cost.attention_macs),
            human(cost.activation_bytes as f64)
        );
        let at: Vec<String> =
            sizes.iter().filter(|(name, _)| !name.starts_with('?')).map(|(n, s)| format!("{n}={s}")).collect();
        if !at.is_empty() {
            out += &format!(" at {}", at.join(", "));
        }
        let names: Vec<String> = operators.iter().map(|(name, count)| format!("{name} {count}")).collect();
        out += &format!("\n\noperators:\n{}\n\n", wrapped(&names));
        let rows: Vec<Vec<String>> = blocks
            .iter()
            .map(|(block, macs)| vec![block.clone(), human(*macs), percent(*macs, cost.macs + cost.attention_macs)])
            .collect();
        out += &table(&["block", "MACs", "share"], &rows);
        let rows: Vec<Vec<String>> = groups
            .iter()
            .map(|group| {
                vec![
                    group.name.clone(),
                    group.channels.to_string(),
                    group.unit.map_or_else(|| "-".to_owned(), |unit| unit.to_string()),
                    group.members.len().to_string(),
                    group.kept.clone().unwrap_or_else(|| "can shrink".to_owned()),
                ]
            })
            .collect();
        out += &format!("\n\nchannel groups ({}):\n", groups.len());
        out += &table(&["group", "channels", "equal blocks of", "weights", "state"], &rows);
        if args.members {
            for group in &groups {
                out += &format!("\n\n{} ({} channels)\n  {}", group.name, group.channels, group.members.join("\n  "));
                let nodes = coupling.iter().filter(|(node, _)| group.nodes.contains(&node.id));
                out += &nodes_by_text(nodes.copied());
            }
        }
        if !barriers.is_empty() {
            out += &format!("\n\nbarriers ({}):\n", barriers.len());
            for (node, op, cause) in &barriers {
                out += &format!("  {node} ({op}): {cause}\n");
            }
        }
        out
    });
    Ok(true)
}

/// One channel group as it is shown.
struct GroupRow {
    name: String,
    channels: usize,
    /// The same number of channels goes from every block of this many; nothing where no norm asks for it.
    unit: Option<usize>,
    members: Vec<String>,
    kept: Option<String>,
    /// The nodes that the channels go through.
    nodes: BTreeSet<NodeId>,
}

impl GroupRow {
    fn json(&self, graph: &Graph) -> serde_json::Value {
        json!({
            "name": self.name,
            "channels": self.channels,
            "equal_blocks_of": self.unit,
            "members": self.members,
            "reason": self.kept,
            "nodes": self.nodes.iter().map(|node| &graph.nodes[*node].name).collect::<Vec<_>>(),
        })
    }
}

fn group_rows(analysis: &Analysis, grouping: &Grouping) -> Vec<GroupRow> {
    let row = |(group, nodes): (&ChannelGroup, BTreeSet<NodeId>)| {
        let member = |member: &Member| {
            let node = &analysis.graph.nodes[analysis.coupling.uses[member.weight].node];
            let role = format!("{:?}", member.role).to_lowercase();
            format!("{role} {} axis {} in {}", analysis.weight_name(member), member.axis, node.name)
        };
        GroupRow {
            name: analysis.group_name(&group.members),
            channels: group.channels.len(),
            unit: Some(grouping.components[group.component].unit).filter(|unit| *unit < group.channels.len()),
            members: group.members.iter().map(member).collect(),
            kept: group.fixed.as_ref().map(|reason| format!("stays: {} ({})", reason.text, reason.node)),
            nodes,
        }
    };
    grouping.groups.iter().zip(analysis.nodes_by_group(grouping)).map(row).collect()
}

/// Names of nodes with one text that are written out.
const NAMES: usize = 2;

/// The coupling of nodes as lines; those of one operator and one text share a line, at the place of the first.
fn nodes_by_text<'a>(nodes: impl Iterator<Item = (&'a Node, &'a str)>) -> String {
    let mut rows: Vec<(String, &str, Vec<&str>)> = Vec::new();
    for (node, text) in nodes {
        let op = node.op();
        match rows.iter_mut().find(|(of, with, _)| *of == op && *with == text) {
            Some((_, _, names)) => names.push(&node.name),
            None => rows.push((op, text, vec![&node.name])),
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let line = |(op, text, names): (String, &str, Vec<&str>)| {
        let shown: Vec<&str> = names.iter().take(NAMES).copied().collect();
        let more = match names.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("\n    {op} {text} in {}{more}", shown.join(", "))
    };
    let lines: String = rows.into_iter().map(line).collect();
    format!("\n  through{lines}")
}

/// The first two levels of a node's name, as exporters write module paths.
fn block_of(name: &str) -> String {
    let separator = if name.starts_with('/') { '/' } else { '.' };
    let parts: Vec<&str> = name.split(separator).filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] | [_] => "(top level)".to_owned(),
        [one, _] => (*one).to_owned(),
        [one, two, ..] => format!("{one}{separator}{two}"),
    }
}

/// Channel groups and the nodes whose weights they tie, as a graph.
fn dot(analysis: &Analysis, grouping: &Grouping) -> String {
    let mut graph: DiGraph<String, String> = DiGraph::new();
    let mut nodes = BTreeMap::new();
    for group in &grouping.groups {
        let label = format!("{}\\n{} channels", analysis.group_name(&group.members), group.channels.len());
        let at = graph.add_node(label);
        for member in &group.members {
            let weight = &analysis.coupling.uses[member.weight];
            let name = analysis.graph.nodes[weight.node].name.clone();
            let node = *nodes.entry(weight.node).or_insert_with(|| graph.add_node(name));
            let edge = format!("axis {}", member.axis);
            match member.role {
                Role::Producer => graph.add_edge(node, at, edge),
                _ => graph.add_edge(at, node, edge),
            };
        }
    }
    let attributes = |_: &DiGraph<String, String>, edge: petgraph::graph::EdgeReference<'_, String>| {
        format!("label=\"{}\"", edge.weight())
    };
    let label = |_: &DiGraph<String, String>, (_, text): (petgraph::graph::NodeIndex, &String)| {
        let shape = if text.contains(" channels") { "ellipse" } else { "box" };
        format!("label=\"{}\", shape={shape}", text.replace('"', "'"))
    };
    let config = [Config::NodeNoLabel, Config::EdgeNoLabel];
    format!("{:?}", Dot::with_attr_getters(&graph, &config, &attributes, &label))
}
