//! The command `inspect`: shows the operators, costs and channel groups of a network.

use std::collections::BTreeMap;

use onnx_diffprune::inspection::{GroupInfo, Inspection, NodeInfo};
use onnx_diffprune::reports::printable;
use onnx_diffprune::{Error, Model};
use petgraph::dot::{Config, Dot};
use petgraph::graph::DiGraph;
use serde_json::json;

use super::args::InspectArgs;
use super::config::parse_sizes;
use super::diffusion_args::DiffusionArgs;
use super::printer::{Printer, bytes_text, human, percent, table, wrapped};
use super::surroundings::{Surroundings, network_of};

pub(super) fn run(args: &InspectArgs, printer: &Printer) -> Result<bool, Error> {
    let progress = printer.progress(3);
    progress.step("reading");
    let model = Model::open(network_of(&args.input)?)?;
    let surroundings = Surroundings::of(&DiffusionArgs::default(), model.path(), false)?;
    progress.pause(|| printer.notes(&model));
    progress.step("coupling channels");
    let analysis = model.analyse()?;
    let network = surroundings.diffusion.network_options(Vec::new())?;
    let given = analysis.usual_sizes(&network, &parse_sizes(&args.size)?, None)?;
    progress.step("grouping");
    let inspection = analysis.inspect(args.attention, args.norm_groups, &given)?;
    drop(progress);
    if args.dot {
        printer.raw(&inspection.groupings.iter().map(|groups| dot(&inspection, groups)).collect::<String>());
        return Ok(true);
    }
    let (operators, cost, sizes) = (inspection.operators(), &inspection.cost, &inspection.sizes);
    let (inputs, outputs, barriers) = (&inspection.inputs, &inspection.outputs, &inspection.barriers);
    let mut blocks: BTreeMap<String, f64> = BTreeMap::new();
    for node in inspection.nodes.iter().filter(|node| node.macs > 0.0) {
        *blocks.entry(block_of(&node.name)).or_default() += node.macs;
    }
    let groups: Vec<_> = inspection.groupings.iter().flatten().map(|group| GroupRow::new(&inspection, group)).collect();
    let texts = if args.members { analysis.coupling_texts() } else { Vec::new() };
    let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
    let coupling: Vec<(&NodeInfo, &str)> =
        inspection.nodes.iter().zip(&texts).filter_map(|(node, text)| Some((node, (*text)?))).collect();
    let json = json!({
        "model": args.input,
        "pipeline": surroundings.json,
        "opset": inspection.opset,
        "inputs": inputs,
        "outputs": outputs,
        "operators": operators,
        "sizes": sizes,
        "cost": cost,
        "macs_by_block": blocks,
        "groups": groups.iter().map(|group| group.json(&inspection)).collect::<Vec<_>>(),
        "coupling": coupling.iter().map(|(node, text)| json!({"node": node.name, "op": node.op, "text": text})).collect::<Vec<_>>(),
        "barriers": barriers.iter().map(|barrier| json!({"node": barrier.node, "op": barrier.op, "cause": barrier.cause})).collect::<Vec<_>>(),
    });
    printer.result(&json, || {
        let mut out = format!("{} (opset {})\n", args.input.display(), inspection.opset);
        for (kind, values) in [("input ", inputs), ("output", outputs)] {
            for (name, fact) in values {
                out += &format!("  {kind} {}: {fact}\n", printable(name));
            }
        }
        out += &format!(
            "\n{} parameters, {} MACs with weights, {} MACs between activations, {} of activations",
            human(cost.parameters as f64),
            human(cost.macs),
            human(cost.attention_macs),
            bytes_text(cost.activation_bytes as f64)
        );
        let at: Vec<String> = sizes
            .iter()
            .filter(|(name, _)| !name.starts_with('?'))
            .map(|(n, s)| format!("{}={s}", printable(n)))
            .collect();
        if !at.is_empty() {
            out += &format!(" at {}", at.join(", "));
        }
        let names: Vec<String> = operators.iter().map(|(name, count)| format!("{} {count}", printable(name))).collect();
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
                    group.kept.clone().unwrap_or_else(|| "prunable".to_owned()),
                ]
            })
            .collect();
        let note = "the same number of channels is removed from each of their equal blocks";
        out += &format!("\n\nchannel groups ({}; {note}):\n", groups.len());
        out += &table(&["group", "channels", "equal blocks of", "weights", "state"], &rows);
        if args.members {
            for group in &groups {
                let members: Vec<_> = group.members.iter().map(|member| printable(member)).collect();
                let name = printable(&group.name);
                out += &format!("\n\n{name} ({} channels)\n  {}", group.channels, members.join("\n  "));
                let nodes = group.nodes.iter().map(|node| (&inspection.nodes[*node], texts[*node]));
                out += &nodes_by_text(nodes.filter_map(|(node, text)| Some((node, text?))));
            }
        }
        if !barriers.is_empty() {
            out += &format!("\n\nbarriers, nodes that keep all channels they touch ({}):\n", barriers.len());
            for barrier in barriers {
                let (node, op, cause) = (printable(&barrier.node), printable(&barrier.op), printable(&barrier.cause));
                out += &format!("  {node} ({op}): {cause}\n");
            }
        }
        out
    });
    Ok(true)
}

