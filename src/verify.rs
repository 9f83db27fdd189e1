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
        let purpose = Purpose::Verification;
        InputOptions { inputs: self.inputs.as_deref(), sizes: &self.sizes, seed: self.seed, purpose }
    }
}

/// Why the reference can't be built, as an error.
fn unmasked(analysis: &Analysis, unmasked: &Unmasked) -> Error {
    let node = &analysis.graph.nodes[unmasked.node];
    Error::unsupported(format!("the reference graph can't be built: {}", unmasked.cause))
        .in_file(analysis.model.path())
        .at_node(&node.name, node.op())
        .hint("report the model; --no-verify writes it unverified")
}

/// The reference of a model as a file that ONNX Runtime can load.
///
/// # Errors
/// An operator that stands where something was removed has no reference rule.
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

/// Relative tolerance in single precision.
const RTOL: f64 = 1e-4;

/// Compares a pruned file with the original under a plan: what the plan does not name without a run, the rest in runs of
/// both.
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
    match compared(analysis, kept, pruned, runtime, None)? {
        Ok(unchanged) => prove(Cut { analysis, kept, pruned, unchanged, renamed: HashMap::new() }, runtime, options),
        Err(Changed(text)) => Ok(VerifyReport::failed(analysis, runtime, options, text)),
    }
}

/// What of the pruned file is the original's.
fn compared(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
    pruned: &Model,
    runtime: &Runtime,
    changed: Option<&ChangedWeights>,
) -> Result<Result<Unchanged, Changed>, Error> {
    // Weights that the graph computes are compared with what it computes.
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

/// A pruned file with all that its runs need.
struct Cut<'a> {
    /// The original, in which weights may have changed.
    analysis: &'a Analysis,
    kept: &'a HashMap<Reader, KeptAxes>,
    pruned: &'a Model,
    unchanged: Unchanged,
    /// New names of first outputs in the original, by those in the file.
    renamed: HashMap<String, String>,
}

/// Runs a pruned file beside the reference of the original.
fn prove(cut: Cut<'_>, runtime: &Runtime, options: &VerifyOptions) -> Result<VerifyReport, Error> {
    let mut report = run_both(cut, runtime, options)?;
    if !report.passed {
        report.notes.extend(options.inputs.iter().flatten().filter_map(|(name, array)| constant_note(name, array)));
    }
    Ok(report)
}

/// What a given input of one number says of a failure: a norm divides what is equal by nearly nothing, so that all that
/// follows may be rounding.
fn constant_note(name: &str, array: &Array) -> Option<String> {
    let values = array.to_f64();
    let (first, others) = values.split_first()?;
    let is_constant =
        array.element_type().is_float() && !others.is_empty() && others.iter().all(|other| other == first);
    is_constant.then(|| {
        format!(
            "input {name:?} is {first} throughout, so that networks may differ by rounding alone; verify with other --inputs \
             or without"
        )
    })
}

/// Runs both networks.
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
            report.failure = Some(format!("the pruned file is not valid: {error}"));
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
    // As applications run it: from its file, with every optimization.
    let as_file = || match &lowered {
        Some(_) => native.pruned_session(runtime),
        None => {
            let options = SessionOptions { keeps_arithmetic: true, ..SessionOptions::default() };
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
            let text = format!("ONNX Runtime does not load the original in its own precision: {error}");
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
            let text = format!("the pruned network in float32 does not run in ONNX Runtime: {error}");
            return Err(Error::unmet(text).in_file(analysis.model.path()).caused_by(error));
        }
        Err(error) => {
            let text =
                format!("compared with the network's own rounding only, which may hide single channels: {error}");
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
    fn given_inputs_of_one_number_are_told() {
        let note = |data: ArrayData| constant_note("x", &Array::new(vec![data.len()], data).unwrap());
        assert!(note(ArrayData::F32(vec![0.0; 3])).unwrap().contains("\"x\" is 0 throughout"));
        assert_eq!(note(ArrayData::F32(vec![0.0, 1.0])), None);
        assert_eq!(note(ArrayData::F32(vec![0.0])), None, "a number alone");
        assert_eq!(note(ArrayData::I64(vec![3, 3])), None, "timesteps and labels are often equal");
    }
}
