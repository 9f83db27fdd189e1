//! Gives a network in a bundle the inputs and outputs that a loader expects, and compares it with the network before.

use std::path::Path;

use super::DeployOptions;
use super::subject::{outputs, rows};
use crate::array::{Array, ArrayData, ElementType};
use crate::deploy::ranges::{Inputs, failed, taken};
use crate::deploy::{Adapted, Bridge, DeployPrecision, Fed, Loader, Profile, Wanted, adapt};
use crate::diffusion::Roles;
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::graph::{Graph, model};
use crate::infer::infer;
use crate::lower::session_with_outputs;
use crate::onnx::DataType;
use crate::runtime::{Runtime, SessionOptions};
use crate::write::Staged;
use crate::{load, ops};

/// Number of runs for the comparison.
const RUNS: usize = 2;

/// Maximum relative difference of outputs. ONNX Runtime may fuse nodes near inputs and outputs differently.
const ALLOWED: f64 = 1e-5;

/// Maximum relative difference of outputs in half precision.
const ALLOWED_IN_HALF: f64 = 4e-3;

/// Returns the requested interface of a network.
pub(super) fn wanted(options: &DeployOptions, loader: Loader, facts: &Facts, profile: &Profile) -> Wanted {
    let of_network = options.precision().half_type();
    let dtype = match options.halves_interface {
        Some(true) => Some(of_network.unwrap_or(DataType::Float16)),
        Some(false) => Some(DataType::Float),
        None => of_network.filter(|_| loader.halves_interface()),
    };
    let sizes = if loader.fixes_sizes() { sizes_for(facts, &profile.usual()) } else { Sizes::new() };
    Wanted { dtype, sizes }
}

/// Checks whether a network fits a loader, before anything is measured.
///
/// # Errors
/// Fails if it does not fit. A network that does not denoise fits no loader.
pub(super) fn check(
    known: (&model::Model, &Graph, &Facts),
    options: &DeployOptions,
    loader: Loader,
    profile: &Profile,
) -> Result<(), Error> {
    adapted(known, options, loader, profile).map(|_| ())
}

fn adapted(
    (model, graph, facts): (&model::Model, &Graph, &Facts),
    options: &DeployOptions,
    loader: Loader,
    profile: &Profile,
) -> Result<Adapted, Error> {
    let roles = Roles::recognise(model, graph, facts, &options.network.names)?;
    adapt((model, graph, facts), &roles, loader, &wanted(options, loader, facts, profile))
}

/// The network with another interface, its profile, and what the user should know.
pub(super) struct AdaptedNetwork {
    pub(super) staged: Staged,
    pub(super) profile: Profile,
    pub(super) notes: Vec<String>,
}

/// Adapts a staged network to the interface of a loader and compares the outputs of both.
///
/// # Errors
/// Fails if the network does not fit, or if the outputs differ.
pub(super) fn adapt_staged(
    runtime: &Runtime,
    (staged, place): (&Staged, &Path),
    (options, loader): (&DeployOptions, Loader),
    (batches, usual): (&[Inputs], &Sizes),
    profile: &Profile,
    metadata: &[(String, String)],
) -> Result<AdaptedNetwork, Error> {
    let elsewhere = |error: Error| error.instead_of_file(staged.path(), place);
    let model = load::load(staged.path())?;
    let graph = Graph::new(&model)?;
    let facts = infer(&model, &graph, &ops::parse(&graph))?;
    let made = adapted((&model, &graph, &facts), options, loader, profile).map_err(elsewhere)?;
    let after = made.form.stage(place, metadata)?;
    let wanted = wanted(options, loader, &facts, profile);
    let batch = loader.fixes_sizes().then(|| first_size(&graph, &facts, &wanted.sizes)).flatten();
    let mut notes = made.notes.clone();
    match compare(runtime, (staged, &after), &made, (batches, batch)) {
        Ok(relative) => {
            let is_half =
                options.precision().half_type().is_some() || wanted.dtype.is_some_and(|it| it != DataType::Float);
            let allowed = if is_half { ALLOWED_IN_HALF } else { ALLOWED };
            if relative.is_nan() || relative > allowed {
                let text = format!(
                    "--io {}: the adapted network's outputs differ from the original's by {relative:.1e} (allowed {allowed:.0e})",
                    loader.name()
                );
                return Err(Error::verification_failed(text).in_file(place));
            }
        }
        // ONNX Runtime has bfloat16 kernels for only a few operators on the CPU.
        Err(_) if options.precision() == DeployPrecision::Bfloat16 => {
            notes.push(format!("--io {}: the adapted network was not compared with the original, since bfloat16 does not run on this CPU", loader.name()));
        }
        Err(error) => return Err(error.instead_of_file(after.path(), place).instead_of_file(staged.path(), place)),
    }
    let model = load::load(after.path())?;
    let graph = Graph::new(&model)?;
    let facts = infer(&model, &graph, &ops::parse(&graph))?;
    let given: &[(String, String)] = if loader.fixes_sizes() { &[] } else { &options.profile };
    let profile = Profile::new((&graph, &facts), given, usual).unwrap_or_default();
    Ok(AdaptedNetwork { staged: after, profile, notes })
}

/// Returns the size of the first axis of the first input that has more than one axis.
fn first_size(graph: &Graph, facts: &Facts, sizes: &Sizes) -> Option<usize> {
    let shapes = graph.inputs.iter().filter_map(|input| facts.values[*input].as_ref()?.shape.as_ref());
    let first = shapes.filter(|shape| shape.len() > 1).find_map(|shape| shape.first()?.eval(sizes));
    first.and_then(|size| usize::try_from(size).ok())
}