/// A channel group, for printing.
struct GroupRow {
    name: String,
    channels: usize,
    /// Block size: the same number of channels is removed from every block of this many. `None`: no norm requires equal
    /// blocks.
    unit: Option<usize>,
    members: Vec<String>,
    kept: Option<String>,
    /// The nodes that the channels pass through.
    nodes: Vec<usize>,
}

impl GroupRow {
    fn new(inspection: &Inspection, group: &GroupInfo) -> Self {
        let members = group.members.iter().map(|member| {
            let node = &inspection.nodes[member.node].name;
            format!("{} {} axis {} in {node}", member.role, member.weight, member.axis)
        });
        Self {
            name: group.name.clone(),
            channels: group.channels,
            unit: group.equal_blocks,
            members: members.collect(),
            kept: group.kept.as_ref().map(|(reason, node)| format!("kept: {reason} (node {node:?})")),
            nodes: group.nodes.clone(),
        }
    }

    fn json(&self, inspection: &Inspection) -> serde_json::Value {
        json!({
            "name": self.name,
            "channels": self.channels,
            "equal_blocks_of": self.unit,
            "members": self.members,
            "reason": self.kept,
            "nodes": self.nodes.iter().map(|node| &inspection.nodes[*node].name).collect::<Vec<_>>(),
        })
    }
}

/// Number of nodes with the same coupling text to name.
const NAMES: usize = 2;

/// Lists the coupling of nodes. Nodes with the same operator and text share one line, at the position of the first.
fn nodes_by_text<'a>(nodes: impl Iterator<Item = (&'a NodeInfo, &'a str)>) -> String {
    let mut rows: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for (node, text) in nodes {
        match rows.iter_mut().find(|(of, with, _)| *of == node.op && *with == text) {
            Some((_, _, names)) => names.push(&node.name),
            None => rows.push((&node.op, text, vec![&node.name])),
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let line = |(op, text, names): (&str, &str, Vec<&str>)| {
        let shown: Vec<_> = names.iter().take(NAMES).map(|name| printable(name)).collect();
        let (op, text) = (printable(op), printable(text));
        let more = match names.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("\n    {op} {text} in {}{more}", shown.join(", "))
    };
    let lines: String = rows.into_iter().map(line).collect();
    format!("\n  through{lines}")
}

/// Returns the first two levels of a node's name, which exporters write as a module path.
fn block_of(name: &str) -> String {
    let separator = if name.starts_with('/') { '/' } else { '.' };
    let parts: Vec<&str> = name.split(separator).filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] | [_] => "(top level)".to_owned(),
        [one, _] => (*one).to_owned(),
        [one, two, ..] => format!("{one}{separator}{two}"),
    }
}

/// Returns the channel groups and the nodes whose weights belong to them as a graph in the DOT language.
fn dot(inspection: &Inspection, groups: &[GroupInfo]) -> String {
    let mut graph: DiGraph<String, String> = DiGraph::new();
    let mut nodes = BTreeMap::new();
    for group in groups {
        let at = graph.add_node(format!("{}\\n{} channels", group.name, group.channels));
        for member in &group.members {
            let name = || inspection.nodes[member.node].name.clone();
            let node = *nodes.entry(member.node).or_insert_with(|| graph.add_node(name()));
            let edge = format!("axis {}", member.axis);
            match member.role.as_str() {
                "producer" => graph.add_edge(node, at, edge),
                _ => graph.add_edge(at, node, edge),
            };
        }
    }
    let attributes = |_: &DiGraph<String, String>, edge: petgraph::graph::EdgeReference<'_, String>| {
        format!("label=\"{}\"", edge.weight())
    };
    let label = |_: &DiGraph<String, String>, (_, text): (petgraph::graph::NodeIndex, &String)| {
        let shape = if text.contains(" channels") { "ellipse" } else { "box" };
        // Names may contain line breaks and terminal control characters.
        format!("label=\"{}\", shape={shape}", printable(&text.replace('"', "'")))
    };
    let config = [Config::NodeNoLabel, Config::EdgeNoLabel];
    format!("{:?}", Dot::with_attr_getters(&graph, &config, &attributes, &label))
}
