//! A model file in memory: mapped, decoded without copying tensor data, together with its external data.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::digest::{DigestKind, Digests};
use super::external::{ExternalFile, Location};
use super::tensor;
use crate::error::Error;
use crate::files::{map, parent};
use crate::onnx::{DataLocation, DataType, GraphProto, ModelProto, NodeProto, TensorProto};

/// A model file in memory. Clones share the data.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
    pub(crate) proto: Arc<ModelProto>,
    pub(crate) graph: Arc<GraphProto>,
    pub(crate) inlined: bool,
    /// The external files, by the location that tensors name.
    pub(crate) external: Arc<BTreeMap<String, ExternalFile>>,
    pub(crate) digests: Arc<Digests>,
    pub(crate) notes: Arc<Vec<String>>,
    /// Whether a rewritten model keeps the name of its data file, because runtimes expect that name.
    pub(crate) keeps_data_name: bool,
}

/// Returns every tensor of a graph, its nodes and their subgraphs, with the node that carries it.
pub(crate) fn all_tensors(graph: &GraphProto) -> Vec<(&TensorProto, Option<&NodeProto>)> {
    fn collect<'g>(
        graph: &'g GraphProto,
        carrier: Option<&'g NodeProto>,
        found: &mut Vec<(&'g TensorProto, Option<&'g NodeProto>)>,
    ) {
        found.extend(graph.initializer.iter().map(|tensor| (tensor, carrier)));
        for sparse in &graph.sparse_initializer {
            found.extend(sparse.values.iter().chain(&sparse.indices).map(|tensor| (tensor, carrier)));
        }
        for node in &graph.node {
            for attribute in &node.attribute {
                found.extend(attribute.t.iter().chain(&attribute.tensors).map(|tensor| (tensor, Some(node))));
                for inner in attribute.g.iter().chain(&attribute.graphs) {
                    collect(inner, Some(node), found);
                }
            }
        }
    }
    let mut found = Vec::new();
    collect(graph, None, &mut found);
    found
}

impl Model {
    /// Returns the path from which the model was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder against which external data locations are resolved.
    pub fn folder(&self) -> &Path {
        parent(&self.path)
    }

    /// Returns notes on what in the file violates the ONNX format.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds a note on what in the file violates the ONNX format.
    pub(crate) fn note(&mut self, text: String) {
        Arc::make_mut(&mut self.notes).push(text);
    }

    /// Returns everything in the file except the graph.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// Returns the main graph. Model-local functions are inlined, and an If whose branch is known is replaced by that
    /// branch.
    pub fn graph(&self) -> &GraphProto {
        &self.graph
    }

    /// Returns the same model with another graph in memory. The graph may refer to the same external data.
    pub(crate) fn with_graph(&self, graph: GraphProto) -> Self {
        Self { graph: Arc::new(graph), ..self.clone() }
    }

