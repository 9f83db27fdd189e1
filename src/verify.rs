//! Verification: the pruned file computes what the original computes when every removed index is masked.
//!
//! Both the pruned file and the [reference graph](mod@reference), which is built from the original file and the plan alone,
//! run in ONNX Runtime on the same random inputs, at two sizes of every symbolic dimension. Where they differ, both run
//! once more with all their values as outputs to name the first that is wrong.

pub mod reference;

mod inputs;

mod locate;

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use serde::Serialize;

use crate::array::Array;
use crate::error::Error;
use crate::load::Model;
use crate::macs::Sizes;
use crate::onnx::{GraphProto, ModelProto};
use crate::pipeline::Analysis;
use crate::runtime::{Optimization, Runtime, RuntimeError, Session, SessionOptions};
use reference::{KeptAxes, Reference};

pub use inputs::{draw_inputs, size_variants};
pub use locate::Difference;

/// Sizes of symbolic dimensions on which a pruned file is compared.
const RUNS: usize = 2;

/// How strict verification is and on what it runs.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Allowed error relative to the largest magnitude of an output; `None` chooses by the model's precision.
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

/// The error of one output in one run.
#[derive(Clone, Debug, Serialize)]
pub struct OutputError {
    /// Name of the output.
    pub output: String,
    /// Largest absolute difference.
    pub absolute: f64,
    /// The same over the largest magnitude of the reference.
    pub relative: f64,
    /// Whether it is within tolerance.
    pub passed: bool,
    /// Share of its elements that are finite in the reference; nothing is learnt from the others.
    pub finite: f64,
}

/// One run on one set of inputs.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Sizes of the symbolic dimensions.
    pub sizes: Sizes,
    /// The errors of all outputs.
    pub outputs: Vec<OutputError>,
}

/// The result of verification.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Whether every output of every run is within tolerance.
    pub passed: bool,
    /// Relative tolerance that was applied.
    pub rtol: f64,
    /// Absolute tolerance that was applied.
    pub atol: f64,
    /// All runs.
    pub runs: Vec<RunReport>,
    /// Why the pruned file could not be run, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The first value that differs, in the order of the graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<Difference>,
    /// ONNX Runtime's version.
    pub onnxruntime: String,
}

impl VerifyReport {
    /// The worst relative error of all outputs.
    pub fn worst(&self) -> f64 {
        self.runs.iter().flat_map(|run| &run.outputs).map(|output| output.relative).fold(0.0, f64::max)
    }

    /// What the result does not tell: outputs that are NaN or infinite, which weights with such entries make.
    pub fn warnings(&self) -> Vec<String> {
        let mut finite: BTreeMap<&str, f64> = BTreeMap::new();
        for output in self.runs.iter().flat_map(|run| &run.outputs) {
            let least = finite.entry(&output.output).or_insert(1.0);
            *least = least.min(output.finite);
        }
        let text = |(name, share): (&str, f64)| match share {
            0.0 => format!("output {name:?} holds no finite number, so that verification says nothing of it"),
            _ => format!("{:.1} % of output {name:?} is not finite and says nothing of the cut", 100.0 * (1.0 - share)),
        };
        finite.into_iter().filter(|(_, share)| *share < 1.0).map(text).collect()
    }
}

