//! The run of a refit: both networks in lockstep, one fit after another.

use std::collections::HashSet;

use ndarray::ArrayD;

use super::arrays::{floats, kept_part};
use super::checkpoint::{Outcomes, Saving};
use super::fit::{Fit, Found};
use super::layers::{Bias, Event, Layer};
use super::network::Network;
use super::pairing::Pairing;
use super::segment::{Changed, Execution, Segment};
use super::sensitivity::Sensitivity;
use super::shared;
use super::store::Store;
use super::stored::{self, Stored};
use super::{RefitData, RefitLayer, RefitOptions, Refitted};
use crate::array::Array;
use crate::collective::decision_of_first;
use crate::error::Error;
use crate::graph::ValueId;
use crate::onnx::TensorProto;

/// One of the two networks during a refit.
pub(super) struct Lockstep<'a> {
    network: &'a Network,
    execution: Execution<'a>,
    store: Store,
    done: HashSet<usize>,
}

impl<'a> Lockstep<'a> {
    pub(super) fn new(network: &'a Network, execution: Execution<'a>, store: Store) -> Self {
        Self { network, execution, store, done: HashSet::new() }
    }

    pub(super) fn segment(&self, wanted: &[ValueId], changed: &Changed) -> Result<Option<Segment>, Error> {
        self.network.segment(wanted, &self.store, &self.done, changed, self.execution)
    }

    /// Runs a segment on a chunk and stores its outputs.
    pub(super) fn advance(
        &mut self,
        segment: &mut Segment,
        chunk: usize,
        inputs: &[(String, Array)],
    ) -> Result<(), Error> {
        let mut taken = Vec::with_capacity(segment.takes.len());
        for name in &segment.takes {
            let array = match inputs.iter().find(|(input, _)| input == name) {
                Some((_, array)) => array.clone(),
                None => self.store.get(name, chunk)?,
            };
            taken.push((name.clone(), array));
        }
        for (name, array) in segment.session.run(&taken)? {
            self.store.put(&name, chunk, array)?;
        }
        Ok(())
    }

    /// Returns a value that is stored, or an input.
    pub(super) fn value(
        &mut self,
        value: ValueId,
        chunk: usize,
        inputs: &[(String, Array)],
    ) -> Result<ArrayD<f32>, Error> {
        let graph = self.network.graph();
        let name = graph.values[value].name.clone();
        let array = if let Some((_, array)) = inputs.iter().find(|(input, _)| *input == name) {
            array.clone()
        } else {
            self.store.get(&name, chunk)?
        };
        floats(array).ok_or_else(|| Error::unmet(format!("value {name:?} is not float32: nothing can be fitted to it")))
    }

    /// Marks nodes as done, and drops the values that no other node will read.
    pub(super) fn clear(&mut self, nodes: &[usize]) {
        self.done.extend(nodes);
        let graph = self.network.graph();
        for name in self.store.names() {
            let value = graph.value(&name).map(|value| &graph.values[value]);
            let is_read = value.is_some_and(|value| {
                let mut readers = value.consumers.iter().map(|(node, _)| node).chain(&value.captured_by);
                readers.any(|node| !self.done.contains(node))
            });
            if !is_read {
                self.store.drop(&name);
            }
        }
    }
}

/// A refit in progress.
pub(super) struct Run<'a> {
    pub(super) pairing: &'a Pairing<'a>,
    pub(super) stored: Stored<'a>,
    pub(super) data: &'a dyn RefitData,
    pub(super) sensitivity: Sensitivity,
    pub(super) options: &'a RefitOptions,
    pub(super) of_original: Lockstep<'a>,
    pub(super) of_pruned: Lockstep<'a>,
    pub(super) changed: Changed,
    pub(super) layers: Vec<RefitLayer>,
    pub(super) biases: Vec<(String, usize, usize, String)>,
    /// The results of fits that a checkpoint contains.
    pub(super) known: Outcomes,
    pub(super) saving: Option<Saving<'a>>,
}

