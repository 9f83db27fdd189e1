//! Random inputs with the element types and sizes that the graph declares, in the range that its nodes expect.

use std::collections::{BTreeMap, BTreeSet};

use crate::analysis::Analysis;
use crate::array::{Array, ElementType};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::{Graph, ValueId};
use crate::runtime::random_inputs::{InputDim, InputSpec, draw};

/// Generates every input of the graph at the given sizes.
///
/// # Errors
/// Fails for an input of an unsupported element type or of unknown rank.
pub fn random_inputs(analysis: &Analysis, sizes: &Sizes, seed: u64) -> Result<Vec<(String, Array)>, Error> {
    draw_where(analysis, sizes, seed, &|_| true)
}

/// Generates the inputs whose names are wanted.
pub(super) fn draw_where(
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
        let element_type = ElementType::from_onnx(fact.dtype as i32).ok_or_else(|| {
            fail("has an element type for which no random input can be generated")
                .hint("pass an array of this name with --inputs, if NumPy has this type")
        })?;
        let shape = fact.shape.as_ref().ok_or_else(|| {
            fail("declares no shape, so no random input can be generated")
                .hint("pass an array of this name with --inputs")
        })?;
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

/// Generates one input of the graph at the given sizes.
///
/// # Errors
/// Fails if no input has this name, or if it can't be generated.
pub fn random_input(
    (model, graph, facts): (&Model, &Graph, &Facts),
    name: &str,
    dims: &[usize],
    seed: u64,
) -> Result<Array, Error> {
    let fail = |text: String| Error::invalid(model.path(), text);
    let input = graph.value(name).ok_or_else(|| fail(format!("there is no graph input {name:?}")))?;
    let element_type = facts.values[input].as_ref().and_then(|fact| ElementType::from_onnx(fact.dtype as i32));
    let element_type = element_type.ok_or_else(|| {
        fail(format!("graph input {name:?} has an element type for which no random input can be generated"))
    })?;
    let range = range_of((model, graph, facts), input, !element_type.is_float());
    let dims = dims.iter().map(|size| InputDim::Fixed(i64::try_from(*size).unwrap_or(i64::MAX))).collect();
    let spec = InputSpec { name: name.to_owned(), element_type, dims, range };
    let mut drawn = draw(&[spec], &BTreeMap::new(), seed).map_err(|error| fail(error.to_string()))?;
    drawn
        .pop()
        .map(|(_, array)| array)
        .ok_or_else(|| fail(format!("no random input can be generated for graph input {name:?}")))
}

/// Returns the meaningful range of an input's values: rows of the table that it indexes, timesteps, noise levels.
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

/// Returns the row count of the smallest table that the value indexes, as in Gather, directly or through integer
/// operators.
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
            // Input 1 of a node whose input 0 is a weight matrix: an embedding table.
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
