//! Random inputs from what the graph itself says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::analysis::Analysis;
use crate::array::{Array, ElementType};
use crate::error::{Error, ErrorKind};
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::{Sizes, follow, sizes_for};
use crate::graph::{Graph, ValueId};
use crate::npz::{ArrayFile, Entry, NpzError};
use crate::onnx::{ValueInfoProto, tensor_shape_proto, type_proto};
use crate::runtime::check_memory;
use crate::runtime::random_inputs::{InputDim, InputSpec, draw};

/// Sets of sizes for the symbolic dimensions to try in turn; one where there are none. The first two are meant, the
/// others stand in for them where a network refuses them: some declare a symbolic batch, yet run at one only.
pub fn size_variants(analysis: &Analysis, given: &Sizes) -> Vec<Sizes> {
    let mut names = BTreeSet::new();
    for input in &analysis.graph.inputs {
        let shape = analysis.facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref());
        shape.into_iter().flatten().for_each(|dim| dim.symbols(&mut names));
    }
    let all = sizes_for(&analysis.facts, given);
    let base: Sizes = all.into_iter().filter(|(name, _)| names.contains(name)).collect();
    // A batch of one or several, and other sizes once or twice as large: what a fixed size would betray.
    let mut variants: Vec<Sizes> = Vec::new();
    for (batch, factor) in [(1, 1), (3, 2), (2, 1), (2, 2), (4, 1)] {
        let mut sizes = base.clone();
        let is_free = |name: &String| !given.contains_key(name) && !analysis.facts.fixed.contains_key(name);
        for (_, size) in sizes.iter_mut().filter(|(name, _)| is_free(name)) {
            let is_batch = *size == 1;
            *size = if is_batch { batch } else { *size * factor };
        }
        follow(&analysis.facts, given, &mut sizes);
        if !variants.contains(&sizes) {
            variants.push(sizes);
        }
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
    check_memory(total.saturating_mul(2)).map_err(|text| fail(format!("the file can't be read: {text}")))
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
        // Networks that take single samples are given many in turn, and some exports leave out the axes of a number.
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
}

/// What a network runs on, with the sizes at which inputs were drawn.
pub type Variant = (Sizes, Vec<(String, Array)>);

/// The inputs to try in turn: those that are given, where they are all; else random ones at different sizes, with those
/// that are given in their place, whose sizes the others follow.
///
/// # Errors
/// A name that is no input of the graph; an input that can't be drawn.
pub fn input_variants(analysis: &Analysis, options: &InputOptions<'_>) -> Result<Vec<Variant>, Error> {
    let given = options.inputs.unwrap_or_default();
    check_names(&analysis.model, &analysis.graph, given)?;
    let is_given = |name: &str| given.iter().any(|(own, _)| own == name);
    if !given.is_empty() && input_names(&analysis.graph).all(is_given) {
        return Ok(vec![(Sizes::new(), given.to_vec())]);
    }
    let mut sizes = options.sizes.clone();
    for (name, array) in given {
        let shape = analysis.graph.value(name).and_then(|value| analysis.facts.values[value].as_ref()?.shape.as_ref());
        for (dim, size) in shape.into_iter().flatten().zip(&array.dims) {
            if let (Some(symbol), Ok(size)) = (dim.as_symbol(), i64::try_from(*size)) {
                sizes.entry(symbol).or_insert(size);
            }
        }
    }
    let draw = |(number, sizes): (usize, Sizes)| {
        let mut inputs = draw_inputs(analysis, &sizes, options.seed.wrapping_add(number as u64))?;
        for (name, array) in given {
            inputs.iter_mut().filter(|(other, _)| other == name).for_each(|(_, drawn)| drawn.clone_from(array));
        }
        Ok((sizes, inputs))
    };
    size_variants(analysis, &sizes).into_iter().enumerate().map(draw).collect()
}

/// Draws every input of the graph at the given sizes.
///
/// # Errors
/// An input of a type that can't be drawn or of unknown rank.
pub fn draw_inputs(analysis: &Analysis, sizes: &Sizes, seed: u64) -> Result<Vec<(String, Array)>, Error> {
    let mut specs = Vec::new();
    for input in &analysis.graph.inputs {
        let name = &analysis.graph.values[*input].name;
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
