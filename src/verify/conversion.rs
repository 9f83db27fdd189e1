//! Verification of pruned files that were converted to half precision afterwards, against the original in single precision.
//!
//! Converters round the weights, change types throughout the graph, and add casts where precisions meet. This module
//! undoes that: it removes the casts and restores the types of the original, and the weights keep their rounded values.
//! It rounds the weights of the original in the same way. The result is a cut like any other and is compared as closely
//! as any other. Then the converted file itself runs on the same inputs, within the tolerance of half precision. Both
//! files of the comparison are written to a temporary folder.

use std::collections::{HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use half::{bf16, f16};
use prost::Message;
use serde::Serialize;

use super::changed::moved;
use super::compare::Difference;
use super::rounding::HALF;
use super::widen::{TYPE_ATTRIBUTES, is_half};
use super::{OutputError, RunReport, VerifyOptions, VerifyReport, verify};
use crate::analysis::{Analysis, analyse};
use crate::array::{Array, ElementType};
use crate::error::Error;
use crate::files::TemporaryFolder;
use crate::graph::Reader;
use crate::graph::model::Model;
use crate::inputs::input_variants;
use crate::load::load;
use crate::lower;
use crate::onnx::floats::Floats;
use crate::onnx::{DataLocation, DataType, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use crate::operator::reference::KeptAxes;
use crate::plan::Plan;
use crate::runtime::{Runtime, SessionOptions};
use crate::write::slice_bytes;

/// The indices that the readers of constants keep, by node and input slot.
type Kept = HashMap<Reader, KeptAxes>;

/// How a pruned file was converted after it was cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conversion {
    /// The element type of its weights.
    pub to: String,
    /// Number of constants of this type. In the original they are float32.
    pub constants: usize,
    /// Whether only the weights are of that type: they are cast to float32 where they enter the network.
    pub weights_only: bool,
}

/// How converters treat numbers that half precision can't represent well: they raise smaller magnitudes to the first
/// number and clamp larger ones to the second. The second entry is that of onnxconverter-common, the third that of ONNX
/// Runtime.
const STYLES: [(f32, f32); 3] = [(0.0, f32::INFINITY), (1e-7, 1e4), (5.96e-8, 65_504.0)];

/// The size of a tensor in bytes from which it is stored in the external data file.
const EXTERNAL: usize = 1024;

impl Conversion {
    /// Whether a pruned file was converted: it has half precision and the original has none.
    pub(super) fn is_found(analysis: &Analysis, pruned: &Model) -> bool {
        let has_half = analysis.facts.values.iter().flatten().any(|fact| is_half(fact.dtype as i32));
        !has_half && half_tensors(pruned.graph()).next().is_some()
    }

    fn describe(&self) -> String {
        let what = if self.weights_only { "weights" } else { "weights and arithmetic" };
        format!(
            "the file was converted to {0} ({what}, {1} constants): compared with the original's weights rounded to \
             {0}, and as converted, within {HALF:.0e}",
            self.to, self.constants
        )
    }
}

/// Returns the constants of half precision of a graph and its nodes.
fn half_tensors(graph: &GraphProto) -> impl Iterator<Item = &TensorProto> {
    let of_nodes = graph.node.iter().flat_map(|node| &node.attribute).filter_map(|attribute| attribute.t.as_ref());
    graph.initializer.iter().chain(of_nodes).filter(|tensor| is_half(tensor.data_type))
}

/// Compares a converted file with the original under a plan.
///
/// # Errors
/// As for [`verify`]; the temporary folder can't be written to.
pub(super) fn verify_converted(
    analysis: &Analysis,
    (plan, kept): (&Plan, &Kept),
    file: &Model,
    runtime: &Runtime,
    options: &VerifyOptions,
) -> Result<VerifyReport, Error> {
    let folder = TemporaryFolder::anywhere().map_err(|error| {
        let text = format!("a temporary folder for the comparison can't be created: {error}");
        Error::usage(text).hint("set TMPDIR to a folder that can be written to")
    })?;
    let undone = undone(analysis.model.graph(), file.graph());
    let conversion = Conversion {
        to: half_tensors(file.graph()).next().map_or_else(String::new, |tensor| tensor.element_type().spec_name()),
        constants: half_tensors(&undone).count(),
        weights_only: !computes_in_half(file.graph()),
    };
    let rounded = rounded(analysis, plan, file, &undone)?;
    let original = save(&analysis.model, rounded, &folder, "original.onnx")?;
    let pruned = save(file, undone, &folder, "pruned.onnx")?;
    let compare = || {
        let original = load(&original).and_then(|model| analyse(&model))?;
        let kept = moved(kept, analysis, &original, &HashMap::new());
        let pruned = load(&pruned)?;
        let mut report = verify(&original, &kept, &pruned, runtime, options)?;
        if report.passed {
            run_as_it_is(&original, file, &pruned, runtime, options, &mut report)?;
        }
        report.notes.insert(0, conversion.describe());
        report.conversion = Some(conversion);
        Ok(report)
    };
    compare().map_err(|error: Error| error.instead_of_file(&original, analysis.model.path()))
}

/// Whether the file shows that any node other than a cast to single precision takes or returns half precision.
fn computes_in_half(graph: &GraphProto) -> bool {
    let of_half = |attribute: &crate::onnx::AttributeProto| {
        TYPE_ATTRIBUTES.contains(&attribute.name.as_str())
            && attribute.i.is_some_and(|code| i32::try_from(code).is_ok_and(is_half))
    };
    let casts: HashSet<&str> = graph
        .node
        .iter()
        .filter(|node| node.op_type == "Cast")
        .flat_map(|node| &node.input)
        .map(String::as_str)
        .collect();
    let halves = graph.initializer.iter().filter(|tensor| is_half(tensor.data_type));
    graph.node.iter().flat_map(|node| &node.attribute).any(of_half)
        || halves.clone().any(|tensor| !casts.contains(tensor.name.as_str()))
}

/// Returns the graph of a converted file without its conversion: types and names are those of the original. Constants
/// keep half precision; [`save`] casts them up.
fn undone(original: &GraphProto, converted: &GraphProto) -> GraphProto {
    let by_output: HashMap<&str, &NodeProto> =
        original.node.iter().flat_map(|node| node.output.iter().map(move |output| (output.as_str(), node))).collect();
    let mut known: HashSet<&str> = by_output.keys().copied().collect();
    known.extend(original.initializer.iter().map(|tensor| tensor.name.as_str()));
    known.extend(original.input.iter().map(|input| input.name.as_str()));
    let is_added = |node: &NodeProto| {
        let is_cast = node.op_type == "Cast" && node.input.len() == 1 && node.output.len() == 1;
        is_cast && by_output.get(node.first_output()).is_none_or(|own| own.op_type != "Cast")
    };
    // The input and the output of a cast become one value. It keeps the name that the original has.
    let mut names: HashMap<String, String> = HashMap::new();
    for cast in converted.node.iter().filter(|node| is_added(node)) {
        let (given, taken) = (cast.first_output(), resolve(&names, &cast.input[0]));
        if known.contains(given) && !known.contains(taken.as_str()) {
            names.insert(taken, given.to_owned());
        } else {
            names.insert(given.to_owned(), taken);
        }
    }
    let name = |name: &mut String| *name = resolve(&names, name);
    let mut graph = GraphProto { value_info: Vec::new(), ..converted.clone() };
    graph.node.retain(|node| !is_added(node));
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(name);
        let Some(own) = by_output.get(node.first_output()).filter(|own| own.op_type == node.op_type) else { continue };
        for attribute in node.attribute.iter_mut().filter(|found| TYPE_ATTRIBUTES.contains(&found.name.as_str())) {
            if let Some(own) = own.attr(&attribute.name) {
                attribute.i = own.i;
            }
        }
    }
    graph.initializer.iter_mut().for_each(|tensor| name(&mut tensor.name));
    for (found, own) in [(&mut graph.input, &original.input), (&mut graph.output, &original.output)] {
        for value in found {
            if let Some(own) = own.iter().find(|own| own.name == value.name) {
                value.r#type.clone_from(&own.r#type);
            }
        }
    }
    graph
}

