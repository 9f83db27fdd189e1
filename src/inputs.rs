//! Random inputs from what the graph itself says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::analysis::Analysis;
use crate::array::{Array, ElementType};
use crate::error::{Error, ErrorKind};
use crate::graph::dim::Dim;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::{Sizes, follow, sizes_for};
use crate::graph::{Graph, ValueId};
use crate::macs::memory::{Footprint, refuse_beyond};
use crate::npz::{ArrayFile, Entry, NpzError};
use crate::onnx::{ValueInfoProto, tensor_shape_proto, type_proto};
use crate::runtime::available_memory;
use crate::runtime::check_memory;
use crate::runtime::random_inputs::{InputDim, InputSpec, draw};

/// Sets of sizes for the symbolic dimensions to try in turn; one where there are none. The first two are meant, the
/// others stand in for them where a network refuses them: some declare a symbolic batch, yet run at one only. No size is
/// larger than `most` says; the last set has just those.
pub fn size_variants(analysis: &Analysis, given: &Sizes, most: &Sizes) -> Vec<Sizes> {
    let mut names = BTreeSet::new();
    for input in &analysis.graph.inputs {
        let shape = analysis.facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref());
        shape.into_iter().flatten().for_each(|dim| dim.symbols(&mut names));
    }
    let all = sizes_for(&analysis.facts, given);
    let base: Sizes = all.into_iter().filter(|(name, _)| names.contains(name)).collect();
    let is_free = |name: &String| !given.contains_key(name) && !analysis.facts.fixed.contains_key(name);
    let mut variants: Vec<Sizes> = Vec::new();
    let mut add = |size_of: &dyn Fn(&String, i64) -> i64| {
        let mut sizes = base.clone();
        for (name, size) in sizes.iter_mut().filter(|(name, _)| is_free(name)) {
            *size = size_of(name, *size).min(most.get(name).copied().unwrap_or(i64::MAX));
        }
        follow(&analysis.facts, given, &mut sizes);
        if !variants.contains(&sizes) {
            variants.push(sizes);
        }
    };
    // A batch of one or several, and other sizes once or twice as large: what a fixed size would betray.
    for (batch, factor) in [(1, 1), (3, 2), (2, 1), (2, 2), (4, 1)] {
        add(&|_, size| if size == 1 { batch } else { size.saturating_mul(factor) });
    }
    if !most.is_empty() {
        add(&|name, size| most.get(name).copied().unwrap_or(size));
    }
    variants
}

fn input_names(graph: &Graph) -> impl Iterator<Item = &str> {
    graph.inputs.iter().map(|input| graph.values[*input].name.as_str())
}

/// Refuses arrays that no input of the graph takes.
///
/// # Errors
/// A name that is no input of the graph.
pub fn check_names(model: &Model, graph: &Graph, given: &[(String, Array)]) -> Result<(), Error> {
    match given.iter().find(|(name, _)| !input_names(graph).any(|own| own == name)) {
        None => Ok(()),
        Some((name, _)) => {
            let names: Vec<&str> = input_names(graph).collect();
            let text = format!("--inputs: expected arrays named {}, found {name:?}", names.join(", "));
            Err(Error::usage(text).in_file(model.path()))
        }
    }
}

/// What a network is run for, and so what runs at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A comparison with its reference.
    Verification,
    /// Timing of original and pruned network in turn.
    Timing,
}

impl Purpose {
    /// Bytes that it takes.
    fn needed(self, footprint: &Footprint) -> u64 {
        match self {
            Self::Verification => footprint.verification(),
            Self::Timing => footprint.run().saturating_mul(2),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Verification => "verification",
            Self::Timing => "timing",
        }
    }
}

/// The sizes that a graph input declares; `None` where it declares no shape, or an axis no size.
fn declared_dims(input: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref()?.value.as_ref() else { return None };
    let dims = tensor.shape.as_ref()?.dim.iter().map(|dim| match dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(size)) => Some(size),
        _ => None,
    });
    Some(dims.collect())
}

/// Refuses arrays that would take more memory than there is: once packed as bytes, once as elements.
///
/// # Errors
/// See above; a header that can't be read.
pub fn check_size(file: &ArrayFile) -> Result<(), Error> {
    let fail = |text: String| Error::usage(text).of_kind(ErrorKind::Unreadable);
    let counts = file.entries().iter().map(Entry::byte_count).collect::<Result<Vec<u64>, NpzError>>();
    let total: u64 = counts.map_err(|error| fail(error.to_string()).caused_by(error))?.iter().sum();
    let names: Vec<String> = file.entries().iter().take(3).map(|entry| format!("{:?}", entry.name())).collect();
    let what = format!("{}{}", names.join(", "), if file.entries().len() > 3 { ", ..." } else { "" });
    check_memory(total.saturating_mul(2)).map_err(|text| fail(format!("{what} can't be read: {text}")))
}

