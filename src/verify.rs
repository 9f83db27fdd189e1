//! Verification: the pruned file computes what the original computes when every removed index is masked.
//!
//! Both the pruned file and the [reference graph](mod@reference), which is built from the original file and the plan alone,
//! run in ONNX Runtime on the same random inputs, at two sizes of every symbolic dimension. Networks of half precision
//! run once more in single precision, widened, because rounding would hide single channels. Where the outputs
//! differ, or agree in a way that proves nothing, both run with all their values as outputs: to name the first that is
//! wrong, or to compare those instead.

pub mod reference;

mod changed;

mod compare;

mod locate;

mod pair;

mod run;

mod scatter;

mod widen;

use std::collections::HashMap;

use serde::Serialize;

use crate::analysis::Analysis;
use crate::array::Array;
use crate::error::Error;
use crate::graph::Reader;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::lower::{Extent, Lowered, runnable_on_cpu};
use crate::onnx::{GraphProto, ModelProto};
use crate::operator::reference::{KeptAxes, Reference};
use crate::runtime::{Runtime, SessionOptions};
use pair::Pair;
use run::Verification;

use crate::inputs::{InputOptions, Variant, input_variants};
pub use changed::verify_plan;
pub use locate::{Difference, ValuesReport};

/// How strict verification is and on what it runs.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Allowed error relative to the largest magnitude of an output; `None` chooses by the precision of each run.
    pub rtol: Option<f64>,
    /// Allowed absolute error on top.
    pub atol: f64,
    /// Seed of the random inputs.
    pub seed: u64,
    /// Inputs to use instead of random ones.
    pub inputs: Option<Vec<(String, Array)>>,
    /// Sizes of symbolic dimensions.
    pub sizes: Sizes,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { rtol: None, atol: 1e-6, seed: 0, inputs: None, sizes: Sizes::new() }
    }
}

impl VerifyOptions {
    /// What decides the inputs of the networks.
    pub(crate) fn inputs(&self) -> InputOptions<'_> {
        InputOptions { inputs: self.inputs.as_deref(), sizes: &self.sizes, seed: self.seed }
    }
}

/// The error of one output in one run.
#[derive(Clone, Debug, Serialize)]
pub struct OutputError {
    /// Name of the output.
    pub output: String,
    /// Largest absolute difference.
    pub absolute: f64,
    /// The same over the largest magnitude of the reference.
    pub relative: f64,
    /// Elements that are infinite or not a number in both networks.
    pub not_finite: usize,
    /// Whether it is within tolerance.
    pub passed: bool,
    /// Whether that proves anything: all elements are finite, they are not all the same, and the error is small against
    /// the range that they span.
    pub conclusive: bool,
}

/// One run on one set of inputs.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Sizes of the symbolic dimensions.
    pub sizes: Sizes,
    /// Whether both networks were computed in float32 instead of their own half precision.
    pub widened: bool,
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

    /// The worst relative error of its outputs.
    pub fn worst(&self) -> f64 {
        self.outputs.iter().map(|output| output.relative).fold(0.0, f64::max)
    }
}

/// The result of verification.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Whether every output of every run is within tolerance, and something was proved by it.
    pub passed: bool,
    /// Relative tolerance in the model's own precision.
    pub rtol: f64,
    /// Absolute tolerance that was applied.
    pub atol: f64,
    /// All runs.
    pub runs: Vec<RunReport>,
    /// Why the pruned file could not be run, or what it was run on proves nothing, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The first value that differs, in the order of the graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<Difference>,
    /// The comparison of the values in between, where the outputs prove nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<ValuesReport>,
    /// What was not compared as it is meant to be, and why.
    pub notes: Vec<String>,
    /// ONNX Runtime's version.
    pub onnxruntime: String,
}

impl VerifyReport {
    /// Nothing has run yet.
    fn new(is_half: bool, runtime: &Runtime, options: &VerifyOptions) -> Self {
        Self {
            passed: true,
            rtol: options.rtol.unwrap_or(if is_half { RTOL_HALF } else { RTOL }),
            atol: options.atol,
            runs: Vec::new(),
            failure: None,
            first_difference: None,
            values: None,
            notes: Vec::new(),
            onnxruntime: runtime.version().to_owned(),
        }
    }

    /// A file that is wrong without having run.
    fn failed(analysis: &Analysis, runtime: &Runtime, options: &VerifyOptions, why: String) -> Self {
        Self { passed: false, failure: Some(why), ..Self::new(has_half(analysis), runtime, options) }
    }

    /// The worst relative error of all outputs.
    pub fn worst(&self) -> f64 {
        self.runs.iter().map(RunReport::worst).fold(0.0, f64::max)
    }
}

