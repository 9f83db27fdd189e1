//! Refit: after a cut, least squares fits the kept weights layer by layer, so that the pruned network computes what the
//! original does.
//!
//! A layer is visited when everything upstream has been fitted. X is the input of the layer in the pruned network. Y is
//! the original's value, at the kept channels, where the layer's output enters a sum, or else its output. Both networks
//! run in lockstep, in segments between the layers and in chunks of samples; only values that cross a segment border are
//! stored. A layer whose fit does not lower its error keeps its weight.
//!
//! OBS-Diff (arXiv 2510.06751) and MosaicDiff (arXiv 2510.11962) also cut first and then solve for the kept weights. Here
//! this is plain weighted least squares with a ridge.

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
use crate::collective::{Alone, Collective, run_on_first};
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
pub use unexplained::{RemovalOrder, unexplained};

/// The data of a refit.
pub trait RefitData {
    /// Returns the number of chunks. Each chunk is one run of the networks.
    fn chunks(&self) -> usize;

    /// Returns the inputs of both networks for a chunk, with floating point numbers as float32.
    ///
    /// # Errors
    /// The inputs can't be generated.
    fn inputs(&self, chunk: usize) -> Result<Vec<(String, Array)>, Error>;

    /// Returns the timestep of a chunk.
    fn time(&self, chunk: usize) -> f64;

    /// Returns the weight of the loss at a chunk.
    fn weight(&self, chunk: usize) -> f64;
}

/// The data from which the weight of an error at a value is computed.
#[derive(Clone, Copy)]
pub struct Probe<'a> {
    /// Samples, few per chunk.
    pub data: &'a dyn RefitData,
    /// The sizes of the network for one chunk.
    pub sizes: &'a Sizes,
    /// The name of the output that is the prediction.
    pub prediction: &'a str,
    /// The number of channels that count, the first of axis 1. `None`: all.
    pub channels: Option<i64>,
}

/// The weights of rows by the timestep of their samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Weighting {
    /// All rows have the same weight.
    Uniform,
    /// By how much an error at the layer changes the output of the network at that timestep.
    #[default]
    GaussNewton,
}

/// The settings of a refit.
#[derive(Clone, Debug)]
pub struct RefitOptions {
    /// The ridge added to the diagonal of a layer's Gram matrix, relative to the mean of the diagonal.
    pub ridge: f64,
    /// Maximum number of rows of a layer's equations.
    pub rows: usize,
    /// Seed of the random choice of rows.
    pub seed: u64,
    /// Memory in bytes besides the two networks. Half of it is for values between segments; values beyond that go to a
    /// temporary file beside the pruned one. The other half is for the equations of a layer. A layer with too many columns
    /// for it is fitted on fewer rows, so that its equations fit into it.
    pub memory: u64,
    /// The weights of rows by timestep.
    pub weighting: Weighting,
    /// Layers that keep their weights, by the name of the weight or the node. `None`: no layer is excluded.
    pub exclude: Option<Regex>,
    /// The device on which the networks run.
    pub device: Device,
    /// Whether they may run on the CPU if the device can't run them.
    pub allow_fallback: bool,
    /// Number of threads within an operator. `None`: ONNX Runtime decides.
    pub threads: Option<usize>,
    /// Where fits are saved from time to time, by the first of several ranks. `None`: nowhere.
    pub checkpoint: Option<RefitCheckpoint>,
    /// The processes among which the samples are divided. All fit the same layers and get the same weights.
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

/// The result for one layer.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct RefitLayer {
    /// The name of the node.
    pub node: String,
    /// The name of its weight in the pruned file.
    pub weight: String,
    /// The squared error divided by the squares of the target, before and after. `None`: the layer was not fitted.
    pub errors: Option<(f64, f64)>,
    /// Why its weight remains unchanged. `None`: it was fitted.
    pub reason: Option<String>,
}

/// New weights of a pruned network.
#[derive(Debug, Default)]
pub struct Refitted {
    /// All layers with weights, in the order in which they were visited.
    pub layers: Vec<RefitLayer>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// The changed constants, with their new elements.
    pub(crate) weights: Vec<TensorProto>,
    /// Biases that the file lacks: first output of the node, slot, axis and elements.
    pub(crate) biases: Vec<(String, usize, usize, Vec<f32>)>,
}

impl Refitted {
    /// Returns the changes of the cut to these weights. `before` names weights that had changed before, with their file:
    /// those that were not fitted again are copied from it.
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

    /// Returns the BLAKE3 hash of all new weights and biases, in hexadecimal.
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

/// Returns an initializer with the elements stored in the file.
fn as_stored(file: &Model, name: &str) -> Result<Arc<MemoryWeight>, Error> {
    let found = file.graph().initializer.iter().find(|tensor| tensor.name == name);
    let tensor = found.ok_or_else(|| {
        let text = format!("expected a weight {name:?}, which the plan lists as changed, found none");
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

/// Fits the weights of a cut at these sizes. `progress` gets the number of layers done and of all layers; its error ends
/// the run.
///
/// # Errors
/// A network does not run, data can't be generated, or `progress` returns an error.
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
        // If the weight comes from several constants, one that can change is enough.
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
            let (found, note) = run_on_first(&*options.ranks, || {
                let mut unwatched = |_, _| progress(0, events.len());
                match Sensitivity::of(cut.analysis, &names, &probe, options, runtime, &mut unwatched) {
                    // The refit also works without gradients.
                    Err(error) if error.kind() == ErrorKind::Unsupported => {
                        let note = format!("the refit gives all timesteps the same weight: {error}");
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
    // Beside the output; the file of the cut is in the same folder.
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