    /// Advises the system that the model file will not be read for a while, so that its pages can leave memory.
    pub(crate) fn set_aside(&self) {
        #[cfg(target_os = "linux")]
        #[expect(
            unsafe_code,
            reason = "madvise with MADV_PAGEOUT keeps the contents of pages, and all of these pages lie in the slice"
        )]
        unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096).max(1);
            let skipped = self.bytes.as_ptr().align_offset(page);
            if let Some(length) = self.bytes.len().checked_sub(skipped) {
                let first = self.bytes.as_ptr().add(skipped).cast_mut().cast();
                libc::madvise(first, length / page * page, libc::MADV_PAGEOUT);
            }
        }
    }

    /// Returns the bytes of the model file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns whether functions or branches were inlined. If so, the nodes differ from those of the file.
    pub fn is_inlined(&self) -> bool {
        self.inlined
    }

    /// Returns the opset version of a domain. `None`: the model does not import the domain.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        let mut imports = self.proto.opset_import.iter();
        imports
            .find(|import| import.domain == domain || (standard(&import.domain) && standard(domain)))
            .map(|import| import.version)
    }

    /// Returns the elements of a tensor as little-endian bytes in row-major order: borrowed from the mapped files, or
    /// converted from a typed field.
    ///
    /// # Errors
    /// External data that is missing, outside the model's folder, or of another size than the tensor; string tensors.
    pub fn tensor_bytes<'m>(&'m self, tensor: &'m TensorProto) -> Result<Cow<'m, [u8]>, Error> {
        let fail = |message: String| Error::invalid(&self.path, format!("tensor {:?}: {message}", tensor.name));
        if tensor.data_location == DataLocation::External as i32 {
            let (file, range) = self.external_place(tensor)?;
            return Ok(Cow::Borrowed(&file.bytes[range]));
        }
        if tensor.element_type() == DataType::String {
            return Err(fail("strings have no fixed size in bytes; expected a numeric element type".to_owned()));
        }
        Ok(tensor::stored_bytes(tensor))
    }

    /// Like [`Model::tensor_bytes`], but returns a handle that shares the mapped file instead of borrowing the model.
    ///
    /// # Errors
    /// As for [`Model::tensor_bytes`].
    pub fn tensor_view(&self, tensor: &TensorProto) -> Result<Bytes, Error> {
        if tensor.data_location == DataLocation::External as i32 {
            let (file, range) = self.external_place(tensor)?;
            return Ok(file.bytes.slice(range));
        }
        if !tensor.raw_data.is_empty() {
            return Ok(tensor.raw_data.clone());
        }
        Ok(Bytes::from(self.tensor_bytes(tensor)?.into_owned()))
    }

    /// Returns the file that holds a tensor's external data, and the range in it.
    fn external_place(&self, tensor: &TensorProto) -> Result<(&ExternalFile, std::ops::Range<usize>), Error> {
        let fail = |message: String| Error::invalid(&self.path, format!("tensor {:?}: {message}", tensor.name));
        let location = Location::of(tensor).map_err(fail)?;
        let file = self.external.get(location.file()).ok_or_else(|| {
            fail(format!("its external data file {:?} is not mapped for this model", location.file()))
        })?;
        let needed = tensor::byte_length(tensor).map_err(fail)?;
        let range = location.range(file.bytes.len() as u64, needed);
        Ok((file, range.map_err(|message| fail(format!("{}: {message}", file.path.display())))?))
    }

    /// Maps the files that the model's tensors name as external data.
    pub(crate) fn map_external_files(&self) -> Result<BTreeMap<String, ExternalFile>, Error> {
        let mut files = BTreeMap::new();
        for (tensor, _) in all_tensors(&self.graph) {
            if tensor.data_location != DataLocation::External as i32 {
                continue;
            }
            let fail = |message: String| Error::invalid(&self.path, format!("tensor {:?}: {message}", tensor.name));
            let location = Location::of(tensor).map_err(fail)?;
            if files.contains_key(location.file()) {
                continue;
            }
            let (path, real) = location.resolve(&self.path).map_err(fail)?;
            let bytes = map(&real).map_err(|error| {
                let text = format!(
                    "tensor {:?}: its external data file {} can't be read: {error}",
                    tensor.name,
                    path.display()
                );
                Error::unreadable(&self.path, text).caused_by(error)
            })?;
            files.insert(location.file().to_owned(), ExternalFile { path, real, bytes });
        }
        Ok(files)
    }

    /// Returns whether any tensor of the model is in another file.
    pub fn has_external_files(&self) -> bool {
        !self.external.is_empty()
    }

    /// Returns the external data files that the model names, sorted by path.
    pub fn external_files(&self) -> Vec<PathBuf> {
        let paths: BTreeSet<&PathBuf> = self.external.values().map(|file| &file.path).collect();
        paths.into_iter().cloned().collect()
    }

    /// Returns the digest of the model file followed by its external data files sorted by path, in hexadecimal.
    pub fn digest(&self, kind: DigestKind) -> String {
        let external: BTreeMap<&PathBuf, &Bytes> =
            self.external.values().map(|file| (&file.path, &file.bytes)).collect();
        self.digests.get(kind, std::iter::once(&self.bytes).chain(external.into_values())).into_owned()
    }

    /// Returns the model file and its external data files.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone()];
        files.extend(self.external_files());
        files
    }

    /// Returns the total size in bytes of the model file and its external data files.
    ///
    /// # Errors
    /// An external file has disappeared.
    pub fn total_bytes(&self) -> Result<u64, Error> {
        let mut total = self.bytes.len() as u64;
        for path in self.external_files() {
            let data = path.metadata().map_err(|error| Error::unreadable(&path, format!("can't be read: {error}")))?;
            total += data.len();
        }
        Ok(total)
    }
}