fn resolve(names: &HashMap<String, String>, name: &str) -> String {
    let mut name = name;
    // Every step leads to a name that was assigned earlier or that the original has. A file may still contain a cycle.
    for _ in 0..=names.len() {
        match names.get(name) {
            Some(next) if next != name => name = next,
            _ => break,
        }
    }
    name.to_owned()
}

/// Returns the original's graph with those constants rounded that the converted file stores in half precision.
fn rounded(analysis: &Analysis, plan: &Plan, file: &Model, undone: &GraphProto) -> Result<GraphProto, Error> {
    let model = &analysis.model;
    let mut graph = model.graph().clone();
    let found: HashMap<&str, &TensorProto> =
        undone.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    // If the cut has a weight in several forms, one of them has its name, or a name with the suffix `_pruned_`.
    let by_plan = |name: &str| {
        plan.tensors.iter().filter(move |of| of.tensor == name).map(|of| of.keep.clone()).collect::<Vec<_>>()
    };
    for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.data_type == DataType::Float as i32) {
        let variant = format!("{}_pruned_", tensor.name);
        let form = found.get(tensor.name.as_str()).copied();
        let form = form.or_else(|| undone.initializer.iter().find(|other| other.name.starts_with(&variant)));
        if let Some(form) = form.filter(|form| is_half(form.data_type)) {
            *tensor = rounded_like((model, tensor), (file, form), &by_plan(&tensor.name))?;
        }
    }
    let nodes: HashMap<&str, &NodeProto> = undone.node.iter().map(|node| (node.first_output(), node)).collect();
    for node in &mut graph.node {
        let output = node.first_output().to_owned();
        let variant = format!("{output}_pruned_");
        let own = nodes.get(output.as_str()).copied();
        // If the cut has a constant in several forms, none of them may have its name.
        let own = own.or_else(|| undone.node.iter().find(|other| other.first_output().starts_with(&variant)));
        let Some(own) = own.filter(|own| own.op_type == node.op_type) else { continue };
        for attribute in &mut node.attribute {
            let form = own.attr(&attribute.name).and_then(|found| found.t.as_ref());
            let Some(form) = form.filter(|form| is_half(form.data_type)) else { continue };
            if let Some(tensor) = attribute.t.as_mut().filter(|tensor| tensor.data_type == DataType::Float as i32) {
                *tensor = rounded_like((model, tensor), (file, form), &by_plan(&output))?;
            }
        }
    }
    Ok(graph)
}