/// Reads arrays by the names of a model's inputs. What no input takes is refused before any of the file is unpacked.
///
/// # Errors
/// A name that is no input of the model, sizes that the input does not have (the first aside, which counts rows), more
/// than fits into memory; a file that can't be read.
pub fn read(model: &Model, path: &Path) -> Result<Vec<(String, Array)>, Error> {
    let fail = |error: NpzError| Error::unreadable(path, error.to_string()).caused_by(error);
    let mut file = ArrayFile::open(path).map_err(fail)?;
    let graph = model.graph();
    let is_input = |name: &str| graph.initializer.iter().all(|tensor| tensor.name != name);
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|input| is_input(&input.name)).collect();
    for entry in file.entries() {
        let Some(input) = inputs.iter().find(|input| input.name == entry.name()) else {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            let text = format!("--inputs: expected arrays named {}, found {:?}", names.join(", "), entry.name());
            return Err(Error::usage(text).in_file(path));
        };
        let found = entry.dims().map_err(fail)?;
        let Some(expected) = declared_dims(input) else { continue };
        // Networks that take single samples may be given many, one in turn.
        let fits = |(axis, (size, found)): (usize, (&Option<i64>, &usize))| {
            axis == 0 || size.is_none_or(|size| usize::try_from(size) == Ok(*found))
        };
        if expected.len() != found.len() || !expected.iter().zip(found).enumerate().all(fits) {
            let sizes = expected.iter().map(|size| size.map_or("?".to_owned(), |size| size.to_string()));
            let text = format!(
                "--inputs: array {:?}: expected shape [{}], found {found:?}",
                entry.name(),
                sizes.collect::<Vec<_>>().join(", ")
            );
            return Err(Error::usage(text).in_file(path));
        }
    }
    check_size(&file).map_err(|error| error.in_file(path))?;
    file.read_all().map_err(fail)
}

/// What decides the inputs of a network.
#[derive(Clone, Debug)]
pub struct InputOptions<'a> {
    /// Arrays to use instead of random ones.
    pub inputs: Option<&'a [(String, Array)]>,
    /// Sizes of symbolic dimensions.
    pub sizes: &'a Sizes,
    /// The seed of what is drawn.
    pub seed: u64,
    /// What the network is run for.
    pub purpose: Purpose,
}

/// What a network runs on, with the sizes at which inputs were drawn.
pub type Variant = (Sizes, Vec<(String, Array)>);

/// The inputs to try in turn: random ones at different sizes, with those that are given in their place, whose sizes the
/// others follow. Of arrays with more rows than are needed, rows are taken from all over them.
///
/// # Errors
/// A name that is no input of the graph; an input that can't be drawn; too little memory for any of them.
pub fn input_variants(analysis: &Analysis, options: &InputOptions<'_>) -> Result<Vec<Variant>, Error> {
    let given = options.inputs.unwrap_or_default();
    let draw = |(number, sizes): (usize, Sizes)| {
        let drawn_at = options.seed.wrapping_add(number as u64);
        let is_given = |name: &str| given.iter().any(|(own, _)| own == name);
        let mut inputs = draw_where(analysis, &sizes, drawn_at, &|name| !is_given(name))?;
        for (name, array) in given {
            let first = shape_of(analysis, name).and_then(|shape| shape.first());
            let rows = first.and_then(|dim| usize::try_from(dim.eval(&sizes)?).ok());
            inputs.push((name.clone(), some_rows(array, rows)));
        }
        Ok((sizes, inputs))
    };
    affordable_sizes(analysis, options)?.into_iter().map(draw).collect()
}

/// The sizes to try in turn whose runs fit into memory, numbered among all.
///
/// # Errors
/// A name that is no input of the graph; too little memory for any sizes.
pub fn affordable_sizes(analysis: &Analysis, options: &InputOptions<'_>) -> Result<Vec<(usize, Sizes)>, Error> {
    affordable_within(available_memory(), analysis, options)
}

