//! Fused nodes that the pruned file contains as standard operators.

use std::collections::HashMap;

use super::elements::{self, difference};
use super::nodes::{Form, same_form};
use super::{Comparison, Stop};
use crate::graph::Node;
use crate::onnx::builder::Builder;
use crate::onnx::{NodeProto, TensorProto};
use crate::operator::LowerCx;
use crate::operator::reference::KeptAxes;

/// An original node in standard operators, and the nodes of the pruned file that are matched with it.
struct Match {
    /// The nodes of the standard form, by their outputs.
    producers: HashMap<String, NodeProto>,
    constants: HashMap<String, TensorProto>,
    /// Names in the pruned file, by their names in the standard form.
    found: HashMap<String, String>,
}

impl<'a> Comparison<'a> {
    /// Compares a node with a fused `original` in standard operators: the same operators with the same attributes and
    /// constants must read what the original reads. `None`: the original has no such form. Integers may name other sizes,
    /// as everywhere.
    pub(super) fn unfused(&mut self, original: &Node, node: &'a Node) -> Result<Option<()>, Stop> {
        let analysis = self.analysis;
        let Some(operator) = analysis.operators.get(original.id) else { return Ok(None) };
        let mut builder = Builder::new("__standard", analysis.graph.opset, analysis.graph.names());
        let lowered = operator.lower(&mut LowerCx::new(original, &analysis.facts, &mut builder));
        if lowered != Ok(true) {
            return Ok(None);
        }
        let give = |node: NodeProto| {
            let outputs = node.output.clone();
            outputs.into_iter().map(move |output| (output, node.clone())).collect::<Vec<_>>()
        };
        let mut matched = Match {
            producers: builder.nodes.into_iter().flat_map(give).collect(),
            constants: builder.initializers.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect(),
            found: HashMap::new(),
        };
        for output in node.proto.output.iter().filter(|output| !output.is_empty()) {
            self.same_value(original, output, output, &mut matched)?;
        }
        Ok(Some(()))
    }

    /// Compares `found` of the pruned file with `expected` in the standard form of the original.
    fn same_value(&mut self, original: &Node, expected: &str, found: &str, matched: &mut Match) -> Result<(), Stop> {
        let fail = |text: String| {
            Stop::Changed(format!("node {:?} ({}) in standard operators: {text}", original.name, original.op()))
        };
        match matched.found.get(expected) {
            Some(known) if known == found => return Ok(()),
            Some(known) => return Err(fail(format!("expected {known:?}, found {found:?}"))),
            None => _ = matched.found.insert(expected.to_owned(), found.to_owned()),
        }
        if let Some(constant) = matched.constants.get(expected) {
            let Some(tensor) = self.constants.get(found).copied() else {
                return Err(fail(format!("expected a constant, found {found:?}")));
            };
            let is_size = !crate::graph::fact::is_float(constant.element_type());
            if is_size && tensor.data_type == constant.data_type && tensor.dims == constant.dims {
                return Ok(());
            }
            let (model, pruned) = (&self.analysis.model, self.pruned);
            return match difference((model, constant), &KeptAxes::new(), (pruned, tensor), false)? {
                elements::Comparison::Differs(text) => Err(fail(format!("{found:?}: {text}"))),
                _ => Ok(()),
            };
        }
        let Some(node) = matched.producers.get(expected).cloned() else {
            // One of the original's inputs.
            let slot = original.proto.input.iter().position(|input| input == expected);
            let slot = slot.ok_or_else(|| fail(format!("{found:?} is not one of its inputs")))?;
            let mut proto = original.proto.clone();
            found.clone_into(&mut proto.input[slot]);
            self.input(original, &Node { proto, ..original.clone() }, slot)?;
            return Ok(());
        };
        let producer = self.graph.value(found).and_then(|value| self.graph.values[value].producer);
        let (producer, slot) = producer.ok_or_else(|| fail(format!("no node computes {found:?}")))?;
        let given = &self.graph.nodes[producer].proto;
        if given.input.len() != node.input.len() || node.output.get(slot).map(String::as_str) != Some(expected) {
            return Err(fail(format!("node {:?} is not one of its standard operators", given.name)));
        }
        let unnamed = |node: &NodeProto| NodeProto { output: Vec::new(), ..node.clone() };
        let (mine, theirs) = (unnamed(&node), unnamed(given));
        let original_form = Form { model: &self.analysis.model, node: &mine };
        same_form(&original_form, &Form { model: self.pruned, node: &theirs })?.map_err(fail)?;
        for (expected, found) in node.input.iter().zip(&given.input) {
            match (expected.is_empty(), found.is_empty()) {
                (true, true) => {}
                (false, false) => self.same_value(original, expected, found, matched)?,
                _ => return Err(fail(format!("node {:?} has other inputs", given.name))),
            }
        }
        Ok(())
    }
}
