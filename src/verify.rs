//! Verification: the pruned file computes what the original computes when every removed index is masked.
//!
//! The [reference graph](mod@reference) is built from the original file and the plan alone. The pruned file and the
//! reference run in ONNX Runtime on the same random inputs, at two sizes of every symbolic dimension. Networks of half
//! precision run once more in single precision, widened, because rounding would hide single channels. If the outputs
//! differ, or if their agreement proves nothing, both networks run again with all their values as outputs. This
//! names the first value that is wrong, or compares the values instead of the outputs.

pub mod reference;

mod changed;

mod compare;

mod conversion;

mod locate;

mod pair;

mod pieces;

mod proof;

mod report;

mod rounding;

mod run;

mod scatter;

mod unchanged;

mod widen;

use std::collections::{HashMap, HashSet};

use crate::analysis::Analysis;
use crate::array::Array;
use crate::changed::ChangedWeights;
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::{Reader, ValueId};
use crate::lower::{Lowered, lowered_for_cpu, session_as_stored, stand_ins};
use crate::onnx::{GraphProto, ModelProto};
use crate::operator::reference::{KeptAxes, Reference};
use crate::runtime::{Runtime, SessionOptions};
use pair::Pair;
use proof::{Networks, Proof, as_run, lowered_original};
use reference::Unmasked;
use rounding::Rounding;
use run::{Expected, Verification};
use unchanged::{Changed, Unchanged};

use crate::inputs::{InputOptions, Purpose, Variant, input_variants};
pub use changed::verify_plan;
pub use conversion::Conversion;
pub use proof::{Difference, Unproven, ValuesReport};
pub use report::{OutputError, RunReport, StandIn, VerifyReport};
pub use unchanged::UnchangedReport;

/// The tolerances and the inputs of a verification.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Allowed error relative to the largest magnitude of an output. `None`: chosen from the precision of each run.
    pub rtol: Option<f64>,
    /// Absolute error that is allowed in addition.
    pub atol: f64,
    /// Seed of the random inputs.
    pub seed: u64,
    /// Inputs to use. `None`: random inputs.
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
    /// Returns the settings from which the inputs of the networks are generated.
    pub(crate) fn inputs(&self) -> InputOptions<'_> {
        let purpose = Purpose::Verification;
        InputOptions { inputs: self.inputs.as_deref(), sizes: &self.sizes, seed: self.seed, purpose }
    }
}

/// Converts the reason why the reference can't be built to an error.
fn unmasked(analysis: &Analysis, unmasked: &Unmasked) -> Error {
    let node = &analysis.graph.nodes[unmasked.node];
    Error::unsupported(format!("the reference graph for verification can't be built: {}", unmasked.cause))
        .in_file(analysis.model.path())
        .at_node(&node.name, node.op())
        .hint("report the model to the developers; --no-verify writes the pruned file unverified")
}

/// Returns the reference of a model as a file that ONNX Runtime can load.
///
/// # Errors
/// An operator whose input lost channels has no reference rule.
pub fn reference_model(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
) -> Result<(ModelProto, Reference), Error> {
    reference_of(analysis, &lowered_original(analysis)?, kept)
}