/// The reference of a model as a file that ONNX Runtime can load.
///
/// # Errors
/// An operator that stands where something was removed has no reference rule.
pub fn reference_model(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
) -> Result<(ModelProto, Reference), Error> {
    let lowered = Lowered::new(&analysis.model, &analysis.graph, &analysis.operators, &analysis.facts, Extent::All)?;
    let reference = reference::build(&lowered, kept).map_err(|unmasked| {
        let node = &analysis.graph.nodes[unmasked.node];
        Error::unsupported(format!("the reference graph can't be built: {}", unmasked.cause))
            .in_file(analysis.model.path())
            .at_node(&node.name, node.op())
            .hint("report the model; --no-verify writes it unverified")
    })?;
    let (proto, graph) = (lowered.model.proto(), lowered.model.graph());
    let mut initializer = graph.initializer.clone();
    initializer.extend(reference.builder.initializers.iter().cloned());
    let model = ModelProto {
        ir_version: proto.ir_version,
        opset_import: proto.opset_import.clone(),
        graph: Some(GraphProto {
            name: "reference".to_owned(),
            node: reference.builder.nodes.clone(),
            initializer,
            sparse_initializer: graph.sparse_initializer.clone(),
            input: graph.input.clone(),
            output: graph.output.clone(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    Ok((model, reference))
}

/// Relative tolerance in single precision.
const RTOL: f64 = 1e-4;

/// Relative tolerance in half precision, where rounding alone differs by so much.
const RTOL_HALF: f64 = 2e-2;

/// Whether any value of the model has half precision.
fn has_half(analysis: &Analysis) -> bool {
    analysis.facts.values.iter().flatten().any(|fact| widen::is_half(fact.dtype as i32))
}

/// Compares a pruned file with the reference of the original under a plan.
///
/// # Errors
/// The reference can't be built or run. A pruned file that does not run or differs is no error but a report that did
/// not pass.
pub fn verify(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
    pruned: &Model,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<VerifyReport, Error> {
    let (model, reference) = reference_model(analysis, kept)?;
    let is_half = has_half(analysis);
    let lowered = runnable_on_cpu(pruned);
    let is_lowered = matches!(lowered, Ok(Some(_)));
    let native = Pair::new(model, &analysis.model, pruned, lowered.as_ref().ok().cloned().flatten());
    let mut verification =
        Verification { analysis, kept, reference, runtime, report: VerifyReport::new(is_half, runtime, options) };
    if let Err(error) = lowered {
        verification.report.passed = false;
        verification.report.failure = Some(format!("the pruned file is not valid: {error}"));
        return Ok(verification.report);
    }
    let mut variants = input_variants(analysis, &options.inputs())?;
    let rtol = verification.report.rtol;
    match native.reference_session(runtime) {
        Ok(of_reference) => {
            // As applications run it: from its file, with every optimization.
            let of_pruned = if is_lowered {
                native.pruned_session(runtime)
            } else {
                runtime.session_from_file(pruned.path(), &SessionOptions::default())
            };
            variants = verification.run(&native, rtol, of_reference, of_pruned, variants)?;
        }
        Err(error) if is_half && verification.original().is_err() => {
            let text = format!("ONNX Runtime does not load the original in its own precision: {error}");
            verification.report.notes.push(text);
        }
        Err(error) => return Err(verification.unmet(&error, "reference graph")),
    }
    if !is_half {
        if verification.report.passed {
            verification.prove_by_values(&native, rtol, &variants);
        }
        return Ok(verification.report);
    }
    let (wide, wide_rtol) = (native.widened(), options.rtol.unwrap_or(RTOL));
    if verification.report.passed {
        match wide.reference_session(runtime).and_then(|of_reference| Ok((of_reference, wide.pruned_session(runtime)?)))
        {
            Ok((of_reference, of_pruned)) => {
                // Another size would only repeat what the runs in half precision have shown.
                if !verification.report.runs.is_empty() {
                    variants.truncate(1);
                }
                variants = verification.run(&wide, wide_rtol, of_reference, Ok(of_pruned), variants)?;
            }
            Err(error) if verification.report.runs.is_empty() => {
                return Err(verification.unmet(&error, "reference graph in float32"));
            }
            Err(error) => {
                let text =
                    format!("compared in half precision only, whose tolerance may hide single channels: {error}");
                verification.report.notes.push(text);
                verification.prove_by_values(&native, rtol, &variants);
                return Ok(verification.report);
            }
        }
    }
    if verification.report.passed {
        verification.prove_by_values(&wide, wide_rtol, &variants);
    }
    Ok(verification.report)
}
