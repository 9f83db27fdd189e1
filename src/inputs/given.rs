//! Inputs that the user gives.

use std::path::Path;

use crate::array::Array;
use crate::error::{Error, ErrorKind};
use crate::graph::Graph;
use crate::graph::model::Model;
use crate::npz::{ArrayFile, Entry, NpzError};
use crate::onnx::{ValueInfoProto, tensor_shape_proto, type_proto};
use crate::runtime::check_memory;

fn input_names(graph: &Graph) -> impl Iterator<Item = &str> {
    graph.inputs.iter().map(|input| graph.values[*input].name.as_str())
}

/// Refuses arrays that match no input of the graph.
///
/// # Errors
/// Fails if a name is no input of the graph.
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

/// Returns the sizes that a graph input declares; `None` if it declares no shape, or for an axis without a fixed size.
fn declared_dims(input: &ValueInfoProto) -> Option<Vec<Option<i64>>> {
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref()?.value.as_ref() else { return None };
    let dims = tensor.shape.as_ref()?.dim.iter().map(|dim| match dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(size)) => Some(size),
        _ => None,
    });
    Some(dims.collect())
}

/// Returns the inputs of a model that declare a rank: name and fixed sizes.
pub fn declared(model: &Model) -> Vec<(String, Vec<Option<i64>>)> {
    let graph = model.graph();
    let is_input = |name: &str| graph.initializer.iter().all(|tensor| tensor.name != name);
    let inputs = graph.input.iter().filter(|input| is_input(&input.name));
    inputs.filter_map(|input| Some((input.name.clone(), declared_dims(input)?))).collect()
}

/// Refuses arrays that would take more memory than is available: they are held once as bytes and once as elements.
///
/// # Errors
/// Fails in this case, or if a header can't be read.
pub fn check_size(file: &ArrayFile) -> Result<(), Error> {
    let fail = |text: String| Error::usage(text).of_kind(ErrorKind::Unreadable);
    let counts = file.entries().iter().map(Entry::byte_count).collect::<Result<Vec<u64>, NpzError>>();
    let total: u64 = counts.map_err(|error| fail(error.to_string()).caused_by(error))?.iter().sum();
    let names: Vec<String> = file.entries().iter().take(3).map(|entry| format!("{:?}", entry.name())).collect();
    let what = format!("{}{}", names.join(", "), if file.entries().len() > 3 { ", ..." } else { "" });
    check_memory(total.saturating_mul(2)).map_err(|text| fail(format!("{what} can't be read: {text}")))
}

/// Reads arrays by the names of a model's inputs. Arrays that match no input are refused before the file is unpacked.
///
/// # Errors
/// Fails if a name is no input of the model, if sizes differ from the input's (except the first, which counts rows), if
/// the arrays don't fit into memory, or if the file can't be read.
pub(super) fn read(model: &Model, path: &Path) -> Result<Vec<(String, Array)>, Error> {
    let fail = |error: NpzError| Error::unreadable(path, error.to_string()).caused_by(error);
    let mut file = ArrayFile::open(path).map_err(fail)?;
    let graph = model.graph();
    let is_input = |name: &str| graph.initializer.iter().all(|tensor| tensor.name != name);
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|input| is_input(&input.name)).collect();
    for entry in file.entries() {
        let Some(input) = inputs.iter().find(|input| input.name == entry.name()) else {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            let text = format!("--inputs: expected arrays named {}, found {:?}", names.join(", "), entry.name());
            return Err(Error::usage(text)
                .in_file(path)
                .hint("name the arrays after inputs of the network; a .npy file is named after its input"));
        };
        let found = entry.dims().map_err(fail)?;
        let Some(expected) = declared_dims(input) else { continue };
        // A network that takes single samples may get many; they are run in turn.
        let fits = |(axis, (size, found)): (usize, (&Option<i64>, &usize))| {
            axis == 0 || size.is_none_or(|size| usize::try_from(size) == Ok(*found))
        };
        // An array of shape [1] is accepted for a scalar.
        if expected.is_empty() && *found == [1] {
            continue;
        }
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
    let mut arrays = file.read_all().map_err(fail)?;
    for (name, array) in &mut arrays {
        let is_scalar = inputs.iter().any(|input| input.name == *name && declared_dims(input) == Some(Vec::new()));
        if is_scalar && array.dims == [1] {
            array.dims.clear();
        }
    }
    Ok(arrays)
}

/// Returns `count` rows of an array, evenly spread; all rows if it has no more, or if no count is given.
pub(super) fn some_rows(array: &Array, count: Option<usize>) -> Array {
    let Some(rows) = array.dims.first().copied().filter(|rows| count.is_some_and(|count| count < *rows)) else {
        return array.clone();
    };
    let count = count.unwrap_or(rows);
    let chosen: Vec<usize> = (0..count).map(|at| (2 * at + 1) * rows / (2 * count)).collect();
    array.rows(&chosen)
}
