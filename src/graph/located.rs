//! External data for ONNX Runtime. The runtime takes a model from memory, resolves its data against one folder, and
//! rejects links that lead out of that folder.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use prost::Message;

use super::external::Location;
use super::model::{Model, all_tensors};
use crate::files::{map, parent};
use crate::onnx::{AttributeProto, DataLocation, GraphProto, ModelProto, TensorProto};

/// Calls `change` for every tensor of a graph, its nodes and their subgraphs.
fn each_tensor(graph: &mut GraphProto, change: &mut dyn FnMut(&mut TensorProto)) {
    graph.initializer.iter_mut().for_each(&mut *change);
    for sparse in &mut graph.sparse_initializer {
        sparse.values.iter_mut().chain(&mut sparse.indices).for_each(&mut *change);
    }
    for node in &mut graph.node {
        for AttributeProto { t, tensors, g, graphs, .. } in &mut node.attribute {
            t.iter_mut().chain(tensors).for_each(&mut *change);
            g.iter_mut().chain(graphs).for_each(|graph| each_tensor(graph, change));
        }
    }
}

impl Model {
    /// Returns whether a link leads from the model's folder to data elsewhere.
    pub(crate) fn has_linked_data(&self) -> bool {
        let root = self.folder().canonicalize();
        root.is_ok_and(|root| self.external.values().any(|file| !file.real.starts_with(&root)))
    }

    /// Returns the folder for the locations of [`Model::located`]: the model's folder, or if links lead to data
    /// elsewhere, the closest folder that contains all data.
    pub fn data_folder(&self) -> PathBuf {
        if !self.has_linked_data() {
            return self.folder().to_owned();
        }
        let mut folders = self.external.values().map(|file| parent(&file.real));
        let first = folders.next().unwrap_or(Path::new("/")).to_owned();
        folders.fold(first, |common, folder| {
            common.ancestors().find(|above| folder.starts_with(above)).unwrap_or(Path::new("/")).to_owned()
        })
    }

    /// Returns `proto`, a form of this model, with the locations of its external data relative to
    /// [`Model::data_folder`].
    pub fn located<'p>(&self, proto: &'p ModelProto) -> Cow<'p, ModelProto> {
        if !self.has_linked_data() {
            return Cow::Borrowed(proto);
        }
        let (folder, mut proto) = (self.data_folder(), proto.clone());
        let real = |location: &str| {
            let file = self.external.get(location)?.real.strip_prefix(&folder).ok()?;
            file.to_str().map(str::to_owned)
        };
        if let Some(graph) = &mut proto.graph {
            each_tensor(graph, &mut |tensor| {
                if tensor.data_location == DataLocation::External as i32 {
                    let entries = tensor.external_data.iter_mut().filter(|entry| entry.key == "location");
                    entries.for_each(|entry| entry.value = real(&entry.value).unwrap_or_default());
                }
            });
        }
        Cow::Owned(proto)
    }
}

/// Returns the data files in the model's own folder that a model file names and that exist. `None`: the file is no
/// model.
pub(crate) fn named_data_files(path: &Path) -> Option<Vec<PathBuf>> {
    let proto = ModelProto::decode(map(path).ok()?).ok()?;
    let mut files: Vec<PathBuf> = Vec::new();
    for (tensor, _) in all_tensors(proto.graph.as_ref()?) {
        if tensor.data_location != DataLocation::External as i32 {
            continue;
        }
        let Ok((file, _)) = Location::of(tensor).and_then(|location| location.resolve(path)) else { continue };
        if parent(&file) == parent(path) && !files.contains(&file) {
            files.push(file);
        }
    }
    Some(files)
}