fn affordable_within(
    available: Option<u64>,
    analysis: &Analysis,
    options: &InputOptions<'_>,
) -> Result<Vec<(usize, Sizes)>, Error> {
    let given = options.inputs.unwrap_or_default();
    check_names(&analysis.model, &analysis.graph, given)?;
    let mut fixed = options.sizes.clone();
    let mut rows: BTreeMap<String, i64> = BTreeMap::new();
    for (name, array) in given {
        for (axis, (dim, size)) in shape_of(analysis, name).into_iter().flatten().zip(&array.dims).enumerate() {
            if let (Some(symbol), Ok(size)) = (dim.as_symbol(), i64::try_from(*size)) {
                match axis {
                    0 => rows.entry(symbol).and_modify(|rows| *rows = (*rows).min(size)).or_insert(size),
                    _ => fixed.entry(symbol).or_insert(size),
                };
            }
        }
    }
    rows.retain(|symbol, size| *size > 0 && !fixed.contains_key(symbol));
    let (mut sizes, mut least) = (Vec::new(), None);
    for (number, variant) in size_variants(analysis, &fixed, &rows).into_iter().enumerate() {
        let footprint = Footprint::of(&analysis.model, &analysis.graph, &analysis.facts, &variant)?;
        let needed = options.purpose.needed(&footprint);
        if available.is_none_or(|available| needed <= available) {
            sizes.push((number, variant));
        } else if least.as_ref().is_none_or(|(bytes, _)| needed < *bytes) {
            least = Some((needed, variant));
        }
    }
    match least.filter(|_| sizes.is_empty()) {
        None => Ok(sizes),
        Some((needed, variant)) => Err(too_large(available, analysis, options.purpose, needed, &variant)),
    }
}

/// The error of a run that no sizes make small enough.
fn too_large(available: Option<u64>, analysis: &Analysis, purpose: Purpose, needed: u64, sizes: &Sizes) -> Error {
    let shapes: Vec<String> = analysis
        .graph
        .inputs
        .iter()
        .filter_map(|input| {
            let shape = analysis.facts.values[*input].as_ref()?.shape.as_ref()?;
            let dims: Vec<String> =
                shape.iter().map(|dim| dim.eval(sizes).map_or("?".to_owned(), |n| n.to_string())).collect();
            Some(format!("{} [{}]", analysis.graph.values[*input].name, dims.join(", ")))
        })
        .collect();
    let what = format!("{} at {}", purpose.describe(), shapes.join(" and "));
    let error = match refuse_beyond(available, needed, &what) {
        Err(error) => error,
        Ok(()) => Error::unmet(what),
    };
    let otherwise = match purpose {
        Purpose::Verification => "run it where more memory is free, or write the file unverified with --no-verify",
        Purpose::Timing => "leave it out with --no-latency",
    };
    let hint = match sizes.is_empty() {
        true => format!("the file fixes all sizes of its inputs, so that no smaller ones can be drawn; {otherwise}"),
        false => format!("give smaller sizes with --size, or {otherwise}"),
    };
    error.in_file(analysis.model.path()).hint(hint)
}

/// The declared shape of an input.
fn shape_of<'a>(analysis: &'a Analysis, name: &str) -> Option<&'a Vec<Dim>> {
    analysis.facts.values[analysis.graph.value(name)?].as_ref()?.shape.as_ref()
}

/// `count` rows of an array, spread over it; all of them where it has no more, or no number is given.
fn some_rows(array: &Array, count: Option<usize>) -> Array {
    let Some(rows) = array.dims.first().copied().filter(|rows| count.is_some_and(|count| count < *rows)) else {
        return array.clone();
    };
    let count = count.unwrap_or(rows);
    let chosen: Vec<usize> = (0..count).map(|at| (2 * at + 1) * rows / (2 * count)).collect();
    array.rows(&chosen)
}

/// Draws every input of the graph at the given sizes.
///
/// # Errors
/// An input of a type that can't be drawn or of unknown rank.
pub fn draw_inputs(analysis: &Analysis, sizes: &Sizes, seed: u64) -> Result<Vec<(String, Array)>, Error> {
    draw_where(analysis, sizes, seed, &|_| true)
}

