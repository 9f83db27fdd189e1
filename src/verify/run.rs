//! The runs of one verification, and their evaluation.

use std::collections::{HashMap, VecDeque};

use super::compare::Difference;
use super::locate::compare_values;
use super::pair::Pair;
use super::proof::{Fault, Proof, ROUNDINGS};
use super::{OutputError, RunReport, Variant, VerifyReport};
use crate::analysis::Analysis;
use crate::array::Array;
use crate::error::Error;
use crate::graph::Reader;
use crate::lower;
use crate::operator::reference::{KeptAxes, Reference};
use crate::runtime::{Runtime, RuntimeError, Session, SessionOptions};

/// Number of sets of sizes of symbolic dimensions on which a pruned file is compared.
const RUNS: usize = 2;

/// The reference that a pruned network is compared with.
pub(super) struct Expected<'a> {
    /// A session of the reference. `None`: the proof computes its outputs, or no session has been needed.
    session: Option<Session>,
    proof: Option<Proof<'a>>,
    /// Whether only outputs are compared.
    is_plain: bool,
}

impl<'a> Expected<'a> {
    /// Returns the reference without a proof.
    pub(super) fn plain(session: Session) -> Self {
        Self { session: Some(session), proof: None, is_plain: true }
    }

    /// Returns the reference with the proof.
    pub(super) fn proving(proof: Proof<'a>) -> Self {
        Self { session: None, proof: Some(proof), is_plain: false }
    }
}

/// A verification in progress.
pub(super) struct Verification<'a> {
    pub(super) analysis: &'a Analysis,
    pub(super) kept: &'a HashMap<Reader, KeptAxes>,
    pub(super) reference: Reference,
    pub(super) runtime: &'a Runtime,
    pub(super) report: VerifyReport,
    /// Whether the user has set tolerances. Rounding is then no excuse for a difference beyond them.
    pub(super) is_strict: bool,
}

