//! The report of a verification.

use serde::Serialize;

use super::compare;
use super::conversion::Conversion;
use super::proof::{Difference, ValuesReport};
use super::rounding::Rounding;
use super::unchanged::UnchangedReport;
use super::{RTOL, VerifyOptions};
use crate::analysis::Analysis;
use crate::graph::sizes::Sizes;
use crate::runtime::Runtime;

/// The error of one output in one run.
#[derive(Clone, Debug, Serialize)]
pub struct OutputError {
    /// Name of the output.
    pub output: String,
    /// Largest absolute difference.
    pub absolute: f64,
    /// The same divided by the largest magnitude of the reference.
    pub relative: f64,
    /// Number of elements that are infinite or NaN in both networks.
    pub not_finite: usize,
    /// Whether the error is within tolerance, or rounding explains it.
    pub passed: bool,
    /// How much rounding alone changes the output: the largest change of any element if every value of the original is
    /// changed by up to `2^-23` of itself. `None`: the output is within tolerance, or rounding does not explain the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_by_rounding: Option<f64>,
    /// Whether agreement proves anything: all elements are finite, they are not all equal, and the error is small relative
    /// to their range.
    pub conclusive: bool,
}

impl OutputError {
    /// Judges the difference of an output; the tolerances are relative and absolute.
    pub(super) fn new(output: &str, difference: &compare::Difference, (rtol, atol): (f64, f64)) -> Self {
        Self {
            output: output.to_owned(),
            absolute: difference.absolute,
            relative: difference.relative(),
            not_finite: difference.not_finite,
            passed: difference.is_within(rtol, atol),
            moved_by_rounding: None,
            conclusive: difference.is_conclusive(rtol),
        }
    }
}

/// A node that standard operators replaced for the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StandIn {
    /// The name of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
}

/// One run on one set of inputs.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Sizes of the symbolic dimensions.
    pub sizes: Sizes,
    /// Whether both networks were computed in float32 instead of their own half precision.
    pub widened: bool,
    /// Whether quantised activations were not rounded to quantisation steps.
    pub unrounded: bool,
    /// Whether the file ran as it was [converted](VerifyReport::conversion) after the cut, against its unconverted form.
    pub converted: bool,
    /// Relative tolerance that was applied.
    pub rtol: f64,
    /// The errors of all outputs.
    pub outputs: Vec<OutputError>,
}

impl RunReport {
    /// Whether every output is within tolerance.
    pub fn passed(&self) -> bool {
        self.outputs.iter().all(|output| output.passed)
    }

    /// Returns the worst relative error of its outputs.
    pub fn worst(&self) -> f64 {
        self.outputs.iter().map(|output| output.relative).fold(0.0, f64::max)
    }
}

/// The result of verification.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Whether every output of every run is within tolerance, and this proves something.
    pub passed: bool,
    /// Relative tolerance in the model's own precision.
    pub rtol: f64,
    /// Absolute tolerance that was applied.
    pub atol: f64,
    /// All runs.
    pub runs: Vec<RunReport>,
    /// Why the pruned file could not run, or why the runs prove nothing. `None`: neither is the case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The first value that differs, in the order of the graph. `None`: no value differs, or values were not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<Difference>,
    /// The comparison with the original without a run. `None`: it has not been done, or has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<UnchangedReport>,
    /// The comparison of the values between inputs and outputs. `None`: they were not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<ValuesReport>,
    /// How the file was converted after it was cut. `None`: it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion: Option<Conversion>,
    /// Nodes of the pruned file that standard operators replaced because ONNX Runtime has no CPU kernel for them.
    pub stand_ins: Vec<StandIn>,
    /// What was not compared in the usual way, and why.
    pub notes: Vec<String>,
    /// The version of ONNX Runtime.
    pub onnxruntime: String,
}

impl VerifyReport {
    /// Creates the report of a verification in which nothing has run.
    pub(super) fn new(rounding: Rounding, runtime: &Runtime, options: &VerifyOptions) -> Self {
        Self {
            passed: true,
            rtol: options.rtol.unwrap_or(rounding.tolerance(RTOL)),
            atol: options.atol,
            runs: Vec::new(),
            failure: None,
            first_difference: None,
            unchanged: None,
            values: None,
            conversion: None,
            stand_ins: Vec::new(),
            notes: Vec::new(),
            onnxruntime: runtime.version().to_owned(),
        }
    }

    /// Creates the report of a file that is wrong without having run.
    pub(super) fn failed(analysis: &Analysis, runtime: &Runtime, options: &VerifyOptions, why: String) -> Self {
        Self { passed: false, failure: Some(why), ..Self::new(Rounding::of(analysis), runtime, options) }
    }

    /// Returns the worst relative error of all outputs.
    pub fn worst(&self) -> f64 {
        self.runs.iter().map(RunReport::worst).fold(0.0, f64::max)
    }
}
