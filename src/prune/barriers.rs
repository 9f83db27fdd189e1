//! Messages about nodes that keep channels from being removed.

use std::collections::BTreeMap;

use crate::analysis::Analysis;
use crate::operator::couple::Barrier;

/// Operator domains that ONNX Runtime uses when it optimises a network for the current machine.
const OF_A_MACHINE: [&str; 2] = ["com.microsoft.nchwc", "com.ms.internal.nhwc"];

/// Returns one line for every operator whose nodes keep all channels they touch, in the order of the graph; and before
/// them, advice for a file that was saved for one machine.
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
        1 => "; one of them has another cause".to_owned(),
        others => format!("; {others} other causes"),
    };
    let count = barriers.len();
    format!(
        "{count} nodes ({op}) keep all channels they touch, the first is {first}: {cause}{others} (inspect lists all)"
    )
}

/// Returns the causes and how often each occurs, the most frequent first.
fn causes<'b>(barriers: &[&'b Barrier]) -> Vec<(&'b str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    barriers.iter().for_each(|barrier| *counts.entry(barrier.cause.as_str()).or_default() += 1);
    let mut causes: Vec<(&str, usize)> = counts.into_iter().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    causes
}

/// Returns advice if ONNX Runtime saved the network with operators for the memory layout of one machine.
fn machine_advice(analysis: &Analysis) -> Option<String> {
    let is_bound = |domain: &str| OF_A_MACHINE.contains(&domain);
    let count = analysis.graph.nodes.iter().filter(|node| is_bound(&node.proto.domain)).count();
    (count > 0).then(|| {
        format!(
            "{count} nodes use a memory layout that ONNX Runtime chose for one machine (saved at ORT_ENABLE_ALL), so the \
             channels next to them are kept; save the file at ORT_ENABLE_EXTENDED instead, or prune the original and \
             optimise the result"
        )
    })
}

/// Describes one barrier for a message, if there is any: the first node without a known operator, else the first
/// barrier.
pub(super) fn example(analysis: &Analysis) -> Option<String> {
    let barriers = &analysis.coupling.barriers;
    // An unknown operator explains the unknown shapes after it.
    let unknown = barriers.iter().find(|barrier| analysis.operators.get(barrier.node).is_none());
    let barrier = unknown.or(barriers.first())?;
    let node = &analysis.graph.nodes[barrier.node];
    Some(format!("node {:?} ({}) keeps all channels it touches: {}", node.name, node.op(), barrier.cause))
}
