//! The proof by induction: every node of the pruned network runs on the kept part of the original's values.
//!
//! If every node computes the kept part of its output from the kept parts of its inputs, so does the whole network.
//! All inputs are equal bit for bit, so errors do not add up over the depth. Each output can therefore be compared closely,
//! against its own range, and no error hides behind a gate or a small weight. If a value differs by more, a second look
//! follows: its node runs again on inputs with perturbations of the size of rounding. If a value proves nothing because it
//! is constant or not finite, its node runs once more on noise, in both networks.

mod graph;

mod looks;

mod networks;

mod noise;

mod rerun;

mod subgraph;

mod verdict;

mod whole;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use super::compare;
use super::pair::Pair;
use super::pieces::{Pieces, Values};
use super::reference::Unmasked;
use crate::array::Array;
use crate::error::Error;
use crate::graph::NodeId;
use crate::kernels::proof::Measured;
use crate::onnx::ModelProto;
use crate::runtime::{Runtime, RuntimeError};
use looks::{Looks, ProofGraph, Watched};
pub(super) use networks::{Networks, as_run, lowered_original};
use rerun::DRAWS;
use verdict::{CONCLUSIVE, Verdict, by_name, difference, measured, measured_sizes, verdict};

/// Difference up to which the sums of both networks agree, relative to the largest magnitude of a value. Both add the same
/// numbers in another order.
pub(super) const CLOSE: f64 = 2e-6;

/// How many times the difference by rounded inputs a value may differ.
pub(super) const ROUNDINGS: f64 = 16.0;

/// A value that the cut touches and of which nothing is proved.
#[derive(Clone, Debug, Serialize)]
pub struct Unproven {
    /// Name of the value.
    pub value: String,
    /// The node that computes it.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The reason why nothing is proved.
    pub reason: String,
}

/// A comparison of the floating point values that a cut touches, between the inputs and the outputs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ValuesReport {
    /// Number of values that the cut touches.
    pub compared: usize,
    /// Number of those that prove something: finite, not constant, and equal by the relative tolerance alone.
    pub conclusive: usize,
    /// Number of those that prove something only when their nodes read noise.
    pub opened: usize,
    /// Worst error of all values, each relative to its largest magnitude.
    pub worst_relative: f64,
    /// The values of which nothing is proved.
    pub unproven: Vec<Unproven>,
}

/// A value of the pruned network that differs from the kept part of the original's value.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Name of the value.
    pub value: String,
    /// The node that computes it.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Largest error relative to the largest magnitude; infinite if the numbers of elements differ.
    pub relative: f64,
    /// Number of kept elements of the original value.
    pub expected_elements: usize,
    /// Number of elements of the pruned value.
    pub found_elements: usize,
}

/// A proof in progress.
pub(super) struct Proof<'a> {
    networks: Networks<'a>,
    runtime: &'a Runtime,
    pair: Pair<'a>,
    graph: ProofGraph,
    /// The graph in pieces. `None`: it has not run.
    pieces: Option<Pieces>,
    /// Allowed difference of values, relative to their largest magnitude.
    tolerance: f64,
    /// The verdict of every value, by its name.
    verdicts: BTreeMap<String, Verdict>,
    /// Values that are zero, that nodes of the cut read, and that the cut does not touch.
    zeros: HashSet<String>,
    opened: usize,
    /// Sizes of values in both networks, in the first run.
    sizes: HashMap<String, (Vec<i64>, Vec<i64>)>,
}

/// A fault of a pruned network, or the reason why it can't be compared.
#[derive(Debug)]
pub(super) enum Fault {
    Differs(Difference),
    Failed(RuntimeError),
}

impl<'a> Proof<'a> {
    /// Builds the graph of a proof, in the precision of `pair`.
    ///
    /// # Errors
    /// The reference can't be built.
    pub(super) fn new(
        networks: Networks<'a>,
        pair: &Pair<'a>,
        runtime: &'a Runtime,
        tolerance: f64,
    ) -> Result<Self, Error> {
        let graph = graph::build(networks, &Looks::default())
            .map_err(|unmasked| super::unmasked(networks.analysis, &unmasked))?;
        Ok(Self {
            networks,
            runtime,
            pair: pair.clone(),
            graph,
            pieces: None,
            tolerance,
            verdicts: BTreeMap::new(),
            zeros: HashSet::new(),
            opened: 0,
            sizes: HashMap::new(),
        })
    }

