//! Refit: after a cut, the weights that are left are fitted by least squares, layer by layer, so that the pruned network
//! computes what the original does.
//!
//! The layers are visited in an order in which everything upstream has been fitted. X is the input of a layer in the pruned
//! network, Y what the original has at the value that the layer flows into, at the kept channels. Both networks run in
//! lockstep, in segments between the layers, and in chunks of samples; only values that cross a border are held. A layer
//! whose fit does not lower its own error keeps its weight.
//!
//! Cutting first and solving for the weights that are left afterwards is that of OBS-Diff (arXiv 2510.06751) and MosaicDiff
//! (arXiv 2510.11962), here by plain weighted least squares with a ridge.

mod arrays;

mod fit;

mod layers;

mod network;

mod rows;

mod segment;

mod sensitivity;

mod solve;

mod store;

mod unexplained;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ndarray::ArrayD;
use regex::Regex;

use crate::analysis::Analysis;
use crate::array::Array;
use crate::changed::{ChangedWeights, Changes};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::{Graph, ValueId};
use crate::ops;
use crate::rewrite::Rewritten;
use crate::runtime::{Device, Runtime};
use crate::write::MemoryWeight;
use arrays::{floats, kept_part};
use fit::Fit;
use layers::{Bias, Event};
use network::Network;
use segment::{Changed, Execution, Held, Segment};
use sensitivity::Sensitivity;
use store::Store;
pub use unexplained::{Going, unexplained};

/// What a refit is made on.
pub trait RefitData {
    /// The number of chunks, each of which is one run of the networks.
    fn chunks(&self) -> usize;

    /// The inputs of both networks in a chunk, floating point numbers as float32.
    ///
    /// # Errors
    /// What can't be made.
    fn inputs(&self, chunk: usize) -> Result<Vec<(String, Array)>, Error>;

    /// The timestep of a chunk.
    fn time(&self, chunk: usize) -> f64;

    /// How much the loss counts at a chunk.
    fn weight(&self, chunk: usize) -> f64;
}

/// On what it is found out how much errors at a value count.
#[derive(Clone, Copy)]
pub struct Probe<'a> {
    /// Samples, few per chunk.
    pub data: &'a dyn RefitData,
    /// The sizes of the network for one chunk.
    pub sizes: &'a Sizes,
    /// The output that predicts.
    pub prediction: &'a str,
    /// Its channels that count, the first of axis 1; all where `None`.
    pub channels: Option<i64>,
}

/// How much rows count by the timestep of their samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Weighting {
    /// All alike.
    Uniform,
    /// By how much an error at the layer moves the output of the network at that timestep.
    #[default]
    GaussNewton,
}

/// How a refit is made.
#[derive(Clone, Debug)]
pub struct RefitOptions {
    /// What is added to the diagonal of a layer's Gram matrix, over its mean.
    pub ridge: f64,
    /// Rows of a layer's equations, at most.
    pub rows: usize,
    /// Seed of the choice of rows.
    pub seed: u64,
    /// Bytes of values between segments that are held in memory; the others go to a temporary file.
    pub memory: u64,
    /// How much rows count by timestep.
    pub weighting: Weighting,
    /// Layers that keep their weights: by the name of the weight or the node.
    pub exclude: Option<Regex>,
    /// Where the networks run.
    pub device: Device,
    /// Whether they may run on the CPU where the device can't run them.
    pub allow_fallback: bool,
}

impl Default for RefitOptions {
    fn default() -> Self {
        Self {
            ridge: 1e-3,
            rows: 48_000,
            seed: 0,
            memory: 1_500_000_000,
            weighting: Weighting::default(),
            exclude: None,
            device: Device::Cpu,
            allow_fallback: false,
        }
    }
}

/// What became of a layer.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct RefitLayer {
    /// The name of the node.
    pub node: String,
    /// The name of its weight in the pruned file.
    pub weight: String,
    /// The squared error over the squares of the target, before and after; `None` where it was not fitted.
    pub errors: Option<(f64, f64)>,
    /// Why its weight stays.
    pub reason: Option<String>,
}

/// New weights of a pruned network.
#[derive(Debug, Default)]
pub struct Refitted {
    /// All layers with weights, in the order in which they were visited.
    pub layers: Vec<RefitLayer>,
    weights: Vec<(String, Vec<i64>, Vec<f32>)>,
    /// Biases that the file lacks: first output of the node, slot, axis and elements.
    biases: Vec<(String, usize, usize, Vec<f32>)>,
}

