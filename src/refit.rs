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

mod checkpoint;

mod fit;

mod held;

mod layers;

mod network;

mod pairing;

mod rows;

mod run;

mod segment;

mod sensitivity;

mod shared;

mod solve;

mod store;

mod stored;

mod unexplained;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use regex::Regex;

use crate::analysis::Analysis;
use crate::array::Array;
use crate::changed::{ChangedWeights, Changes};
use crate::collective::{Alone, Collective, of_first};
use crate::error::{Error, ErrorKind};
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::tensor::stored_bytes;
use crate::graph::{self, Graph, ValueId};
use crate::onnx::TensorProto;
use crate::ops;
use crate::rewrite::Rewritten;
use crate::runtime::{Device, Runtime};
use crate::write::MemoryWeight;
pub use checkpoint::RefitCheckpoint;
use checkpoint::Saving;
use layers::{Event, Known};
use network::Network;
use pairing::Pairing;
use run::{Lockstep, Run};
use segment::{Changed, Execution};
use sensitivity::Sensitivity;
use store::Store;
use stored::Stored;
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
    /// Bytes beside the two networks. Half of them are for values between segments; what is more goes to a temporary file
    /// beside the pruned one. The other half is for the equations of a layer: one that has too many columns for it is
    /// fitted on fewer rows, as many as fit.
    pub memory: u64,
    /// How much rows count by timestep.
    pub weighting: Weighting,
    /// Layers that keep their weights: by the name of the weight or the node.
    pub exclude: Option<Regex>,
    /// Where the networks run.
    pub device: Device,
    /// Whether they may run on the CPU where the device can't run them.
    pub allow_fallback: bool,
    /// Threads within an operator; the library decides where `None`.
    pub threads: Option<usize>,
    /// Where what was fitted is saved from time to time, by the first of several ranks.
    pub checkpoint: Option<RefitCheckpoint>,
    /// The processes that divide the samples: all fit the same, and all get the same weights.
    pub ranks: Arc<dyn Collective>,
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
            threads: None,
            checkpoint: None,
            ranks: Arc::new(Alone),
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
    /// What the user should know.
    pub notes: Vec<String>,
    /// The constants that change, in their new form.
    pub(crate) weights: Vec<TensorProto>,
    /// Biases that the file lacks: first output of the node, slot, axis and elements.
    pub(crate) biases: Vec<(String, usize, usize, Vec<f32>)>,
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
        for tensor in &self.weights {
            let bytes = stored_bytes(tensor).into_owned().into();
            fitted.insert(&tensor.name, Arc::new(MemoryWeight::new(tensor.element_type(), &tensor.dims, bytes)));
        }
        if let Some((before, file)) = before {
            for bias in &before.biases {
                let values = fitted.remove(bias.name.as_str());
                let values = values.map_or_else(|| as_stored(file, &bias.name), Ok)?;
                changes.bias(&bias.node, bias.slot, bias.axis, values)?;
            }
            for weight in before.weights.iter().filter(|weight| !fitted.contains_key(weight.name.as_str())) {
                changes.weight(&weight.name, as_stored(file, &weight.name)?)?;
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
        for tensor in &self.weights {
            hasher.update(tensor.name.as_bytes());
            hasher.update(&stored_bytes(tensor));
        }
        for (node, _, _, values) in &self.biases {
            hasher.update(node.as_bytes());
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
fn as_stored(file: &Model, name: &str) -> Result<Arc<MemoryWeight>, Error> {
    let found = file.graph().initializer.iter().find(|tensor| tensor.name == name);
    let tensor = found.ok_or_else(|| {
        let text = format!("expected a weight {name:?}, which the plan says has changed, found none");
        Error::usage(text).in_file(file.path())
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
    let pairing = Pairing::new(cut, &original, &pruned);
    let is_changed = pairing.changed_values();
    let changes = Changes::new(cut.analysis, cut.rewritten);
    let stored = Stored { network: &pruned, runtime, changes: &changes };
    let held = |value: ValueId| -> Option<String> {
        if !pruned.is_float(value) || pruned.is_computed(value) {
            return Some("its weight is computed".to_owned());
        }
        let is_read_inside = |value: &graph::Value| value.is_output || !value.captured_by.is_empty();
        if is_read_inside(&pruned.graph().values[value]) {
            return Some("its weight is an output of the network, or read in a subgraph".to_owned());
        }
        let sources = stored.sources(value);
        let is_free = |name: &&String| changes.refusal(name).is_none();
        // Of several constants, those that can't change may stay.
        match sources.iter().any(|name| is_free(&name)) {
            true => None,
            false => Some(sources.first().and_then(|name| changes.refusal(name)).unwrap_or_default()),
        }
    };
    let takes_bias = |node: usize, slot: usize, axis: usize| {
        let proto = &pruned.graph().nodes[node].proto;
        changes.takes_bias(proto, slot, axis)
    };
    let known = Known {
        is_changed: &|value| is_changed[value],
        is_paired: &|value| pairing.kept(value).is_some(),
        held: &held,
        takes_bias: &takes_bias,
    };
    let (events, refusals) = layers::events(&pruned, &known);
    let named = |node: usize| pruned.graph().nodes[node].name.clone();
    let mut layers: Vec<RefitLayer> = Vec::new();
    for (node, why) in refusals {
        let linear = pruned.linear(&pruned.graph().nodes[node]);
        let weight = linear.and_then(|linear| pruned.graph().nodes[node].input(linear.weight));
        let weight = weight.map(|value| pruned.graph().values[value].name.clone()).unwrap_or_default();
        layers.push(RefitLayer { node: named(node), weight, errors: None, reason: Some(why) });
    }
    let mut notes = Vec::new();
    let sensitivity = match options.weighting {
        Weighting::Uniform => Sensitivity::default(),
        Weighting::GaussNewton => {
            let names: BTreeSet<String> = events
                .iter()
                .flat_map(Event::layers)
                .map(|layer| pruned.graph().values[layer.target].name.clone())
                .collect();
            let names: Vec<String> = names.into_iter().collect();
            let (found, note) = of_first(&*options.ranks, || {
                let mut unwatched = |_, _| progress(0, events.len());
                match Sensitivity::of(cut.analysis, &names, &probe, options, runtime, &mut unwatched) {
                    // An operator without a gradient is no reason not to fit.
                    Err(error) if error.kind() == ErrorKind::Unsupported => {
                        let note = format!("all timesteps count alike in the refit: {error}");
                        Ok((Sensitivity::default(), Some(note)))
                    }
                    found => Ok((found?, None)),
                }
            })?;
            notes.extend(note);
            found
        }
    };
    let RefitOptions { device, allow_fallback, threads, .. } = *options;
    let execution = Execution { runtime, device, allow_fallback, threads };
    let checkpoint = options.checkpoint.as_ref().filter(|_| options.ranks.rank() == 0);
    // Beside the output, where the file of the cut is as well.
    let store = || Store::new(data.chunks(), options.memory / 4, Some(cut.pruned.folder()));
    let mut run = Run {
        pairing: &pairing,
        stored,
        data,
        sensitivity,
        options,
        of_original: Lockstep::new(&original, execution, store()),
        of_pruned: Lockstep::new(&pruned, execution, store()),
        changed: Changed::default(),
        layers,
        biases: Vec::new(),
        known: checkpoint.map(RefitCheckpoint::load).transpose()?.unwrap_or_default(),
        saving: checkpoint.map(Saving::new),
    };
    let total = events.len();
    for (at, event) in events.iter().enumerate() {
        progress(at, total)?;
        run.fit(at, event)?;
    }
    progress(total, total)?;
    if let Some(saving) = &run.saving {
        saving.remove();
    }
    Ok(Refitted { notes, ..run.finish() })
}