/// The reference of a model as a file that ONNX Runtime can load.
///
/// # Errors
/// An operator that stands where something was removed has no reference rule.
pub fn reference_model(
    analysis: &Analysis<'_>,
    kept: &HashMap<(usize, usize), KeptAxes>,
) -> Result<(ModelProto, Reference), Error> {
    let reference = Reference::build(&analysis.graph, &analysis.facts, kept).map_err(|unmasked| {
        let node = &analysis.graph.nodes[unmasked.node];
        Error::unmet(format!("the reference graph can't be built: {}", unmasked.cause))
            .in_file(analysis.model.path())
            .at_node(&node.name, node.op())
            .hint("report the model; --no-verify writes it unverified")
    })?;
    let (proto, graph) = (analysis.model.proto(), analysis.model.graph());
    let mut initializer = graph.initializer.clone();
    initializer.extend(reference.initializers.iter().cloned());
    let model = ModelProto {
        ir_version: proto.ir_version,
        opset_import: proto.opset_import.clone(),
        graph: Some(GraphProto {
            name: "reference".to_owned(),
            node: reference.nodes.clone(),
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

fn session_of(runtime: &Runtime, model: &ModelProto, source: &Model) -> Result<Session, RuntimeError> {
    let options = SessionOptions {
        optimization: Optimization::Basic,
        external_data_folder: Some(source.folder().to_owned()),
        ..SessionOptions::default()
    };
    runtime.session_from_bytes(&model.encode_to_vec(), &options)
}

/// The relative tolerance that fits the precision of the weights.
fn default_rtol(analysis: &Analysis<'_>) -> f64 {
    let is_half = analysis
        .facts
        .values
        .iter()
        .flatten()
        .any(|fact| matches!(fact.dtype, crate::onnx::DataType::Float16 | crate::onnx::DataType::Bfloat16));
    if is_half { 2e-2 } else { 1e-4 }
}

/// Compares a pruned file with the reference of the original under a plan.
///
/// # Errors
/// The reference can't be built or run. A pruned file that does not run or differs is no error but a report that did
/// not pass.
pub fn verify(
    analysis: &Analysis<'_>,
    kept: &HashMap<(usize, usize), KeptAxes>,
    pruned: &Model,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<VerifyReport, Error> {
    let (model, reference) = reference_model(analysis, kept)?;
    let unmet = |error: RuntimeError, what: &str| {
        Error::unmet(format!("the {what} does not run in ONNX Runtime: {error}")).in_file(analysis.model.path())
    };
    let mut of_reference =
        session_of(runtime, &model, analysis.model).map_err(|error| unmet(error, "reference graph"))?;
    let mut report = VerifyReport {
        passed: true,
        rtol: options.rtol.unwrap_or_else(|| default_rtol(analysis)),
        atol: options.atol,
        runs: Vec::new(),
        failure: None,
        first_difference: None,
        onnxruntime: runtime.version().to_owned(),
    };
    let session_options = SessionOptions { optimization: Optimization::All, ..SessionOptions::default() };
    let of_pruned = runtime.session_from_file(pruned.path(), &session_options);
    let variants = match &options.inputs {
        Some(inputs) => vec![(Sizes::new(), inputs.clone())],
        None => size_variants(analysis, &options.sizes)
            .into_iter()
            .enumerate()
            .map(|(number, sizes)| {
                let inputs = draw_inputs(analysis, &sizes, options.seed.wrapping_add(number as u64))?;
                Ok((sizes, inputs))
            })
            .collect::<Result<Vec<_>, Error>>()?,
    };
    let mut of_pruned = match of_pruned {
        Ok(session) => session,
        Err(error) => {
            report.passed = false;
            report.failure = Some(format!("the pruned file does not load in ONNX Runtime: {error}"));
            return Ok(report);
        }
    };
    let mut refused = None;
    for (sizes, inputs) in variants {
        if report.runs.len() == RUNS {
            break;
        }
        let expected = match of_reference.run(&inputs) {
            Ok(outputs) => outputs,
            Err(error) => {
                // A network may refuse sizes that it declares; then so must the original itself.
                let original = runtime.session_from_file(analysis.model.path(), &SessionOptions::default());
                if original.is_ok_and(|mut original| original.run(&inputs).is_ok()) {
                    return Err(unmet(error, "reference graph"));
                }
                refused.get_or_insert(error);
                continue;
            }
        };
        let found = match of_pruned.run(&inputs) {
            Ok(outputs) => outputs,
            Err(error) => {
                report.passed = false;
                report.failure = Some(format!("the pruned file does not run in ONNX Runtime: {error}"));
                return Ok(report);
            }
        };
        let mut run = RunReport { sizes, outputs: Vec::new() };
        for (name, expected) in &expected {
            let found = found.iter().find(|(other, _)| other == name).map(|(_, array)| array);
            run.outputs.push(compare(name, expected, found, report.rtol, report.atol));
        }
        let passed = run.outputs.iter().all(|output| output.passed);
        report.runs.push(run);
        if !passed {
            report.passed = false;
            report.first_difference = locate::first_difference(
                analysis,
                &reference,
                &model,
                pruned,
                runtime,
                &inputs,
                (report.rtol, report.atol),
            );
            return Ok(report);
        }
    }
    match refused {
        Some(error) if report.runs.is_empty() => Err(unmet(error, "original network")
            .hint("give the sizes at which it runs with --size, or inputs with --inputs")),
        _ => Ok(report),
    }
}

/// Largest error of `found` against `expected`; a missing output or another shape is infinitely wrong.
fn compare(name: &str, expected: &Array, found: Option<&Array>, rtol: f64, atol: f64) -> OutputError {
    let (absolute, relative, scale) = match found {
        Some(found) if found.dims == expected.dims => errors(&expected.to_f64(), &found.to_f64()),
        _ => (f64::INFINITY, f64::INFINITY, 0.0),
    };
    let passed = absolute <= atol + rtol * scale;
    let elements = expected.to_f64();
    let finite = elements.iter().filter(|value| value.is_finite()).count();
    let finite = if elements.is_empty() { 1.0 } else { finite as f64 / elements.len() as f64 };
    OutputError { output: name.to_owned(), absolute, relative, passed, finite }
}

/// Largest absolute difference, the same over the largest magnitude, and that magnitude. NaN where only one side has
/// it counts as infinite.
fn errors(expected: &[f64], found: &[f64]) -> (f64, f64, f64) {
    let scale = expected.iter().filter(|value| value.is_finite()).fold(0.0f64, |scale, value| scale.max(value.abs()));
    let mut absolute = 0.0f64;
    for (a, b) in expected.iter().zip(found) {
        let difference = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
        absolute = absolute.max(if difference.is_nan() { f64::INFINITY } else { difference });
    }
    (absolute, if absolute == 0.0 { 0.0 } else { absolute / scale.max(f64::MIN_POSITIVE) }, scale)
}
