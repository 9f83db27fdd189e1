//! Adds changed weights to the edits of a cut.

use std::sync::Arc;

use super::{AddedBias, ChangedWeight, ChangedWeights, CutDigest};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::{Node, ValueId};
use crate::onnx::NodeProto;
use crate::onnx::names::Names;
use crate::rewrite::Rewritten;
use crate::write::{Edits, Streamed, WeightSource};

/// Changes to a cut's weights that are being collected.
#[derive(Debug)]
pub struct Changes<'a> {
    analysis: &'a Analysis,
    rewritten: &'a Rewritten,
    names: Names,
    edits: Edits,
    weights: Vec<ChangedWeight>,
    biases: Vec<AddedBias>,
}

impl<'a> Changes<'a> {
    /// Starts with the unchanged cut.
    pub fn new(analysis: &'a Analysis, rewritten: &'a Rewritten) -> Self {
        let mut names = Names::of_graph(analysis.model.graph());
        let edits = rewritten.edits.clone();
        edits.initializers.iter().for_each(|tensor| _ = names.claim(tensor.name(&analysis.model)));
        Self { analysis, rewritten, names, edits, weights: Vec::new(), biases: Vec::new() }
    }

    fn fail(&self, text: String) -> Error {
        Error::usage(text).in_file(self.analysis.model.path())
    }

    /// Replaces the elements of a weight of the cut, converted to its type. `name` is its name in the written file:
    /// that of an initializer (whole, sliced or computed), or the output of a Constant node, which becomes an
    /// initializer.
    ///
    /// # Errors
    /// Fails if the cut has no such weight, if the shapes differ, if a subgraph takes the weight as input, if it is an
    /// output, or if it was changed before.
    pub fn weight(&mut self, name: &str, source: Arc<dyn WeightSource>) -> Result<(), Error> {
        let graph = &self.analysis.graph;
        if self.weights.iter().any(|weight| weight.name == name) {
            return Err(self.fail(format!("weight {name:?} is changed twice")));
        }
        let (tensor, readers) = self.readers(name).map_err(|text| self.fail(text))?;
        let dims = source.dims().to_vec();
        self.edits.stream(&self.analysis.model, name, source)?;
        let tensor = graph.values[tensor].name.clone();
        self.weights.push(ChangedWeight { name: name.to_owned(), tensor, dims, readers });
        Ok(())
    }

    /// Returns why a weight can't change; `None` if it can. `name` is as for [`Changes::weight`].
    pub fn refusal(&self, name: &str) -> Option<String> {
        self.readers(name).err()
    }

    /// Returns the tensor of the original for a weight of the written file, and its readers: first output and input
    /// slot.
    fn readers(&self, name: &str) -> Result<(ValueId, Vec<(String, usize)>), String> {
        let graph = &self.analysis.graph;
        let slices = &self.rewritten.slices;
        let mut readers = Vec::new();
        let mut tensor = None;
        for node in graph.nodes.iter().filter(|node| !slices.replaced().is_removed(node.id)) {
            for (slot, value) in node.inputs.iter().enumerate() {
                let Some(value) = value else { continue };
                let original = &graph.values[*value].name;
                let read = slices.of(node.id, slot).map_or(original, |(name, _)| name);
                if read == name {
                    readers.push((node.proto.first_output().to_owned(), slot));
                    tensor = Some(*value);
                }
            }
        }
        let Some(tensor) = tensor else {
            return Err(format!("expected a weight {name:?} that nodes of the cut take as input, found none"));
        };
        if let Some(value) = graph.value(name).map(|value| &graph.values[value])
            && (value.is_output || !value.captured_by.is_empty())
        {
            return Err(format!(
                "weight {name:?} can't change: it is an output of the network or an input of a subgraph"
            ));
        }
        Ok((tensor, readers))
    }

    /// Returns whether [`Changes::bias`] can add a bias to a node of the cut. The original must have the same node.
    pub fn takes_bias(&self, node: &NodeProto, slot: usize, axis: usize) -> bool {
        let Analysis { graph, .. } = self.analysis;
        let value = graph.value(node.first_output());
        let Some((value, id)) = value.and_then(|value| Some((value, graph.values[value].producer?.0))) else {
            return false;
        };
        let at = &graph.nodes[id];
        let size =
            self.rewritten.facts.values[value].as_ref().and_then(|fact| fact.shape.as_ref()?.get(axis)?.as_const());
        let is_same = at.proto.op_type == node.op_type && at.proto.domain == node.domain;
        is_same && at.proto.first_output() == node.first_output() && at.input(slot).is_none() && size.is_some()
    }

    /// Adds a bias to a node that has none: a vector along an axis of its output. The node takes it at the empty input
    /// `slot`, which the operator's specification adds to the output. `node` is the first output of the node. Returns
    /// the name of the new initializer.
    ///
    /// # Errors
    /// Fails if there is no such node, the slot is taken, or the length of the vector differs from the axis after the
    /// cut.
    pub fn bias(
        &mut self,
        node: &str,
        slot: usize,
        axis: usize,
        source: Arc<dyn WeightSource>,
    ) -> Result<String, Error> {
        let Analysis { model, graph, coupling, .. } = self.analysis;
        let value = graph.value(node).and_then(|value| Some((value, graph.values[value].producer?.0)));
        let Some((value, id)) = value else {
            return Err(self.fail(format!("expected a node with output {node:?}, found none")));
        };
        let at: &Node = &graph.nodes[id];
        let fact = self.rewritten.facts.values[value].as_ref();
        let size = fact.and_then(|fact| fact.shape.as_ref()?.get(axis)?.as_const());
        let Some((fact, size)) = fact.zip(size.filter(|size| *size >= 0)) else {
            let text = format!("can't add a bias along axis {axis} of {node:?}: the size of the axis is not known");
            return Err(self.fail(text).at_node(&at.name, at.op()));
        };
        let layout = coupling.layouts[value].as_ref();
        let keep = layout.and_then(|layout| self.rewritten.kept.axis_indices(layout.axes.get(axis)?));
        let name = self.names.fresh(&format!("{node}/bias"));
        let streamed = Streamed { index: None, name: name.clone(), data_type: fact.dtype, dims: vec![size], source };
        self.edits.add_initializer(model, streamed)?;
        self.edits.add_input(model, node, slot, &name)?;
        let size = usize::try_from(size).unwrap_or(0);
        self.biases.push(AddedBias { name: name.clone(), node: node.to_owned(), slot, axis, size, keep });
        Ok(name)
    }

    /// Returns the edits that write the file, and the description for its plan. `cut` is the verified cut before any
    /// change.
    ///
    /// # Errors
    /// Fails if the cut can't be read, or was written by other edits.
    pub fn finish(self, cut: &Model) -> Result<(Edits, ChangedWeights), Error> {
        let Self { weights, biases, edits, .. } = self;
        for weight in &weights {
            let stored = cut.graph().initializer.iter().find(|tensor| tensor.name == weight.name);
            let is_node = cut.graph().node.iter().any(|node| node.first_output() == weight.name);
            if stored.map_or(!is_node, |tensor| tensor.dims != weight.dims) {
                let text =
                    format!("expected the verified cut with a weight {:?} of shape {:?}", weight.name, weight.dims);
                return Err(Error::invalid(cut.path(), text));
            }
        }
        let cut = CutDigest::of(cut, &weights, &biases)?;
        Ok((edits, ChangedWeights { weights, biases, cut }))
    }
}
