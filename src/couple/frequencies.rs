//! Frequency tables: constants that were not trained.

use std::collections::BTreeSet;

use crate::graph::{Graph, ValueId};
use crate::operator::{Operator, Operators};

use crate::operator::couple::Coupling;

/// Returns the constants from which, together with the network's inputs, the angles of sines and cosines are computed:
/// the frequencies of an embedding of timesteps or positions. Channels pass through them as through a weight, but they
/// do not show how important a channel is: the derivative of a sine with respect to its frequency is as large as the
/// timestep. If a contraction with a weight precedes the angle, the network may have learned all of these constants, so
/// none is returned.
pub fn frequencies(graph: &Graph, operators: &Operators, coupling: &Coupling) -> BTreeSet<ValueId> {
    let spaces = coupling.spaces.all();
    let contracts = |node: usize| {
        let uses = coupling.uses.iter().filter(|weight| weight.node == node);
        uses.flat_map(|weight| weight.axes.iter().flatten()).any(|space| {
            let space = &spaces[*space];
            space.produced || space.consumed
        })
    };
    let mut tables = BTreeSet::new();
    for node in &graph.nodes {
        let takes_angle = operators.get(node.id).is_some_and(Operator::takes_angle);
        let Some(angle) = node.input(0).filter(|_| takes_angle) else { continue };
        let mut found = BTreeSet::new();
        let mut open = vec![angle];
        let is_free = loop {
            let Some(value) = open.pop() else { break true };
            if !found.insert(value) {
                continue;
            }
            let Some((producer, _)) = graph.values[value].producer else { continue };
            if contracts(producer) {
                break false;
            }
            open.extend(graph.nodes[producer].inputs.iter().flatten());
        };
        if is_free {
            tables.extend(found);
        }
    }
    tables
}