impl Refitted {
    /// The cut with these weights, to be written. Where weights have changed before, with their names and the file that has
    /// them, the others among them are taken over.
    ///
    /// # Errors
    /// The cut has no such weights.
    pub fn changes<'a>(
        &self,
        analysis: &'a Analysis,
        rewritten: &'a Rewritten,
        before: Option<(&ChangedWeights, &Model)>,
    ) -> Result<Changes<'a>, Error> {
        let mut changes = Changes::new(analysis, rewritten);
        let mut fitted: BTreeMap<&str, Arc<MemoryWeight>> = BTreeMap::new();
        for (name, dims, values) in &self.weights {
            fitted.insert(name, Arc::new(MemoryWeight::of_floats(dims, values)));
        }
        if let Some((before, file)) = before {
            for bias in &before.biases {
                let values = fitted.remove(bias.name.as_str());
                let values = values.map_or_else(|| stored(file, &bias.name), Ok)?;
                changes.bias(&bias.node, bias.slot, bias.axis, values)?;
            }
            for weight in before.weights.iter().filter(|weight| !fitted.contains_key(weight.name.as_str())) {
                changes.weight(&weight.name, stored(file, &weight.name)?)?;
            }
        }
        for (name, values) in fitted {
            changes.weight(name, values)?;
        }
        for (node, slot, axis, values) in &self.biases {
            let dims = [values.len() as i64];
            changes.bias(node, *slot, *axis, Arc::new(MemoryWeight::of_floats(&dims, values)))?;
        }
        Ok(changes)
    }

    /// The BLAKE3 of all new weights and biases, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let weights = self.weights.iter().map(|(name, _, values)| (name, values));
        for (name, values) in weights.chain(self.biases.iter().map(|(node, _, _, values)| (node, values))) {
            hasher.update(name.as_bytes());
            values.iter().for_each(|value| _ = hasher.update(&value.to_le_bytes()));
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Whether no weight has changed.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.biases.is_empty()
    }
}

/// An initializer as it is stored.
fn stored(file: &Model, name: &str) -> Result<Arc<MemoryWeight>, Error> {
    let found = file.graph().initializer.iter().find(|tensor| tensor.name == name);
    let tensor = found.ok_or_else(|| {
        Error::usage(format!("expected a weight {name:?}, which the plan says has changed, found none"))
            .in_file(file.path())
    })?;
    let bytes = file.tensor_bytes(tensor)?.to_vec();
    Ok(Arc::new(MemoryWeight::new(tensor.element_type(), &tensor.dims, bytes.into())))
}

/// A cut and its original.
#[derive(Clone, Copy, Debug)]
pub struct RefitCut<'a> {
    /// The original.
    pub analysis: &'a Analysis,
    /// The cut.
    pub rewritten: &'a Rewritten,
    /// The file of the cut.
    pub pruned: &'a Model,
}

/// Fits the weights of a cut at these sizes. `progress` gets the layers that are done and all; its error ends the run.
///
/// # Errors
/// A network that does not run, data that can't be made, what `progress` says.
pub fn refit(
    cut: RefitCut<'_>,
    (data, sizes): (&dyn RefitData, &Sizes),
    probe: Probe<'_>,
    options: &RefitOptions,
    runtime: &Runtime,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Refitted, Error> {
    let Analysis { model, graph, operators, .. } = cut.analysis;
    let original = Network::new(model, graph, operators, &cut.analysis.facts_at(sizes)?)?;
    let graph = Graph::new(cut.pruned)?;
    let operators = ops::parse(&graph);
    let facts = Facts::at_sizes(cut.pruned, &graph, &operators, sizes)?;
    let pruned = Network::new(cut.pruned, &graph, &operators, &facts)?;
    let pairing = Pairing { cut, original: &original, pruned: &pruned };
    let is_changed = pairing.changed_values();
    let (events, refusals) =
        layers::events(&pruned, &|value| is_changed[value], &|value| pairing.kept(value).is_some());
    let named = |node: usize| pruned.graph().nodes[node].name.clone();
    let mut layers: Vec<RefitLayer> = Vec::new();
    for (node, why) in refusals {
        let linear = pruned.linear(&pruned.graph().nodes[node]);
        let weight = linear.and_then(|linear| pruned.graph().nodes[node].input(linear.weight));
        let weight = weight.map(|value| pruned.graph().values[value].name.clone()).unwrap_or_default();
        layers.push(RefitLayer { node: named(node), weight, errors: None, reason: Some(why.to_owned()) });
    }
    let sensitivity = match options.weighting {
        Weighting::Uniform => Sensitivity::default(),
        Weighting::GaussNewton => {
            let names: BTreeSet<String> = events
                .iter()
                .filter_map(|event| Some(pruned.graph().values[event.layers.first()?.target].name.clone()))
                .collect();
            let names: Vec<String> = names.into_iter().collect();
            Sensitivity::of(cut.analysis, &names, &probe, options, runtime, &mut |_, _| progress(0, events.len()))?
        }
    };
    let execution = Execution { runtime, device: options.device, allow_fallback: options.allow_fallback };
    let mut run = Run {
        pairing,
        data,
        sensitivity,
        options,
        of_original: Lockstep::new(&original, execution, data.chunks(), options.memory / 2),
        of_pruned: Lockstep::new(&pruned, execution, data.chunks(), options.memory / 2),
        changed: Changed::default(),
        layers,
        biases: Vec::new(),
    };
    let total = events.len();
    for (at, event) in events.iter().enumerate() {
        progress(at, total)?;
        run.fit(at, event)?;
    }
    progress(total, total)?;
    run.finish()
}

/// Which value of the original a value of the pruned network is the kept part of.
#[derive(Clone, Copy)]
struct Pairing<'a> {
    cut: RefitCut<'a>,
    original: &'a Network,
    pruned: &'a Network,
}

