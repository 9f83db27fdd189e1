//! The two networks of a proof: the original, lowered, and the pruned one as it runs.

use std::collections::HashMap;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::{NodeId, Reader, ValueId};
use crate::kernels::proof::DOUBLE;
use crate::lower::{Extent, Lowered};
use crate::onnx::{DataType, NodeProto, TensorProto};
use crate::operator::reference::KeptAxes;
use crate::verify::unchanged::Unchanged;
use crate::verify::widen::is_half;

/// The networks that are compared.
#[derive(Clone, Copy)]
pub(in crate::verify) struct Networks<'a> {
    pub(in crate::verify) analysis: &'a Analysis,
    pub(in crate::verify) kept: &'a HashMap<Reader, KeptAxes>,
    pub(in crate::verify) lowered: &'a Lowered,
    /// The pruned network as it runs on the CPU. Each node comes with the first output of its node in the file.
    pub(in crate::verify) pruned: &'a Model,
    pub(in crate::verify) nodes: &'a [(NodeProto, String)],
    pub(in crate::verify) initializers: &'a [TensorProto],
    pub(in crate::verify) unchanged: &'a Unchanged,
    /// New names of first outputs in the original, by their names in the file.
    pub(in crate::verify) renamed: &'a HashMap<String, String>,
}

impl<'a> Networks<'a> {
    /// Returns the element type in which a value is compared. `None`: it is not floating point.
    pub(super) fn float_type(&self, value: ValueId) -> Option<DataType> {
        Self::compared_as(self.analysis.facts.values[value].as_ref()?.dtype)
    }

    /// Returns the element type in which values of a type are compared. `None`: they are not floating point.
    pub(super) fn compared_as(dtype: DataType) -> Option<DataType> {
        match dtype {
            DataType::Float | DataType::Double => Some(dtype),
            _ if is_half(dtype as i32) => Some(DataType::Float),
            _ => None,
        }
    }

    /// Returns the name of the proof's operator for an element type.
    pub(super) fn operator(kind: &str, dtype: DataType) -> String {
        if dtype == DataType::Double { format!("{kind}{DOUBLE}") } else { kind.to_owned() }
    }

    /// Returns the constants of the pruned network by name.
    pub(super) fn constants(&self) -> HashMap<&'a str, &'a TensorProto> {
        let initializers = self.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor));
        let nodes = self.nodes.iter().filter(|(node, _)| node.op_type == "Constant");
        let nodes = nodes.filter_map(|(node, _)| Some((node.first_output(), node.tensor("value")?)));
        initializers.chain(nodes).collect()
    }

    /// Returns the node of the original that corresponds to a node of the file, given by its first output.
    pub(super) fn original(&self, output: &str) -> Option<NodeId> {
        let graph = &self.analysis.graph;
        let output = self.renamed.get(output).map_or(output, String::as_str);
        Some(graph.values[graph.value(output)?].producer?.0)
    }

    /// Whether the plan cuts a constant that a node reads.
    pub(super) fn is_cut(&self, node: NodeId) -> bool {
        let slots = 0..self.analysis.graph.nodes[node].inputs.len();
        slots.into_iter().any(|slot| self.kept.get(&Reader { node, slot }).is_some_and(|axes| !axes.is_empty()))
    }
}

/// Returns the nodes of a network as it runs on the CPU, each with the first output of the node of the file that it comes
/// from, and the initializers.
pub(in crate::verify) fn as_run(
    pruned: &Model,
    lowered: Option<&(Lowered, Vec<String>)>,
) -> (Vec<(NodeProto, String)>, Vec<TensorProto>) {
    match lowered {
        None => {
            // In a topological order.
            let order = crate::onnx::order::topological_order(pruned.graph()).unwrap_or_default();
            let node = |index: usize| &pruned.graph().node[index];
            let nodes = order.into_iter().map(node).map(|node| (node.clone(), node.first_output().to_owned()));
            (nodes.collect(), pruned.graph().initializer.clone())
        }
        Some((lowered, owners)) => {
            let nodes = lowered.graph.nodes.iter().map(|node| (node.proto.clone(), owners[node.id].clone()));
            (nodes.collect(), lowered.model.graph().initializer.clone())
        }
    }
}

/// Returns the original with all fused nodes lowered to standard operators.
///
/// # Errors
/// A lowered node contradicts its operator's specification.
pub(in crate::verify) fn lowered_original(analysis: &Analysis) -> Result<Lowered, Error> {
    Lowered::new(&analysis.model, &analysis.graph, &analysis.operators, &analysis.facts, Extent::All)
}