impl Run<'_> {
    /// Fits the layers of one event.
    pub(super) fn fit(&mut self, at: usize, event: &Event) -> Result<(), Error> {
        let pruned = self.pairing.pruned;
        if let Some(pattern) = &self.options.exclude {
            let is_excluded = |name: &String| pattern.is_match(name);
            let of = |layer: &Layer| {
                is_excluded(&pruned.graph().nodes[layer.node].name)
                    || is_excluded(&pruned.graph().values[layer.weight].name)
            };
            if event.layers().any(of) {
                self.refuse(event, "it is excluded (--refit-exclude)");
                return Ok(());
            }
        }
        let mut targets = Vec::new();
        for of in &event.uses {
            let Some(layer) = of.layers.first() else { return Ok(()) };
            let Some(found) = self.pairing.kept(layer.target) else { return Ok(()) };
            targets.push((pruned.graph().values[layer.target].name.clone(), found));
        }
        let wanted: Vec<ValueId> = targets.iter().map(|(_, (original, _))| *original).collect();
        let mut of_pruned = self.of_pruned.segment(&event.needs(pruned), &self.changed)?;
        let mut of_original = self.of_original.segment(&wanted, &Changed::default())?;
        // Half of the memory is for the equations, the other half for the values between segments.
        let place = (at, self.data.chunks(), self.options.memory / 2);
        let known = self.known.remove(&at);
        let ranks = &*self.options.ranks;
        let mut fit = match decision_of_first(ranks, known.is_some())? {
            true => None,
            false => Some(Fit::new(self.stored, event, &self.changed, self.options, place)?),
        };
        for chunk in shared::own_chunks(ranks, self.data.chunks()) {
            let inputs = self.data.inputs(chunk)?;
            if let Some(segment) = &mut of_pruned {
                self.of_pruned.advance(segment, chunk, &inputs)?;
            }
            if let Some(segment) = &mut of_original {
                self.of_original.advance(segment, chunk, &inputs)?;
            }
            let Some(fit) = &mut fit else { continue };
            for (number, (name, (original, kept))) in targets.iter().enumerate() {
                let target = kept_part(&self.of_original.value(*original, chunk, &inputs)?, kept);
                let sensitivity = self.sensitivity.weight(name, self.data.time(chunk));
                let weight = self.data.weight(chunk) * sensitivity / self.sensitivity.mean(name);
                let of_pruned = &mut self.of_pruned;
                fit.add((number, chunk), target, weight, &mut |value| of_pruned.value(value, chunk, &inputs))?;
            }
        }
        self.of_pruned.clear(of_pruned.as_ref().map_or(&[], |segment| &segment.nodes));
        self.of_original.clear(of_original.as_ref().map_or(&[], |segment| &segment.nodes));
        let outcome = match (known, fit) {
            (known, None) => known,
            (_, Some(mut fit)) => {
                shared::equations(ranks, &mut fit)?;
                // One rank solves for all, so that rounding can't lead to different weights.
                let own = (ranks.rank() == 0).then(|| fit.solve(&mut self.changed));
                own.transpose()?
            }
        };
        let Some(outcome) = shared::outcome(ranks, outcome)? else { return Ok(()) };
        if let Some(saving) = &mut self.saving {
            saving.add(at, &outcome)?;
        }
        self.take(event, outcome);
        Ok(())
    }

    fn record(&mut self, event: &Event, errors: Option<(f64, f64)>, reason: Option<&str>) {
        let graph = self.pairing.pruned.graph();
        self.layers.extend(event.layers().map(|layer| RefitLayer {
            node: graph.nodes[layer.node].name.clone(),
            weight: graph.values[layer.weight].name.clone(),
            errors,
            reason: reason.map(str::to_owned),
        }));
    }

    fn refuse(&mut self, event: &Event, why: &str) {
        self.record(event, None, Some(why));
    }

    /// Applies the weights of a fit.
    fn take(&mut self, event: &Event, outcome: Result<Found, String>) {
        let graph = self.pairing.pruned.graph();
        let found = match outcome {
            Ok(found) => found,
            Err(why) => {
                self.refuse(event, &why);
                return;
            }
        };
        self.record(event, Some(found.errors), None);
        for tensor in found.tensors {
            self.changed.weights.insert(tensor.name.clone(), tensor);
        }
        for (number, layer, bias) in found.biases {
            let layer = &event.uses[number].layers[layer];
            if let Some(Bias::Slot { slot, value: None, .. }) = layer.bias {
                let axis = self.pairing.pruned.shape(layer.output).and_then(|shape| layer.rows.output_axis(&shape));
                let Some(axis) = axis else { continue };
                let output = graph.values[layer.output].name.clone();
                self.biases.push((output, slot, axis, bias.name.clone()));
                self.changed.biases.insert(layer.node, (slot, bias.name.clone()));
            }
            self.changed.weights.insert(bias.name.clone(), bias);
        }
    }

    /// Returns the result of the refit.
    pub(super) fn finish(self) -> Refitted {
        let Self { mut changed, biases, layers, .. } = self;
        let mut taken = Vec::new();
        for (node, slot, axis, name) in biases {
            if let Some(tensor) = changed.weights.remove(&name) {
                taken.push((node, slot, axis, stored::elements(&tensor).unwrap_or_default()));
            }
        }
        let mut weights: Vec<TensorProto> = changed.weights.into_values().collect();
        weights.sort_by(|a, b| a.name.cmp(&b.name));
        Refitted { layers, notes: Vec::new(), weights, biases: taken }
    }
}
