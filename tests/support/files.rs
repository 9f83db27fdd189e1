//! Folders and files that tests write.

use std::path::{Path, PathBuf};

use onnx_diffprune::onnx::ModelProto;
use prost::Message as _;
use protobuf::Message as _;

/// Returns the names of everything in a folder, sorted.
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Decodes a model file with another protobuf library.
pub(crate) fn decoded(path: &Path) -> onnx_protobuf::ModelProto {
    onnx_protobuf::ModelProto::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

/// Writes a model as `net.onnx`. Returns its path.
pub(crate) fn save(folder: &Path, model: &ModelProto) -> PathBuf {
    let path = folder.join("net.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}