fn reference_of(
    analysis: &Analysis,
    lowered: &Lowered,
    kept: &HashMap<Reader, KeptAxes>,
) -> Result<(ModelProto, Reference), Error> {
    let reference = reference::build(lowered, kept).map_err(|cause| unmasked(analysis, &cause))?;
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

/// The relative tolerance in single precision.
const RTOL: f64 = 1e-4;

/// Compares a pruned file with the original under a plan. What the plan does not name is compared without a run, the
/// rest by running both networks.
///
/// # Errors
/// The reference can't be built or run. A pruned file that does not run, or that differs, is not an error: the report
/// has not passed.
pub fn verify(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
    pruned: &Model,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<VerifyReport, Error> {
    match compared(analysis, kept, pruned, runtime, None)? {
        Ok(unchanged) => prove(Cut { analysis, kept, pruned, unchanged, renamed: HashMap::new() }, runtime, options),
        Err(Changed(text)) => Ok(VerifyReport::failed(analysis, runtime, options, text)),
    }
}

/// Compares the parts of the pruned file that must equal those of the original.
fn compared(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
    pruned: &Model,
    runtime: &Runtime,
    changed: Option<&ChangedWeights>,
) -> Result<Result<Unchanged, Changed>, Error> {
    // Weights that the graph computes from constants are compared with the result of that computation.
    let Analysis { model, graph, fold, .. } = analysis;
    let cut: HashSet<ValueId> = kept
        .keys()
        .filter_map(|at| graph.nodes[at.node].input(at.slot))
        .filter(|value| fold.contains(*value))
        .collect();
    let evaluated = fold.evaluate(model, graph, Some(runtime), &|value| cut.contains(&value));
    let mut result = unchanged::compare(analysis, kept, pruned, changed)?;
    if let (Ok(unchanged), Err(error)) = (&mut result, evaluated) {
        unchanged.notes.push(error.to_string());
    }
    Ok(result)
}

/// A pruned file with everything that its runs need.
struct Cut<'a> {
    /// The original, in which weights may have changed.
    analysis: &'a Analysis,
    kept: &'a HashMap<Reader, KeptAxes>,
    pruned: &'a Model,
    unchanged: Unchanged,
    /// New names of first outputs in the original, by their names in the file.
    renamed: HashMap<String, String>,
}

/// Runs a pruned file and the reference of the original.
fn prove(cut: Cut<'_>, runtime: &Runtime, options: &VerifyOptions) -> Result<VerifyReport, Error> {
    let mut report = run_both(cut, runtime, options)?;
    if !report.passed {
        report.notes.extend(options.inputs.iter().flatten().filter_map(|(name, array)| constant_note(name, array)));
    }
    Ok(report)
}

/// Returns a note on a failure if all elements of a given input are equal: a norm then divides by nearly zero, so all
/// later values may be rounding.
fn constant_note(name: &str, array: &Array) -> Option<String> {
    let values = array.to_f64();
    let (first, others) = values.split_first()?;
    let is_constant =
        array.element_type().is_float() && !others.is_empty() && others.iter().all(|other| other == first);
    is_constant.then(|| {
        format!(
            "every element of input {name:?} is {first}, so the networks may differ by rounding alone; verify with \
             other --inputs, or without --inputs"
        )
    })
}

/// Runs both networks and compares them.
fn run_both(cut: Cut<'_>, runtime: &Runtime, options: &VerifyOptions) -> Result<VerifyReport, Error> {
    let Cut { analysis, kept, pruned, unchanged, renamed } = &cut;
    let original = lowered_original(analysis)?;
    let (model, reference) = reference_of(analysis, &original, kept)?;
    let rounding = Rounding::of(analysis);
    let lowered = lowered_for_cpu(pruned);
    let mut report = VerifyReport::new(rounding, runtime, options);
    report.unchanged = Some(unchanged.report.clone());
    report.notes.extend(unchanged.notes.iter().cloned());
    let lowered = match lowered {
        Ok(lowered) => lowered,
        Err(error) => {
            report.passed = false;
            report.failure = Some(format!("the pruned file is not a valid model: {error}"));
            return Ok(report);
        }
    };
    if lowered.is_some() {
        report.stand_ins = stand_ins(pruned)?.into_iter().map(|(node, op)| StandIn { node, op }).collect();
    }
    let (nodes, initializers) = as_run(pruned, lowered.as_ref());
    let networks = Networks {
        analysis,
        kept,
        lowered: &original,
        pruned,
        nodes: &nodes,
        initializers: &initializers,
        unchanged,
        renamed,
    };
    let native = Pair::new(model, &analysis.model, pruned, lowered.as_ref().map(|(lowered, _)| lowered.to_proto()));
    let is_strict = options.rtol.is_some();
    let mut verification = Verification { analysis, kept, reference, runtime, report, is_strict };
    let mut variants = input_variants(analysis, &options.inputs())?;
    let (rtol, close) = (verification.report.rtol, options.rtol.unwrap_or(proof::CLOSE));
    // The file as applications run it: with all optimizations.
    let as_file = || match &lowered {
        Some(_) => native.pruned_session(runtime),
        None => {
            let options = SessionOptions { no_qdq_fusion: true, ..SessionOptions::default() };
            session_as_stored(runtime, pruned, &options)
        }
    };
    if !rounding.is_any() {
        let expected = Expected::proving(Proof::new(networks, &native, runtime, close)?);
        verification.run(&native, rtol, expected, as_file(), variants)?;
        return Ok(verification.report);
    }
    match native.reference_session(runtime) {
        Ok(session) => {
            variants = verification.run(&native, rtol, Expected::plain(session), as_file(), variants)?;
        }
        Err(error)
            if rounding.is_half && verification.foreign(&error).is_none() && verification.original().is_err() =>
        {
            let text = format!("ONNX Runtime can't load the original in its own precision: {error}");
            verification.report.notes.push(text);
        }
        Err(error) => return Err(verification.unmet(&error, "reference graph")),
    }
    if !verification.report.passed {
        return Ok(verification.report);
    }
    let wide_rtol = options.rtol.unwrap_or(RTOL);
    let wide = native.without_rounding(rounding);
    match wide.and_then(|wide| Ok((wide.pruned_session(runtime)?, wide))) {
        Ok((of_pruned, wide)) => {
            // Another size would only repeat what the runs in half precision have shown.
            if !verification.report.runs.is_empty() {
                variants.truncate(1);
            }
            let expected = Expected::proving(Proof::new(networks, &wide, runtime, close)?);
            verification.run(&wide, wide_rtol, expected, Ok(of_pruned), variants)?;
        }
        Err(error) if verification.report.runs.is_empty() => {
            let text = format!("the pruned network in float32 can't run in ONNX Runtime: {error}");
            return Err(Error::unmet(text).in_file(analysis.model.path()).caused_by(error));
        }
        Err(error) => {
            let text =
                format!("compared only in the network's precision, whose rounding may hide single channels: {error}");
            verification.report.notes.push(text);
            verification.prove_by_values(&native, rtol, &variants);
        }
    }
    Ok(verification.report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::array::ArrayData;

    #[test]
    fn a_failure_with_constant_given_inputs_has_a_note() {
        let note = |data: ArrayData| constant_note("x", &Array::new(vec![data.len()], data).unwrap());
        assert!(note(ArrayData::F32(vec![0.0; 3])).unwrap().contains("input \"x\" is 0"));
        assert_eq!(note(ArrayData::F32(vec![0.0, 1.0])), None);
        assert_eq!(note(ArrayData::F32(vec![0.0])), None, "a single number");
        assert_eq!(note(ArrayData::I64(vec![3, 3])), None, "timesteps and labels are often equal");
    }
}