impl Pairing<'_> {
    /// The kept indices of every axis of the original of a value, and its id there; `None` where it is not known.
    fn kept(&self, value: ValueId) -> Option<(ValueId, Vec<Option<Vec<usize>>>)> {
        let name = &self.pruned.graph().values[value].name;
        let of_original = self.cut.analysis.graph.value(name)?;
        let original = self.original.graph().value(name)?;
        if !self.original.is_float(original) || !self.pruned.is_float(value) {
            return None;
        }
        let (before, after) = (self.original.shape(original)?, self.pruned.shape(value)?);
        let layout = self.cut.analysis.coupling.layouts[of_original].as_ref();
        let kept = match layout {
            Some(layout) => layout.axes.iter().map(|axis| self.cut.rewritten.kept.axis_indices(axis)).collect(),
            None => vec![None; before.len()],
        };
        let fits = |((kept, before), after): ((&Option<Vec<usize>>, &usize), &usize)| {
            kept.as_ref().map_or(*before, Vec::len) == *after
        };
        let is_known = kept.len() == before.len() && before.len() == after.len();
        (is_known && kept.iter().zip(&before).zip(&after).all(fits)).then_some((original, kept))
    }

    /// By value of the pruned network, whether it differs from the kept part of the original's.
    fn changed_values(&self) -> Vec<bool> {
        let original = &self.original.lowered.model.graph().initializer;
        let dims: HashMap<&str, &[i64]> =
            original.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice())).collect();
        let graph = self.pruned.graph();
        let mut changed = vec![false; graph.values.len()];
        for tensor in &self.pruned.lowered.model.graph().initializer {
            if let Some(value) = graph.value(&tensor.name) {
                changed[value] = dims.get(tensor.name.as_str()).is_none_or(|dims| *dims != tensor.dims.as_slice());
            }
        }
        for node in &graph.nodes {
            if self.pruned.read_by(node).into_iter().any(|value| changed[value]) {
                node.outputs.iter().flatten().for_each(|output| changed[*output] = true);
            }
        }
        changed
    }
}

/// One of the two networks under way.
struct Lockstep<'a> {
    network: &'a Network,
    execution: Execution<'a>,
    store: Store,
    done: HashSet<usize>,
}

impl<'a> Lockstep<'a> {
    fn new(network: &'a Network, execution: Execution<'a>, chunks: usize, memory: u64) -> Self {
        Self { network, execution, store: Store::new(chunks, memory), done: HashSet::new() }
    }

    fn segment(&self, wanted: &[ValueId], changed: &Changed) -> Result<Option<Segment>, Error> {
        self.network.segment(wanted, &self.store, &self.done, changed, self.execution)
    }

