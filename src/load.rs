//! Reading and checking of model files.
//!
//! The file is mapped into memory and decoded without copying tensor data: `raw_data` is a view of the map. External
//! data is mapped too, and read when a tensor is used. The decoded model is checked: names, edges, shapes of constants.

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

/// Maximum number of rounds. A known sequence may decide a branch, and a branch may contain a sequence; real exports
/// need one round of each.
const MOST_ROUNDS: usize = 64;

/// Reads and checks a model file.
///
/// # Errors
/// The file can't be read, is not an ONNX model, or is inconsistent. The error names the file, and the node or tensor.
pub fn load(path: &Path) -> Result<Model, Error> {
    if path.is_dir() {
        return Err(Error::unreadable(path, "expected an ONNX file, found a folder")
            .hint("for a pipeline folder, pass the network's file in it, such as unet/model.onnx"));
    }
    let bytes =
        map(path).map_err(|error| Error::unreadable(path, format!("can't be read: {error}")).caused_by(error))?;
    from_bytes(path, bytes)
}

/// Checks a model file that is in memory already.
///
/// `path` names the model in messages. External data is read from the folder of `path`.
///
/// # Errors
/// The bytes are not an ONNX model, or the model is inconsistent. The error names the file, and the node or tensor.
pub fn from_bytes(path: &Path, bytes: Bytes) -> Result<Model, Error> {
    let fail = |message: String| Error::malformed(path, message);
    if bytes.is_empty() {
        return Err(fail("expected an ONNX model, found an empty file".to_owned())
            .hint("check that the file was copied or downloaded completely"));
    }
    let mut proto = ModelProto::decode(bytes.clone()).map_err(|error| {
        fail(format!("not an ONNX model, or the file is truncated: {error}"))
            .hint("check that the file was copied completely and is not a git-lfs pointer")
            .caused_by(error)
    })?;
    let inlined = !proto.functions.is_empty();
    if inlined {
        inline::inline_functions(&mut proto).map_err(fail)?;
    }
    let graph = proto.graph.take().ok_or_else(|| {
        fail("not an ONNX model: it has no graph".to_owned())
            .hint("check that the file is an ONNX model and was copied completely")
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
