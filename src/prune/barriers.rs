//! What keeps channels from being removed, in words.

use std::collections::BTreeMap;

use crate::analysis::Analysis;
use crate::operator::couple::Barrier;

/// Domains of operators into which ONNX Runtime turns a network for the machine on which it runs.
const OF_A_MACHINE: [&str; 2] = ["com.microsoft.nchwc", "com.ms.internal.nhwc"];

/// One line for every operator whose nodes keep all channels they touch, in the order of the graph, and what to do
/// where the file was saved for one machine alone.
pub(super) fn warnings(analysis: &Analysis) -> Vec<String> {
    let mut lines: Vec<String> = machine_advice(analysis).into_iter().collect();
    let mut by_op: Vec<(String, Vec<&Barrier>)> = Vec::new();
    for barrier in &analysis.coupling.barriers {
        let op = analysis.graph.nodes[barrier.node].op();
        match by_op.iter_mut().find(|(other, _)| *other == op) {
            Some((_, barriers)) => barriers.push(barrier),
            None => by_op.push((op, vec![barrier])),
        }
    }
    lines.extend(by_op.iter().map(|(op, barriers)| line(analysis, op, barriers)));
    lines
}

fn line(analysis: &Analysis, op: &str, barriers: &[&Barrier]) -> String {
    let name = |barrier: &Barrier| format!("{:?}", analysis.graph.nodes[barrier.node].name);
    let first = barriers.first().map_or_else(String::new, |barrier| name(barrier));
    let causes = causes(barriers);
    let (cause, others) = (causes.first().map_or("", |(cause, _)| cause), causes.len().saturating_sub(1));
    if let [_] = barriers {
        return format!("node {first} ({op}) keeps all channels it touches: {cause}");
    }
    let others = match others {
        0 => String::new(),
        1 => "; another one has another cause".to_owned(),
        others => format!("; {others} other causes"),
    };
    let count = barriers.len();
    format!(
        "{count} nodes ({op}) keep all channels they touch, the first is {first}: {cause}{others} (inspect lists all)"
    )
}

/// The causes with how often each occurs, the most frequent first.
fn causes<'b>(barriers: &[&'b Barrier]) -> Vec<(&'b str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    barriers.iter().for_each(|barrier| *counts.entry(barrier.cause.as_str()).or_default() += 1);
    let mut causes: Vec<(&str, usize)> = counts.into_iter().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    causes
}

/// What to do where ONNX Runtime saved the network with operators that belong to the layout of one machine.
fn machine_advice(analysis: &Analysis) -> Option<String> {
    let is_bound = |domain: &str| OF_A_MACHINE.contains(&domain);
    let count = analysis.graph.nodes.iter().filter(|node| is_bound(&node.proto.domain)).count();
    (count > 0).then(|| {
        format!(
            "{count} nodes are of a layout that ONNX Runtime chooses for one machine (saved at ORT_ENABLE_ALL), and what \
             stands around them keeps its channels; save the file at ORT_ENABLE_EXTENDED instead, or prune the original \
             and optimise the result"
        )
    })
}

/// The operators whose nodes keep all channels they touch, for a message: the one with the most nodes first.
pub(super) fn example(analysis: &Analysis) -> Option<String> {
    let barriers = &analysis.coupling.barriers;
    // What is not known at all explains the shapes that are not known after it.
    let unknown = barriers.iter().find(|barrier| analysis.operators.get(barrier.node).is_none());
    let barrier = unknown.or(barriers.first())?;
    let node = &analysis.graph.nodes[barrier.node];
    Some(format!("node {:?} ({}) keeps all channels it touches: {}", node.name, node.op(), barrier.cause))
}