/// Draws those inputs whose names are wanted.
fn draw_where(
    analysis: &Analysis,
    sizes: &Sizes,
    seed: u64,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<(String, Array)>, Error> {
    let mut specs = Vec::new();
    for input in &analysis.graph.inputs {
        let name = &analysis.graph.values[*input].name;
        if !is_wanted(name) {
            continue;
        }
        let fail = |text: &str| Error::invalid(analysis.model.path(), format!("graph input {name:?} {text}"));
        let fact = analysis.facts.values[*input].as_ref().ok_or_else(|| fail("is not a tensor"))?;
        let element_type =
            ElementType::from_onnx(fact.dtype as i32).ok_or_else(|| fail("has an element type that can't be drawn"))?;
        let shape = fact.shape.as_ref().ok_or_else(|| fail("declares no shape"))?;
        let dims = shape
            .iter()
            .map(|dim| match dim.eval(sizes) {
                Some(size) => InputDim::Fixed(size),
                None => InputDim::Unknown,
            })
            .collect();
        let range = range_of((&analysis.model, &analysis.graph, &analysis.facts), *input, !element_type.is_float());
        specs.push(InputSpec { name: name.clone(), element_type, dims, range });
    }
    draw(&specs, &BTreeMap::new(), seed).map_err(|error| Error::invalid(analysis.model.path(), error.to_string()))
}

/// Draws one input of the graph at the given sizes.
///
/// # Errors
/// No input of this name, or one that can't be drawn.
pub fn draw_input(
    (model, graph, facts): (&Model, &Graph, &Facts),
    name: &str,
    dims: &[usize],
    seed: u64,
) -> Result<Array, Error> {
    let fail = |text: String| Error::invalid(model.path(), text);
    let input = graph.value(name).ok_or_else(|| fail(format!("there is no graph input {name:?}")))?;
    let element_type = facts.values[input].as_ref().and_then(|fact| ElementType::from_onnx(fact.dtype as i32));
    let element_type =
        element_type.ok_or_else(|| fail(format!("graph input {name:?} has an element type that can't be drawn")))?;
    let range = range_of((model, graph, facts), input, !element_type.is_float());
    let dims = dims.iter().map(|size| InputDim::Fixed(i64::try_from(*size).unwrap_or(i64::MAX))).collect();
    let spec = InputSpec { name: name.to_owned(), element_type, dims, range };
    let mut drawn = draw(&[spec], &BTreeMap::new(), seed).map_err(|error| fail(error.to_string()))?;
    drawn.pop().map(|(_, array)| array).ok_or_else(|| fail(format!("graph input {name:?} can't be drawn")))
}

/// The range in which the values of an input make sense: rows of the table that it indexes, timesteps, noise levels.
fn range_of((model, graph, facts): (&Model, &Graph, &Facts), input: ValueId, is_integer: bool) -> Option<(f64, f64)> {
    let name = graph.values[input].name.to_lowercase();
    let is_timestep = ["timestep", "time_step", "timesteps"].iter().any(|word| name.contains(word))
        || matches!(name.as_str(), "t" | "time" | "ts");
    if is_integer && let Some(rows) = indexed_rows((model, graph, facts), input) {
        return Some((0.0, (rows - 1) as f64));
    }
    if is_timestep {
        return Some((0.0, 999.0));
    }
    if name.contains("sigma") {
        return Some((0.1, 10.0));
    }
    None
}

/// The smallest table that a Gather-like reader indexes with the value, through operators that keep integers.
fn indexed_rows((model, graph, facts): (&Model, &Graph, &Facts), input: ValueId) -> Option<i64> {
    let mut open = vec![input];
    let mut seen = BTreeSet::new();
    let mut rows: Option<i64> = None;
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        for (node, slot) in &graph.values[value].consumers {
            let node = &graph.nodes[*node];
            // Input 1 of a node whose input 0 is a weight matrix: a table that is looked up.
            let table = node.input(0).filter(|table| *slot == 1 && graph.tensor(model, *table).is_some());
            if let Some(table) = table
                && let Some(fact) = facts.values[table].as_ref().filter(|fact| fact.is_float())
                && let Some(size) = fact.shape.as_ref().and_then(|shape| shape.first()?.as_const())
            {
                rows = Some(rows.map_or(size, |rows| rows.min(size)));
                continue;
            }
            let is_integer = |value: &ValueId| facts.values[*value].as_ref().is_some_and(|fact| !fact.is_float());
            open.extend(node.outputs.iter().flatten().copied().filter(is_integer));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::analysis::analyse;
    use crate::array::ArrayData;
    use crate::load::from_bytes;
    use crate::onnx::tensor_shape_proto::Dimension;
    use crate::onnx::tensor_shape_proto::dimension::Value;
    use crate::onnx::{
        DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
        ValueInfoProto, type_proto,
    };

    fn value(name: &str, sizes: &[&str]) -> ValueInfoProto {
        let dim = |size: &&str| Dimension {
            value: Some(size.parse().map_or_else(|_| Value::DimParam((*size).to_owned()), Value::DimValue)),
            ..Dimension::default()
        };
        let shape = Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() });
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
    }

    /// `x @ w + c`, where x and c have declared sizes.
    fn analysis(x: &[&str], c: &[&str]) -> Analysis {
        let node = |op: &str, inputs: [&str; 2], output: &str| NodeProto {
            op_type: op.to_owned(),
            input: inputs.map(str::to_owned).to_vec(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![node("MatMul", ["x", "w"], "m"), node("Add", ["m", "c"], "y")],
            initializer: vec![TensorProto::of_floats("w", &[0.5; 16], &[4, 4])],
            input: vec![value("x", x), value("c", c)],
            output: vec![ValueInfoProto { name: "y".to_owned(), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() };
        analyse(&from_bytes(Path::new("m.onnx"), model.encode_to_vec().into()).unwrap()).unwrap()
    }

    fn array(rows: usize, width: usize) -> Array {
        let values = (0..rows * width).map(|at| (at / width) as f32).collect();
        Array::new(vec![rows, width], ArrayData::F32(values)).unwrap()
    }

    fn options<'a>(inputs: &'a [(String, Array)], sizes: &'a Sizes) -> InputOptions<'a> {
        InputOptions { inputs: Some(inputs), sizes, seed: 0, purpose: Purpose::Verification }
    }

    #[test]
    fn as_many_rows_are_taken_as_sizes_ask_for() {
        let analysis = analysis(&["batch", "4"], &["batch", "4"]);
        let (all, sizes) = (vec![("c".to_owned(), array(2048, 4)), ("x".to_owned(), array(2048, 4))], Sizes::new());
        for given in [&all[..1], &all[..]] {
            let variants = input_variants(&analysis, &options(given, &sizes)).unwrap();
            let rows = |inputs: &[(String, Array)]| inputs.iter().map(|(_, array)| array.dims[0]).collect::<Vec<_>>();
            assert_eq!(rows(&variants[0].1), [1, 1]);
            assert_eq!(rows(&variants[1].1), [3, 3]);
            // Where a network refuses those, all rows are left to try.
            assert_eq!(rows(&variants.last().unwrap().1), [2048, 2048]);
            let c = variants[1].1.iter().find(|(name, _)| name == "c").unwrap();
            assert_eq!(c.1.to_f64().iter().step_by(4).copied().collect::<Vec<_>>(), [341.0, 1024.0, 1706.0]);
        }
        // A size that is given, and rows that are few, are kept to.
        let sizes = Sizes::from([("batch".to_owned(), 5)]);
        let variants = input_variants(&analysis, &options(&all, &sizes)).unwrap();
        assert!(variants.iter().all(|(_, inputs)| inputs[0].1.dims[0] == 5), "{}", variants.len());
        let two = [("c".to_owned(), array(2, 4))];
        let variants = input_variants(&analysis, &options(&two, &Sizes::new())).unwrap();
        assert_eq!(variants.iter().map(|(sizes, _)| sizes["batch"]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn sizes_beyond_the_memory_are_left_out_or_refused() {
        let sizes = Sizes::new();
        let symbolic = analysis(&["batch", "tokens", "4"], &["4"]);
        let all = affordable_within(None, &symbolic, &options(&[], &sizes)).unwrap();
        let needed = |sizes: &Sizes| {
            let footprint = Footprint::of(&symbolic.model, &symbolic.graph, &symbolic.facts, sizes).unwrap();
            footprint.verification()
        };
        let least = all.iter().map(|(_, sizes)| needed(sizes)).min().unwrap();
        let some = affordable_within(Some(least), &symbolic, &options(&[], &sizes)).unwrap();
        assert!(!some.is_empty() && some.len() < all.len(), "{some:?} of {all:?}");
        let error = affordable_within(Some(least - 1), &symbolic, &options(&[], &sizes)).unwrap_err();
        assert!(error.advice().unwrap().contains("--size"), "{error}");
        let huge = analysis(&["1", "4000000", "1000000", "4"], &["4"]);
        let error = affordable_within(Some(1 << 40), &huge, &options(&[], &sizes)).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains("x [1, 4000000, 1000000, 4]") && text.contains("GiB"), "{text}");
        assert!(error.advice().unwrap().contains("fixes all sizes"), "{error}");
    }
}