    /// Runs the reference on each of some inputs, with the results of all comparisons among its outputs.
    ///
    /// # Errors
    /// ONNX Runtime rejects it, or it does not run on those inputs.
    pub(super) fn outputs(
        &mut self,
        inputs: &[Vec<(String, Array)>],
    ) -> Result<Vec<Result<Values, RuntimeError>>, RuntimeError> {
        let pieces = match self.pieces.take() {
            Some(pieces) => pieces,
            None => self.pair.pieces(std::mem::take(&mut self.graph.model))?,
        };
        Ok(self.pieces.insert(pieces).run(self.runtime, inputs))
    }

    /// Reads the comparisons from `outputs`, which [`Proof::outputs`] returned for `inputs`.
    pub(super) fn take(&mut self, outputs: &[(String, Array)], inputs: &[(String, Array)]) -> Result<(), Fault> {
        let outputs = by_name(outputs);
        for seen in &self.graph.seen {
            let is_zero = |measured: Measured| measured.lowest == 0.0 && measured.highest == 0.0;
            if measured(&outputs, &seen.output).is_some_and(is_zero) {
                self.zeros.insert(seen.value.clone());
            }
        }
        if self.sizes.is_empty() {
            let seen = self.graph.seen.iter().map(|seen| (&seen.value, &seen.output));
            let watched = self.graph.watched.iter().map(|watched| (&watched.value, &watched.output));
            let sizes = |(value, output): (&String, &String)| Some((value.clone(), measured_sizes(&outputs, output)?));
            self.sizes = seen.chain(watched).filter_map(sizes).collect();
        }
        let verdicts = self.judge(&self.graph.watched, &outputs);
        let verdicts = self.second_look(verdicts, &Looks::default(), inputs)?;
        self.note(verdicts);
        Ok(())
    }