/// Rounds a tensor as the converter rounded the form of it in the file. `cuts` are the indices that the form may have
/// kept.
fn rounded_like(
    (model, tensor): (&Model, &TensorProto),
    (file, form): (&Model, &TensorProto),
    cuts: &[KeptAxes],
) -> Result<TensorProto, Error> {
    let bytes = model.tensor_bytes(tensor)?;
    let numbers = Floats::of(tensor.element_type(), &bytes).map(Floats::to_f32).unwrap_or_default();
    let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let (dtype, found) = (form.element_type(), file.tensor_bytes(form)?);
    let styled = |style: (f32, f32)| -> Vec<u8> {
        numbers.iter().flat_map(|number| to_half(treated(*number, style), dtype)).collect()
    };
    let is_it = |bytes: &[u8]| {
        bytes == &*found
            || cuts.iter().any(|cut| {
                let axes: Vec<(usize, Vec<usize>)> = cut.clone().into_iter().collect();
                let is_inside = axes.iter().all(|(axis, kept)| kept.iter().all(|index| dims.get(*axis) > Some(index)));
                is_inside && slice_bytes(bytes, &dims, 2, &axes) == *found
            })
    };
    let plain = styled(STYLES[0]);
    let raw = match is_it(&plain) {
        true => plain,
        false => STYLES[1..].iter().map(|style| styled(*style)).find(|bytes| is_it(bytes)).unwrap_or(plain),
    };
    Ok(TensorProto {
        name: tensor.name.clone(),
        data_type: dtype as i32,
        dims: tensor.dims.clone(),
        raw_data: raw.into(),
        ..TensorProto::default()
    })
}

fn treated(number: f32, (least, most): (f32, f32)) -> f32 {
    let magnitude = number.abs();
    if magnitude > 0.0 && magnitude < least {
        least.copysign(number)
    } else if magnitude > most {
        most.copysign(number)
    } else {
        number
    }
}

fn to_half(number: f32, dtype: DataType) -> [u8; 2] {
    match dtype {
        DataType::Bfloat16 => bf16::from_f32(number).to_le_bytes(),
        _ => f16::from_f32(number).to_le_bytes(),
    }
}

