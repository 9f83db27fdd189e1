//! The runs of one verification, and what they amount to.

use std::collections::HashMap;

use super::compare::Difference;
use super::locate::compare_values;
use super::pair::Pair;
use super::{OutputError, RunReport, Variant, VerifyReport};
use crate::analysis::Analysis;
use crate::array::Array;
use crate::error::Error;
use crate::graph::Reader;
use crate::lower;
use crate::operator::reference::{KeptAxes, Reference};
use crate::runtime::{Runtime, RuntimeError, Session, SessionOptions};

/// Sets of sizes of symbolic dimensions on which a pruned file is compared.
const RUNS: usize = 2;

/// A verification under way.
pub(super) struct Verification<'a> {
    pub(super) analysis: &'a Analysis,
    pub(super) kept: &'a HashMap<Reader, KeptAxes>,
    pub(super) reference: Reference,
    pub(super) runtime: &'a Runtime,
    pub(super) report: VerifyReport,
}

impl Verification<'_> {
    /// A session of the original file.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn original(&self) -> Result<Session, Error> {
        lower::session(self.runtime, &self.analysis.model, &SessionOptions::default())
    }

    /// The error of a network that must run and does not.
    pub(super) fn unmet(&self, error: &RuntimeError, what: &str) -> Error {
        let model = &self.analysis.model;
        match lower::foreign(model, error, "the cut can't be verified") {
            Some(unknown) => unknown.hint(
                "--no-verify writes the cut without a proof; compare the two files in the engine that has the operator, or \
                 replace the node by standard operators before pruning",
            ),
            None => Error::unmet(format!("the {what} does not run in ONNX Runtime: {error}")).in_file(model.path()),
        }
    }

    /// Notes that the pruned file is wrong.
    fn fail(&mut self, why: String) {
        self.report.passed = false;
        self.report.failure = Some(why);
    }

    /// Compares the outputs of both networks on up to [`RUNS`] of the variants, until one differs. Returns the variants
    /// on which they ran.
    ///
    /// # Errors
    /// The reference runs on none.
    pub(super) fn run(
        &mut self,
        pair: &Pair<'_>,
        rtol: f64,
        mut of_reference: Session,
        of_pruned: Result<Session, RuntimeError>,
        variants: Vec<Variant>,
    ) -> Result<Vec<Variant>, Error> {
        let mut of_pruned = match of_pruned {
            Ok(session) => session,
            Err(error) => {
                self.fail(format!("the pruned file does not load in ONNX Runtime: {error}"));
                return Ok(Vec::new());
            }
        };
        let (mut refused, mut ran) = (None, Vec::new());
        for (sizes, inputs) in variants {
            if ran.len() == RUNS {
                break;
            }
            let converted = pair.inputs(&inputs);
            let expected = match of_reference.run(&converted) {
                Ok(outputs) => outputs,
                Err(error) => {
                    // A network may refuse sizes that it declares; then so must the original itself.
                    if self.original().is_ok_and(|mut original| original.run(&inputs).is_ok()) {
                        return Err(self.unmet(&error, "reference graph"));
                    }
                    refused.get_or_insert(error);
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
            let outputs = expected
                .iter()
                .map(|(name, expected)| {
                    let found = found.iter().find(|(other, _)| other == name).map(|(_, array)| array);
                    let difference = Difference::of_output(expected, found);
                    OutputError {
                        output: name.clone(),
                        absolute: difference.absolute,
                        relative: difference.relative(),
                        not_finite: difference.not_finite,
                        passed: difference.is_within(rtol, self.report.atol),
                        conclusive: difference.is_conclusive(rtol),
                    }
                })
                .collect();
            let run = RunReport { sizes: sizes.clone(), widened: pair.is_widened, rtol, outputs };
            let passed = run.passed();
            self.report.runs.push(run);
            if !passed {
                self.report.passed = false;
                let values = self.compare_values(pair, rtol, &converted);
                self.report.first_difference = values.ok().and_then(|(_, first)| first);
                return Ok(ran);
            }
            ran.push((sizes, inputs));
        }
        match refused {
            Some(error) if ran.is_empty() => Err(self
                .unmet(&error, "original network")
                .hint("give the sizes at which it runs with --size, or inputs with --inputs")),
            _ => Ok(ran),
        }
    }

    /// Compares the values in between where the outputs agree but prove nothing, on the inputs of the first run.
    pub(super) fn prove_by_values(&mut self, pair: &Pair<'_>, rtol: f64, variants: &[Variant]) {
        let is_proved = |run: &RunReport| run.outputs.iter().all(|output| output.conclusive);
        let runs = || self.report.runs.iter().filter(|run| run.widened == pair.is_widened);
        let Some((_, inputs)) = variants.first() else {
            return;
        };
        if runs().all(is_proved) {
            return;
        }
        let inputs = pair.inputs(inputs);
        match self.compare_values(pair, rtol, &inputs) {
            Ok((_, Some(first))) => {
                self.report.passed = false;
                self.report.first_difference = Some(first);
            }
            Ok((values, None)) if values.compared > 0 && values.conclusive == 0 => self.fail(format!(
                "nothing is proved: the outputs, and all {} values that the cut touches, are constant, tiny or not \
                 finite; give other inputs with --inputs",
                values.compared
            )),
            Ok((values, None)) => self.report.values = Some(values),
            Err(error) => self.fail(format!(
                "nothing is proved: the outputs are constant, tiny or not finite, and the values in between can't be \
                 compared: {error}"
            )),
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