    fn judge(&self, watched: &[Watched], outputs: &HashMap<&str, &Array>) -> Vec<(Watched, Verdict)> {
        // In the order of the graph: the verdict of a value is known before those of its consumers.
        let known = self.verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Shrunk);
        let mut shrunk: HashSet<&str> = known.map(|(value, _)| value.as_str()).collect();
        let mut verdicts = Vec::new();
        for watched in watched {
            let Some(measured) = measured(outputs, &watched.output) else { continue };
            let shrinks = watched.shrinks || watched.reads.iter().any(|name| shrunk.contains(name.as_str()));
            let verdict = verdict(&measured, shrinks, self.tolerance);
            if verdict == Verdict::Shrunk {
                shrunk.insert(&watched.value);
            }
            verdicts.push((watched.clone(), verdict));
        }
        verdicts
    }

    /// Records the verdicts of a run. A value that one run proved remains proved.
    fn note(&mut self, verdicts: Vec<(Watched, Verdict)>) {
        for (watched, new) in verdicts {
            let known = self.verdicts.entry(watched.value).or_insert(new);
            *known = match (*known, new) {
                (
                    Verdict::Agrees { relative: a, is_conclusive: before },
                    Verdict::Agrees { relative: b, is_conclusive: now },
                ) => Verdict::Agrees { relative: a.max(b), is_conclusive: before || now },
                (Verdict::Agrees { .. }, Verdict::Shrunk) => *known,
                (_, new) => new,
            };
        }
    }

    /// Runs the nodes of values again on rounded inputs if the values differ by more than the order of sums explains.
    fn second_look(
        &self,
        mut verdicts: Vec<(Watched, Verdict)>,
        looks: &Looks,
        inputs: &[(String, Array)],
    ) -> Result<Vec<(Watched, Verdict)>, Fault> {
        if let Some((watched, verdict)) =
            verdicts.iter().find(|(_, verdict)| matches!(verdict, Verdict::OtherSize { .. }))
        {
            return Err(Fault::Differs(self.difference(watched, *verdict)));
        }
        let differs = |(watched, verdict): &(Watched, Verdict)| match verdict {
            Verdict::Differs { .. } => Some(watched.value.clone()),
            _ => None,
        };
        let rounded: BTreeSet<String> = verdicts.iter().filter_map(differs).collect();
        if rounded.is_empty() {
            return Ok(verdicts);
        }
        let looks = Looks { only: Some(rounded.clone()), rounded, ..looks.clone() };
        let wrong = |verdicts: &[(Watched, Verdict)]| {
            let first = verdicts.iter().find(|(_, verdict)| matches!(verdict, Verdict::Differs { .. }));
            first.map(|(watched, verdict)| Fault::Differs(self.difference(watched, *verdict)))
        };
        let (graph, outputs) = match self.run(&looks, inputs) {
            Ok(ran) => ran,
            // Without that run, nothing explains the difference.
            Err(error) => return Err(wrong(&verdicts).unwrap_or(error)),
        };
        let outputs = by_name(&outputs);
        for watched in &graph.watched {
            let Some(found) = measured(&outputs, &watched.output).map(|found| difference(&found)) else { continue };
            let moved = watched.rounded.iter().filter_map(|output| measured(&outputs, output));
            let moved = moved.map(|measured| measured.absolute).fold(0.0, f64::max);
            let known = verdicts.iter_mut().find(|(known, _)| known.value == watched.value);
            let Some((_, verdict)) = known else { continue };
            if found.absolute <= ROUNDINGS * moved {
                let is_conclusive = found.is_conclusive(CONCLUSIVE);
                *verdict = Verdict::Agrees { relative: found.relative(), is_conclusive };
            }
        }
        match wrong(&verdicts) {
            Some(fault) => Err(fault),
            None => Ok(verdicts),
        }
    }

    fn run(&self, looks: &Looks, inputs: &[(String, Array)]) -> Result<(ProofGraph, Vec<(String, Array)>), Fault> {
        let mut graph = graph::build(self.networks, looks).map_err(|unmasked| self.unbuilt(&unmasked))?;
        let outputs = self.run_once(std::mem::take(&mut graph.model), inputs)?;
        Ok((graph, outputs))
    }

    fn run_once(&self, model: ModelProto, inputs: &[(String, Array)]) -> Result<Vec<(String, Array)>, Fault> {
        let pieces = self.pair.pieces(model).map_err(Fault::Failed)?;
        let ran = pieces.run(self.runtime, &[inputs.to_vec()]).pop();
        ran.unwrap_or_else(|| Ok(Vec::new())).map_err(Fault::Failed)
    }

    fn difference(&self, watched: &Watched, verdict: Verdict) -> Difference {
        let (relative, expected_elements, found_elements) = match verdict {
            Verdict::Differs { relative } => (relative, 0, 0),
            Verdict::OtherSize { expected, found } => (f64::INFINITY, expected, found),
            Verdict::Agrees { relative, .. } => (relative, 0, 0),
            Verdict::Shrunk => (0.0, 0, 0),
        };
        let node = &self.networks.analysis.graph.nodes[watched.node];
        Difference {
            value: watched.value.clone(),
            node: node.name.clone(),
            op: node.op(),
            relative,
            expected_elements,
            found_elements,
        }
    }

    /// Returns the values that agree without proving anything.
    fn open_values(&self) -> BTreeSet<String> {
        let is_open = |verdict: &Verdict| matches!(verdict, Verdict::Agrees { is_conclusive: false, .. });
        self.verdicts.iter().filter(|(_, verdict)| is_open(verdict)).map(|(value, _)| value.clone()).collect()
    }

    /// Runs the nodes whose values prove nothing on noise, in both networks. `inputs` are those of the first run.
    pub(super) fn open(&mut self, inputs: &[(String, Array)]) -> Result<(), Fault> {
        let only = self.open_values();
        if only.is_empty() {
            return Ok(());
        }
        // The first graph is no longer needed.
        self.pieces = None;
        let opened: BTreeSet<NodeId> =
            self.graph.watched.iter().filter(|watched| only.contains(&watched.value)).map(|w| w.node).collect();
        let flat = opened.iter().flat_map(|node| self.openable(*node)).collect();
        let sizes = std::mem::take(&mut self.sizes);
        let looks = Looks { opened, flat, sizes, only: Some(only.clone()), ..Looks::default() };
        let (graph_of_noise, outputs) = self.run(&looks, inputs)?;
        let verdicts = self.judge(&graph_of_noise.watched, &by_name(&outputs));
        let verdicts = self.second_look(verdicts, &looks, inputs)?;
        self.note(verdicts);
        self.opened = only.len() - self.open_values().len();
        Ok(())
    }

    /// Returns the inputs of a node that noise can replace: weights that are cut, values that the cut touches, and zeros.
    fn openable(&self, node: NodeId) -> Vec<String> {
        let graph = &self.networks.analysis.graph;
        let is_open = |slot: usize, value: usize| {
            let name = &graph.values[value].name;
            match self.verdicts.get(name) {
                Some(Verdict::Agrees { .. }) => true,
                Some(_) => false,
                None => {
                    self.networks.kept.contains_key(&crate::graph::Reader { node, slot }) || self.zeros.contains(name)
                }
            }
        };
        let inputs = graph.nodes[node].inputs.iter().enumerate();
        let open = inputs.filter_map(|(slot, value)| value.filter(|value| is_open(slot, *value)));
        open.map(|value| graph.values[value].name.clone()).collect()
    }

    /// Returns the largest change of any element of each output that rounding alone causes, by the name of the output.
    /// `expected` are the outputs of the original on `inputs`.
    ///
    /// # Errors
    /// The graph can't be built, or does not run.
    pub(super) fn moved_by_rounding(
        &self,
        expected: &[(String, Array)],
        inputs: &[(String, Array)],
    ) -> Result<HashMap<String, f64>, Fault> {
        let mut moved: HashMap<String, f64> = HashMap::new();
        for draw in 0..DRAWS {
            let model = whole::rounded_reference(self.networks, draw).map_err(|unmasked| self.unbuilt(&unmasked))?;
            for (name, array) in self.run_once(model, inputs)? {
                let Some((_, expected)) = expected.iter().find(|(other, _)| *other == name) else { continue };
                let difference = compare::Difference::of_output(expected, Some(&array));
                let most = moved.entry(name).or_insert(0.0);
                *most = most.max(difference.absolute);
            }
        }
        Ok(moved)
    }

    fn unbuilt(&self, unmasked: &Unmasked) -> Fault {
        let message = super::unmasked(self.networks.analysis, unmasked).to_string();
        Fault::Failed(RuntimeError::RunFailed { message })
    }

    /// Returns a report of the comparison.
    pub(super) fn report(&self) -> ValuesReport {
        let analysis = self.networks.analysis;
        let mut report = ValuesReport { opened: self.opened, ..ValuesReport::default() };
        let unproven = |value: &str, node: NodeId, reason: &str| Unproven {
            value: value.to_owned(),
            node: analysis.graph.nodes[node].name.clone(),
            op: analysis.graph.nodes[node].op(),
            reason: reason.to_owned(),
        };
        for watched in &self.graph.watched {
            let Some(verdict) = self.verdicts.get(&watched.value) else { continue };
            report.compared += 1;
            match verdict {
                Verdict::Agrees { relative, is_conclusive } => {
                    report.worst_relative = report.worst_relative.max(*relative);
                    report.conclusive += usize::from(*is_conclusive);
                    if !is_conclusive {
                        let reason = "it is constant or not finite, even when its node reads noise";
                        report.unproven.push(unproven(&watched.value, watched.node, reason));
                    }
                }
                Verdict::Shrunk => {
                    let reason = "its size follows from other sizes, and no mask shows which part is kept";
                    report.unproven.push(unproven(&watched.value, watched.node, reason));
                }
                _ => {}
            }
        }
        for (value, node, reason) in &self.graph.exceptions {
            report.compared += 1;
            report.unproven.push(unproven(value, *node, reason));
        }
        report
    }
}
