//! Reading model files.
//!
//! The file is mapped into memory and decoded without copying tensor data: `raw_data` stays a view of the map.
//! External data is mapped too, and read where a tensor is asked for. What comes out is checked: names, edges, shapes of constants.

mod branches;

mod check;

mod imports;

mod inline;

mod names;

mod sequences;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::error::Error;
use crate::files::map;
use crate::graph::model::Model;
use crate::onnx::ModelProto;

/// What a sequence tells may decide a branch, and a branch give a sequence; real exports have one after the other.
const MOST_ROUNDS: usize = 64;

/// Reads and checks a model file.
///
/// # Errors
/// The file can't be read, is no ONNX model, or contradicts itself; the message names file and place.
pub fn load(path: &Path) -> Result<Model, Error> {
    if path.is_dir() {
        return Err(Error::unreadable(path, "expected an ONNX file, found a folder")
            .hint("of a pipeline, name the network's own file, such as unet/model.onnx in it"));
    }
    let bytes =
        map(path).map_err(|error| Error::unreadable(path, format!("can't be read: {error}")).caused_by(error))?;
    from_bytes(path, bytes)
}

/// Checks a model file that is in memory already.
///
/// `path` names the model in messages; external data is read from the folder it lies in.
///
/// # Errors
/// The bytes are no ONNX model, or one that contradicts itself; the message names file and place.
pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<Model, Error> {
    let fail = |message: String| Error::invalid(path, message);
    if bytes.is_empty() {
        return Err(fail("expected an ONNX model, found an empty file".to_owned()));
    }
    let mut proto = ModelProto::decode(bytes.clone()).map_err(|error| {
        fail(format!("not an ONNX model, or a truncated one: {error}"))
            .hint("check that the file was copied whole and is not a git-lfs pointer")
            .caused_by(error)
    })?;
    let inlined = !proto.functions.is_empty();
    if inlined {
        inline::inline_functions(&mut proto).map_err(fail)?;
    }
    let graph = proto.graph.take().ok_or_else(|| {
        fail("not an ONNX model: it has no graph".to_owned()).hint("check that the file is an ONNX model, copied whole")
    })?;
    let mut model = Model {
        path: path.to_owned(),
        bytes,
        proto: Arc::new(proto),
        graph: Arc::new(graph),
        inlined,
        external: Arc::default(),
        digests: Arc::default(),
        keeps_data_name: false,
        notes: Arc::default(),
    };
    model.external = Arc::new(model.map_external_files()?);
    check::check(&model)?;
    imports::complete(&mut model);
    for _ in 0..MOST_ROUNDS {
        branches::take_decided(&mut model)?;
        if !sequences::take_tensors(&mut model)? {
            break;
        }
    }
    Ok(model)
}
