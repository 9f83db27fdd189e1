//! Describes a cut of a network that was cut before as one cut of the first original, so that the original remains
//! available for verification, fits and training.

use std::path::Path;
use std::sync::Arc;

use super::super::cut::Cut;
use super::super::model::Analysis;
use super::super::runtime::Runtime;
use super::super::staged::Staged;
use crate::changed::{ChangedWeights, Changes};
use crate::error::Error;
use crate::graph::model::Model;
use crate::load::load;
use crate::onnx::TensorProto;
use crate::plan::Plan;
use crate::write::{MemoryWeight, WeightSource};

impl Cut {
    /// Does the same as [`Cut::stage`] for a cut of a file that is itself a cut of `original` by the plan `first`. The
    /// staged file, its plan and its verification are those of one cut of `original`; [`Analysis::repeat`] makes it
    /// from that plan. Changed weights of the file keep their new values, as far as they are kept. `path` names the
    /// plan in messages.
    ///
    /// # Errors
    /// Same as [`Cut::stage`] and [`Plan::then`]; also fails if a weight of the original has different values for
    /// different nodes now, but the new cut would store it only once.
    pub fn stage_after(
        &self,
        original: &Analysis,
        (first, path): (&Plan, &Path),
        runtime: Option<&Runtime>,
        output: &Path,
    ) -> Result<Staged, Error> {
        let plan = first.then(self.plan(), &original.0)?;
        let cut = original.repeat(&plan, path, runtime)?;
        let staged = cut.stage(output)?;
        let Some(changed) = &first.changed else { return Ok(staged) };
        // The changed weights, after this cut.
        let own = self.stage(output)?;
        let file = load(own.path())?;
        let changes = Carried { cut: &cut, file: &file }.changes(changed)?;
        let (mut edits, changed) = changes.finish(&load(staged.path())?)?;
        let plan = Plan { changed: Some(changed), ..Plan::clone(cut.plan()) };
        let model = &original.0.model;
        plan.record_in(model, &mut edits);
        let file = crate::write::stage(model, &edits, output)?;
        Ok(staged.replaced(plan, file))
    }
}

/// Copies weights from a file to the same cut of the original, where they may have other names.
struct Carried<'a> {
    cut: &'a Cut,
    file: &'a Model,
}

impl<'a> Carried<'a> {
    fn changes(&self, before: &ChangedWeights) -> Result<Changes<'a>, Error> {
        let (analysis, rewritten) = (&self.cut.analysis().0, self.cut.rewritten());
        let mut changes = Changes::new(analysis, rewritten);
        for bias in &before.biases {
            changes.bias(&bias.node, bias.slot, bias.axis, self.source(&bias.node, bias.slot)?)?;
        }
        let mut done: Vec<String> = Vec::new();
        for (output, slot) in before.weights.iter().flat_map(|weight| &weight.readers) {
            let Some(name) = self.name(output, *slot).filter(|name| !done.contains(name)) else { continue };
            let source = self.source(output, *slot)?;
            self.check_shared(&name, (output, *slot))?;
            changes.weight(&name, source)?;
            done.push(name);
        }
        Ok(changes)
    }

    /// Returns the name that a reader's constant has in the cut of the original.
    fn name(&self, output: &str, slot: usize) -> Option<String> {
        let graph = &self.cut.analysis().0.graph;
        let (node, _) = graph.values[graph.value(output)?].producer?;
        let slices = &self.cut.rewritten().slices;
        if slices.replaced().is_removed(node) {
            return None;
        }
        let value = graph.nodes[node].input(slot)?;
        Some(slices.of(node, slot).map_or(&graph.values[value].name, |(name, _)| name).clone())
    }

    /// Returns the tensor that a reader takes as input in the file.
    fn tensor(&self, output: &str, slot: usize) -> Result<&'a TensorProto, Error> {
        let graph = self.file.graph();
        let node = graph.node.iter().find(|node| node.first_output() == output);
        let tensor = node.and_then(|node| {
            let name = node.input.get(slot)?;
            graph.initializer.iter().find(|tensor| tensor.name == *name)
        });
        tensor.ok_or_else(|| {
            let text = format!("expected a changed weight at input {slot} of node {output:?}, found none");
            Error::unsupported(text).in_file(self.file.path())
        })
    }

    fn source(&self, output: &str, slot: usize) -> Result<Arc<dyn WeightSource>, Error> {
        let tensor = self.tensor(output, slot)?;
        let bytes = self.file.tensor_bytes(tensor)?.to_vec();
        Ok(Arc::new(MemoryWeight::new(tensor.element_type(), &tensor.dims, bytes.into())))
    }

    /// Checks that all readers of a weight of the cut take the same values in the file as `first` does.
    fn check_shared(&self, name: &str, first: (&str, usize)) -> Result<(), Error> {
        let graph = &self.cut.analysis().0.graph;
        let expected = self.tensor(first.0, first.1)?;
        for node in &graph.nodes {
            let output = node.proto.first_output();
            for slot in (0..node.inputs.len()).filter(|slot| (output, *slot) != first) {
                if self.name(output, slot).as_deref() != Some(name) {
                    continue;
                }
                let other = self.tensor(output, slot)?;
                let is_same = other.name == expected.name
                    || self.file.tensor_bytes(other)? == self.file.tensor_bytes(expected)?;
                if !is_same {
                    let text = format!(
                        "nodes {:?} and {output:?} would share weight {name:?}, but it has different values for them since it was changed",
                        first.0
                    );
                    return Err(Error::unsupported(text)
                        .in_file(self.file.path())
                        .hint("use another target, or fewer rounds"));
                }
            }
        }
        Ok(())
    }
}