impl Verification<'_> {
    /// Creates a session of the original file.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn original(&self) -> Result<Session, Error> {
        lower::session(self.runtime, &self.analysis.model, &SessionOptions::default())
    }

    /// Returns the error for a network that must run and does not.
    pub(super) fn unmet(&self, error: &RuntimeError, what: &str) -> Error {
        let text = || format!("the {what} does not run in ONNX Runtime: {error}");
        self.foreign(error).unwrap_or_else(|| Error::unmet(text()).in_file(self.analysis.model.path()))
    }

    /// Returns the error that nothing can be verified, if ONNX Runtime lacks an operator of the network.
    pub(super) fn foreign(&self, error: &RuntimeError) -> Option<Error> {
        let unknown = lower::foreign(&self.analysis.model, error, "the cut can't be verified")?;
        Some(unknown.hint(
            "--no-verify writes the cut unverified; compare the two files in the engine that has the operator, or \
             replace the node with standard operators before pruning",
        ))
    }

    /// Records that the pruned file is wrong.
    fn fail(&mut self, why: String) {
        self.report.passed = false;
        self.report.failure = Some(why);
    }

    /// Compares both networks on up to [`RUNS`] of the variants, until something differs. Returns the variants on which
    /// they ran.
    ///
    /// # Errors
    /// The reference runs on none of the variants.
    pub(super) fn run<'p>(
        &mut self,
        pair: &Pair<'_>,
        rtol: f64,
        mut expected: Expected<'p>,
        of_pruned: Result<Session, RuntimeError>,
        variants: Vec<Variant>,
    ) -> Result<Vec<Variant>, Error> {
        let mut of_pruned = match of_pruned {
            Ok(session) => session,
            Err(error) => {
                if let Some(unknown) = self.foreign(&error) {
                    return Err(unknown);
                }
                self.fail(format!(
                    "the pruned file does not load in ONNX Runtime: {error}; check that the original loads, and \
                     correct it if it does not"
                ));
                return Ok(Vec::new());
            }
        };
        let (mut refused, mut ran) = (None, Vec::new());
        let mut variants = VecDeque::from(variants);
        // Outputs of the proof for the next variants. It computes all runs at once, so that its sessions are created once.
        let mut ahead = VecDeque::new();
        while ran.len() < RUNS {
            if let (Some(proof), true) = (&mut expected.proof, ahead.is_empty()) {
                let next: Vec<_> =
                    variants.iter().take(RUNS - ran.len()).map(|(_, inputs)| pair.inputs(inputs)).collect();
                match proof.outputs(&next) {
                    Ok(outputs) => ahead.extend(outputs),
                    Err(error) => self.give_up(&mut expected, &error),
                }
            }
            let Some((sizes, inputs)) = variants.pop_front() else { break };
            let converted = pair.inputs(&inputs);
            let outputs = match self.expected(pair, &mut expected, &converted, ahead.pop_front()) {
                Ok(outputs) => outputs,
                Err(error) => {
                    // A network may reject sizes that it declares. The original itself must then reject them too.
                    if self.original().is_ok_and(|mut original| original.run(&inputs).is_ok()) {
                        return Err(self.unmet(&error, "reference graph"));
                    }
                    refused.get_or_insert((error, sizes));
                    continue;
                }
            };
            let found = match of_pruned.run(&converted) {
                Ok(outputs) => outputs,
                Err(error) => {
                    self.fail(format!("the pruned file does not run in ONNX Runtime: {error}"));
                    return Ok(ran);
                }
            };
            let graph = self.analysis.model.graph();
            let is_output = |name: &str| graph.output.iter().any(|output| output.name == name);
            let errors = outputs.iter().filter(|(name, _)| is_output(name)).map(|(name, expected)| {
                let found = found.iter().find(|(other, _)| other == name).map(|(_, array)| array);
                let difference = Difference::of_output(expected, found);
                OutputError::new(name, &difference, (rtol, self.report.atol))
            });
            let run = RunReport {
                sizes: sizes.clone(),
                widened: pair.is_widened,
                unrounded: pair.is_unrounded,
                converted: false,
                rtol,
                outputs: errors.collect(),
            };
            let passed = run.passed();
            self.report.runs.push(run);
            if let Some(proof) = &mut expected.proof {
                match proof.take(&outputs, &converted) {
                    Ok(()) => {}
                    Err(Fault::Differs(first)) => {
                        self.report.passed = false;
                        self.report.first_difference = Some(first);
                        return Ok(ran);
                    }
                    Err(Fault::Failed(error)) => self.give_up(&mut expected, &error),
                }
            }
            if !passed && (self.is_strict || !self.is_rounding(&expected, &outputs, &converted)) {
                self.report.passed = false;
                let values = self.compare_values(pair, rtol, &converted);
                self.report.first_difference = values.ok().and_then(|(_, first)| first);
                return Ok(ran);
            }
            ran.push((sizes, inputs));
        }
        if let (Some((error, sizes)), true) = (refused, ran.is_empty()) {
            let sizes: Vec<String> = sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
            let at = if sizes.is_empty() { String::new() } else { format!(" at {}", sizes.join(" ")) };
            return Err(self
                .unmet(&error, &format!("original network{at}"))
                .hint("check that ONNX Runtime runs it; pass other sizes with --size, or inputs with --inputs"));
        }
        self.finish(pair, rtol, expected, &ran);
        Ok(ran)
    }

    /// Whether rounding explains the differences of the outputs of the last run. It does if every node agrees on the
    /// original's values, and if rounding every value of the original changes its outputs as much.
    fn is_rounding(
        &mut self,
        expected: &Expected<'_>,
        outputs: &[(String, Array)],
        inputs: &[(String, Array)],
    ) -> bool {
        let (Some(proof), Some(run)) = (&expected.proof, self.report.runs.last_mut()) else { return false };
        let Ok(moved) = proof.moved_by_rounding(outputs, inputs) else { return false };
        let moved = |output: &OutputError| moved.get(&output.output).copied().unwrap_or(0.0);
        let explained =
            |output: &OutputError| output.absolute.is_finite() && output.absolute <= ROUNDINGS * moved(output);
        if !run.outputs.iter().filter(|output| !output.passed).all(explained) {
            return false;
        }
        for output in run.outputs.iter_mut().filter(|output| !output.passed) {
            (output.moved_by_rounding, output.passed, output.conclusive) = (Some(moved(output)), true, false);
        }
        true
    }

    /// Adds notes on outputs whose differences rounding explains. They pass if every other value is proved.
    fn settle_rounding(&mut self, is_proved: bool) {
        let outputs = self.report.runs.iter_mut().flat_map(|run| &mut run.outputs);
        let mut notes = Vec::new();
        for output in outputs {
            let Some(moved) = output.moved_by_rounding else { continue };
            let (name, absolute) = (output.output.clone(), output.absolute);
            if !is_proved {
                output.passed = false;
                self.report.passed = false;
                notes.push(format!(
                    "output {name:?} differs by {absolute:.1e}; rounding alone changes it by {moved:.1e}, but not \
                     every value is proved"
                ));
                continue;
            }
            notes.push(format!(
                "output {name:?} is inconclusive on these inputs: it differs by {absolute:.1e}, and rounding alone \
                 changes it by {moved:.1e}; every node agrees on the original's values"
            ));
        }
        self.report.notes.extend(notes);
    }

    /// Returns the outputs of the reference, with those of all comparisons if the proof computed them.
    fn expected(
        &mut self,
        pair: &Pair<'_>,
        expected: &mut Expected<'_>,
        inputs: &[(String, Array)],
        of_proof: Option<Result<Vec<(String, Array)>, RuntimeError>>,
    ) -> Result<Vec<(String, Array)>, RuntimeError> {
        match of_proof.filter(|_| expected.proof.is_some()) {
            Some(Ok(outputs)) => return Ok(outputs),
            Some(Err(error)) => {
                // Either the sizes or the comparison may be the cause.
                let mut plain = pair.reference_session(self.runtime)?;
                let outputs = plain.run(inputs)?;
                expected.session = Some(plain);
                self.give_up(expected, &error);
                return Ok(outputs);
            }
            None => {}
        }
        match &mut expected.session {
            Some(session) => session.run(inputs),
            None => {
                let mut plain = pair.reference_session(self.runtime)?;
                let outputs = plain.run(inputs)?;
                expected.session = Some(plain);
                Ok(outputs)
            }
        }
    }

    /// Continues without the proof by induction.
    fn give_up(&mut self, expected: &mut Expected<'_>, error: &RuntimeError) {
        expected.proof = None;
        let what = "in one of these runs, the nodes could not be compared one by one, only the networks as a whole";
        let text = format!("{what}: {error}");
        self.report.notes.push(text);
    }

    /// Completes the verification when both networks have run.
    fn finish(&mut self, pair: &Pair<'_>, rtol: f64, expected: Expected<'_>, ran: &[Variant]) {
        let Some((_, inputs)) = ran.first() else { return };
        let Some(mut proof) = expected.proof else {
            self.settle_rounding(false);
            // Half precision is compared once more in single precision.
            if pair.is_widened || pair.is_unrounded || !expected.is_plain {
                self.prove_by_values(pair, rtol, ran);
            }
            return;
        };
        drop(expected.session);
        match proof.open(&pair.inputs(inputs)) {
            Ok(()) => {}
            Err(Fault::Differs(first)) => {
                self.report.passed = false;
                self.report.first_difference = Some(first);
                return;
            }
            Err(Fault::Failed(error)) => {
                let text = format!("nodes whose values can't show an error could not run on random inputs: {error}");
                self.report.notes.push(text);
            }
        }
        let values = proof.report();
        if values.compared > 0 && values.conclusive == 0 {
            self.fail_unproved(&values);
        }
        self.settle_rounding(values.unproven.is_empty());
        self.report.values = Some(values);
    }

    fn fail_unproved(&mut self, values: &super::ValuesReport) {
        self.fail(format!(
            "nothing is proved: the outputs, and all {} values that the cut touches, are constant, tiny or not finite; \
             use other inputs with --inputs",
            values.compared
        ));
    }

    /// Compares the values between inputs and outputs, with each network run as a whole on the inputs of the first run.
    pub(super) fn prove_by_values(&mut self, pair: &Pair<'_>, rtol: f64, variants: &[Variant]) {
        let Some((_, inputs)) = variants.first() else {
            return;
        };
        let inputs = pair.inputs(inputs);
        match self.compare_values(pair, rtol, &inputs) {
            Ok((_, Some(first))) => {
                self.report.passed = false;
                self.report.first_difference = Some(first);
            }
            Ok((values, None)) => {
                if values.compared > 0 && values.conclusive == 0 {
                    self.fail_unproved(&values);
                }
                self.report.values = Some(values);
            }
            Err(error) => self.fail(format!("the values between inputs and outputs can't be compared: {error}")),
        }
    }

    fn compare_values(
        &self,
        pair: &Pair<'_>,
        rtol: f64,
        inputs: &[(String, Array)],
    ) -> Result<(super::ValuesReport, Option<super::Difference>), RuntimeError> {
        let tolerance = (rtol, self.report.atol);
        compare_values(self.analysis, self.kept, &self.reference, pair, self.runtime, inputs, tolerance)
    }
}