/// Returns the distance of the outputs of two forms of a network: the root mean squared difference relative to the root
/// mean square.
fn compare(
    runtime: &Runtime,
    (before, after): (&Staged, &Staged),
    made: &Adapted,
    (batches, batch): (&[Inputs], Option<usize>),
) -> Result<f64, Error> {
    let declared = &made.form.graph().input;
    let type_of = |name: &str| {
        let value = declared.iter().find(|value| value.name == name)?;
        match value.r#type.as_ref()?.value.as_ref()? {
            crate::onnx::type_proto::Value::TensorType(tensor) => ElementType::from_onnx(tensor.elem_type),
            _ => None,
        }
    };
    let is_time = |name: &str| made.bridges.iter().any(|own| own.is_time && own.fed == Fed::Input(name.to_owned()));
    let mut given: Vec<Inputs> = batches.iter().take(RUNS).cloned().collect();
    for (name, array) in given.iter_mut().flatten() {
        if let (Some(batch), false) = (batch, array.dims.is_empty() || (is_time(name) && array.dims == [1])) {
            let dims: Vec<usize> = std::iter::once(batch).chain(array.dims[1..].iter().copied()).collect();
            *array = rows(array, &dims, 0)?;
        }
        // If the new network takes an input in half precision, the old one gets the rounded values.
        let bridge = made.bridges.iter().find(|bridge| bridge.fed == Fed::Input(name.clone()));
        if let Some(rounded) = bridge.and_then(|bridge| type_of(&bridge.input)).filter(|to| to.is_float()) {
            *array = array.cast(rounded).cast(array.element_type());
        }
    }
    let wanted = outputs(runtime, before.path(), &given, &mut |_, _| Ok(()))?;
    let mapped = mapped(runtime, (before, made), &given)?;
    let found = outputs(runtime, after.path(), &mapped, &mut |_, _| Ok(()))?;
    let (mut difference, mut square) = (0.0, 0.0);
    for (wanted, found) in wanted.iter().zip(&found) {
        for (before, after) in &made.outputs {
            let of = |outputs: &Inputs, name: &str| {
                outputs.iter().find(|(own, _)| own == name).map(|(_, array)| array.to_f64())
            };
            let (Some(wanted), Some(found)) = (of(wanted, before), of(found, after)) else { return Ok(f64::NAN) };
            if wanted.len() != found.len() {
                return Ok(f64::NAN);
            }
            for (a, b) in wanted.iter().zip(&found).filter(|(a, _)| a.is_finite()) {
                difference += (a - b).powi(2);
                square += a * a;
            }
        }
    }
    Ok(if square > 0.0 { (difference / square).sqrt() } else { difference.sqrt() })
}

/// Converts inputs of the old network to inputs of the new one.
fn mapped(runtime: &Runtime, (before, made): (&Staged, &Adapted), given: &[Inputs]) -> Result<Vec<Inputs>, Error> {
    let values: Vec<&str> = made.bridges.iter().filter_map(Bridge::value).collect();
    let model = load::load(before.path())?;
    let mut inner = match values.is_empty() {
        true => None,
        false => Some(session_with_outputs(runtime, &model, &values, &SessionOptions::default())?),
    };
    let mut all = Vec::with_capacity(given.len());
    for inputs in given {
        let computed = match &mut inner {
            Some(session) => session.run(&taken(session, inputs)).map_err(|error| failed(&model, &error))?,
            None => Vec::new(),
        };
        let count =
            inputs.iter().find(|(_, array)| array.dims.len() > 1).and_then(|(_, array)| array.dims.first().copied());
        let mut new = Inputs::new();
        for bridge in &made.bridges {
            let (Fed::Input(name) | Fed::Value(name)) = &bridge.fed;
            let found = inputs.iter().chain(&computed).find(|(own, _)| own == name);
            let Some((_, array)) = found else { continue };
            let array = match bridge.is_time {
                true => repeated(array, &time_dims(made, &bridge.input, count.unwrap_or(1)))?,
                false => array.clone(),
            };
            new.push((bridge.input.clone(), array));
        }
        all.push(new);
    }
    Ok(all)
}

/// Returns the declared sizes of an input; a symbolic size is the batch.
fn time_dims(made: &Adapted, name: &str, batch: usize) -> Vec<usize> {
    use crate::onnx::tensor_shape_proto::dimension::Value;
    let value = made.form.graph().input.iter().find(|value| value.name == name);
    let shape = value.and_then(|value| match value.r#type.as_ref()?.value.as_ref()? {
        crate::onnx::type_proto::Value::TensorType(tensor) => tensor.shape.as_ref(),
        _ => None,
    });
    let size = |dim: &crate::onnx::tensor_shape_proto::Dimension| match &dim.value {
        Some(Value::DimValue(size)) => usize::try_from(*size).unwrap_or(1),
        _ => batch,
    };
    shape.into_iter().flat_map(|shape| &shape.dim).map(size).collect()
}

/// Returns an array of these sizes, filled with the first element of another.
fn repeated(array: &Array, dims: &[usize]) -> Result<Array, Error> {
    let first = array.to_f64().first().copied().unwrap_or(0.0);
    let count: usize = dims.iter().product();
    let data = ArrayData::from_f64(array.element_type(), &vec![first; count]);
    Array::new(dims.to_vec(), data)
        .map_err(|error| Error::usage(format!("the timestep does not fit the shape of its input: {error:?}")))
}