    /// Runs a segment on a chunk and holds what it gives.
    fn advance(&mut self, segment: &mut Segment, chunk: usize, inputs: &[(String, Array)]) -> Result<(), Error> {
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

    /// A value that is held, an input, or a constant.
    fn value(&mut self, value: ValueId, chunk: usize, inputs: &[(String, Array)]) -> Result<ArrayD<f32>, Error> {
        let graph = self.network.graph();
        let name = graph.values[value].name.clone();
        let array = if let Some((_, array)) = inputs.iter().find(|(input, _)| *input == name) {
            array.clone()
        } else if self.store.has(&name) {
            self.store.get(&name, chunk)?
        } else {
            fit::constant(self.network, value)?
        };
        floats(array).ok_or_else(|| Error::unmet(format!("value {name:?} has no floating point numbers to fit to")))
    }

    /// Drops what nothing reads any more, apart from these.
    fn clear(&mut self, nodes: &[usize]) {
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

/// A refit under way.
struct Run<'a> {
    pairing: Pairing<'a>,
    data: &'a dyn RefitData,
    sensitivity: Sensitivity,
    options: &'a RefitOptions,
    of_original: Lockstep<'a>,
    of_pruned: Lockstep<'a>,
    changed: Changed,
    layers: Vec<RefitLayer>,
    biases: Vec<(String, usize, usize, String)>,
}

impl Run<'_> {
    /// Fits the layers of one event.
    fn fit(&mut self, at: usize, event: &Event) -> Result<(), Error> {
        let Some(first) = event.layers.first() else { return Ok(()) };
        let pruned = self.pairing.pruned;
        if let Some(pattern) = &self.options.exclude {
            let is_excluded = |name: &String| pattern.is_match(name);
            let of = |layer: &layers::Layer| {
                is_excluded(&pruned.graph().nodes[layer.node].name)
                    || is_excluded(&pruned.graph().values[layer.weight].name)
            };
            if event.layers.iter().any(of) {
                event.layers.iter().for_each(|layer| self.refuse(layer, "it is excluded (--refit-exclude)"));
                return Ok(());
            }
        }
        let Some((original, kept)) = self.pairing.kept(first.target) else { return Ok(()) };
        let target_name = pruned.graph().values[first.target].name.clone();
        let needs = event.needs(pruned);
        let mut of_pruned = self.of_pruned.segment(&needs, &self.changed)?;
        let mut of_original = self.of_original.segment(&[original], &Changed::default())?;
        let mut fit = Fit::new(pruned, event, &self.changed, self.options, (at, self.data.chunks()))?;
        for chunk in 0..self.data.chunks() {
            let inputs = self.data.inputs(chunk)?;
            if let Some(segment) = &mut of_pruned {
                self.of_pruned.advance(segment, chunk, &inputs)?;
            }
            if let Some(segment) = &mut of_original {
                self.of_original.advance(segment, chunk, &inputs)?;
            }
            let target = kept_part(&self.of_original.value(original, chunk, &inputs)?, &kept);
            let sensitivity = self.sensitivity.weight(&target_name, self.data.time(chunk));
            let weight = self.data.weight(chunk) * sensitivity / self.sensitivity.mean(&target_name);
            let of_pruned = &mut self.of_pruned;
            fit.add(chunk, target, weight, &mut |value| of_pruned.value(value, chunk, &inputs))?;
        }
        self.of_pruned.clear(of_pruned.as_ref().map_or(&[], |segment| &segment.nodes));
        self.of_original.clear(of_original.as_ref().map_or(&[], |segment| &segment.nodes));
        self.take(event, fit)
    }

    fn refuse(&mut self, layer: &layers::Layer, why: &str) {
        let graph = self.pairing.pruned.graph();
        self.layers.push(RefitLayer {
            node: graph.nodes[layer.node].name.clone(),
            weight: graph.values[layer.weight].name.clone(),
            errors: None,
            reason: Some(why.to_owned()),
        });
    }

    /// Takes over the weights of a fit.
    fn take(&mut self, event: &Event, fit: Fit<'_>) -> Result<(), Error> {
        let graph = self.pairing.pruned.graph();
        let Some(found) = fit.solve()? else {
            event.layers.iter().for_each(|layer| self.refuse(layer, "its fit does not lower the error"));
            return Ok(());
        };
        for (layer, weight) in event.layers.iter().zip(found.weights) {
            self.layers.push(RefitLayer {
                node: graph.nodes[layer.node].name.clone(),
                weight: weight.name.clone(),
                errors: Some(found.errors),
                reason: None,
            });
            self.changed.weights.insert(weight.name.clone(), weight);
        }
        if let Some((at, bias)) = found.bias {
            let layer = &event.layers[at];
            if let Some(Bias::Slot { slot, value: None, .. }) = layer.bias {
                let axis = self.pairing.pruned.shape(layer.output).and_then(|shape| layer.rows.output_axis(&shape));
                if let Some(axis) = axis {
                    let output = graph.values[layer.output].name.clone();
                    self.biases.push((output, slot, axis, bias.name.clone()));
                    self.changed.biases.insert(layer.node, (slot, bias.name.clone()));
                }
            }
            self.changed.weights.insert(bias.name.clone(), bias);
        }
        Ok(())
    }

    fn finish(self) -> Result<Refitted, Error> {
        let Self { mut changed, biases, layers, .. } = self;
        let mut taken = Vec::new();
        for (node, slot, axis, name) in biases {
            if let Some(tensor) = changed.weights.remove(&name) {
                taken.push((node, slot, axis, fit::elements(&tensor)));
            }
        }
        let mut weights: Vec<(String, Vec<i64>, Vec<f32>)> = changed
            .weights
            .into_iter()
            .map(|(name, tensor)| (name, tensor.dims.clone(), fit::elements(&tensor)))
            .collect();
        weights.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Refitted { layers, weights, biases: taken })
    }
}