/// Writes a graph with its constants, those of half precision as single precision. `model` is the file from which they
/// are read. Returns the path.
fn save(model: &Model, mut graph: GraphProto, folder: &TemporaryFolder, name: &str) -> Result<PathBuf, Error> {
    let path = folder.path().join(name);
    let location = format!("{name}.data");
    let fail = |error: std::io::Error| Error::io(&path, format!("can't be written: {error}")).caused_by(error);
    let mut data = BufWriter::new(folder.create(&location).map_err(fail)?);
    let mut end = 0;
    for tensor in &mut graph.initializer {
        if tensor.element_type() == DataType::String {
            continue;
        }
        let (dtype, bytes) = single(model, tensor)?;
        let (name, dims) = (std::mem::take(&mut tensor.name), std::mem::take(&mut tensor.dims));
        *tensor = TensorProto { name, dims, data_type: dtype as i32, ..TensorProto::default() };
        if bytes.len() < EXTERNAL {
            tensor.raw_data = bytes.into();
            continue;
        }
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        tensor.data_location = DataLocation::External as i32;
        tensor.external_data = vec![
            entry("location", location.clone()),
            entry("offset", end.to_string()),
            entry("length", bytes.len().to_string()),
        ];
        data.write_all(&bytes).map_err(fail)?;
        end += bytes.len();
    }
    for tensor in graph.node.iter_mut().flat_map(|node| &mut node.attribute).filter_map(|found| found.t.as_mut()) {
        if is_half(tensor.data_type) || tensor.data_location == DataLocation::External as i32 {
            let (dtype, bytes) = single(model, tensor)?;
            let (name, dims) = (std::mem::take(&mut tensor.name), std::mem::take(&mut tensor.dims));
            *tensor =
                TensorProto { name, dims, data_type: dtype as i32, raw_data: bytes.into(), ..TensorProto::default() };
        }
    }
    data.flush().map_err(fail)?;
    let proto = ModelProto { graph: Some(graph), functions: Vec::new(), ..model.proto().clone() };
    folder.create(name).and_then(|mut file| file.write_all(&proto.encode_to_vec())).map_err(fail)?;
    Ok(path)
}

/// Returns the elements of a tensor, with half precision cast to single.
fn single(model: &Model, tensor: &TensorProto) -> Result<(DataType, Vec<u8>), Error> {
    let (dtype, bytes) = (tensor.element_type(), model.tensor_bytes(tensor)?);
    match Floats::of(dtype, &bytes).filter(|_| is_half(dtype as i32)) {
        None => Ok((dtype, bytes.into_owned())),
        Some(floats) => Ok((DataType::Float, floats.to_f32().iter().flat_map(|number| number.to_le_bytes()).collect())),
    }
}

/// Runs the converted file as it is, and compares it with its unconverted form.
fn run_as_it_is(
    original: &Analysis,
    file: &Model,
    pruned: &Model,
    runtime: &Runtime,
    options: &VerifyOptions,
    report: &mut VerifyReport,
) -> Result<(), Error> {
    let how = SessionOptions { no_qdq_fusion: true, ..SessionOptions::default() };
    let mut as_it_is = match lower::session(runtime, file, &how) {
        Ok(session) => session,
        Err(error) => {
            report.notes.push(format!("ONNX Runtime can't load the converted file on the CPU: {error}"));
            return Ok(());
        }
    };
    let mut exact = lower::session(runtime, pruned, &how)?;
    let rtol = options.rtol.unwrap_or(HALF);
    let types: HashMap<String, ElementType> =
        as_it_is.inputs().iter().map(|input| (input.name.clone(), input.element_type)).collect();
    for (sizes, inputs) in input_variants(original, &options.inputs())?.into_iter().take(1) {
        let cast = |(name, array): &(String, Array)| {
            let array = types.get(name).map_or_else(|| array.clone(), |to| array.cast(*to));
            // Both networks take the same numbers.
            (name.clone(), array)
        };
        let narrow: Vec<(String, Array)> = inputs.iter().map(cast).collect();
        let wide: Vec<(String, Array)> = narrow
            .iter()
            .zip(&inputs)
            .map(|((name, array), (_, own))| (name.clone(), array.cast(own.element_type())))
            .collect();
        let (Ok(expected), found) = (exact.run(&wide), as_it_is.run(&narrow)) else { continue };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                report.passed = false;
                report.failure = Some(format!("the converted file can't run in ONNX Runtime: {error}"));
                return Ok(());
            }
        };
        let outputs: Vec<OutputError> = expected
            .iter()
            .map(|(name, expected)| {
                let found = found.iter().find(|(other, _)| other == name).map(|(_, array)| array);
                let difference = Difference::of_output(expected, found);
                OutputError::new(name, &difference, (rtol, options.atol))
            })
            .collect();
        let run = RunReport { sizes, widened: false, unrounded: false, converted: true, rtol, outputs };
        report.passed = run.passed();
        report.runs.push(run);
    }
    Ok(())
}
