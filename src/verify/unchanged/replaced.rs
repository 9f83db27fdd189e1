//! Nodes that the cut has written with another operator.

use super::{Comparison, Stop};
use crate::graph::{Node, Reader};
use crate::operator::reference::KeptAxes;

impl<'a> Comparison<'a> {
    /// Whether the cut has replaced the original's operator by one of its allowed replacements. The new node must read what
    /// the original reads, or outputs of new nodes. Its output is left to the runs.
    pub(super) fn replaced(&mut self, original: &Node, node: &'a Node) -> Result<bool, Stop> {
        let replacements = self.analysis.operators.get(original.id).map_or(&[][..], |op| op.replacements());
        if !node.proto.domain.is_empty() || !replacements.contains(&node.proto.op_type.as_str()) {
            return Ok(false);
        }
        for found in node.proto.input.iter().filter(|name| !name.is_empty()) {
            if self.is_size(found)
                || !self.constants.contains_key(found.as_str()) && original.proto.input.contains(found)
            {
                continue;
            }
            if let Some(text) = self.reads_other(original, found)? {
                return Err(Stop::Changed(format!("node {:?} ({}): {text}", original.name, original.op())));
            }
        }
        Ok(true)
    }

    /// Returns why `found` is not one of the constants that the original reads, or its kept part. `None`: it is one.
    fn reads_other(&mut self, original: &Node, found: &str) -> Result<Option<String>, Stop> {
        let mut differs = format!("{found:?} is not one of its inputs");
        if !self.constants.contains_key(found) {
            return Ok(Some(differs));
        }
        for (slot, value) in original.inputs.iter().enumerate() {
            let Some(value) = value.filter(|value| self.analysis.is_constant(*value)) else { continue };
            let whole = KeptAxes::new();
            let axes = self.kept.get(&Reader { node: original.id, slot }).unwrap_or(&whole);
            match self.constant(found, value, axes, Some((original.proto.first_output().to_owned(), slot))) {
                Ok(()) => return Ok(None),
                Err(Stop::Changed(text)) => differs = text,
                Err(failed) => return Err(failed),
            }
        }
        Ok(Some(differs))
    }
}
