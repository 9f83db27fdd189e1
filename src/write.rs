//! Writing: copies the original file and replaces the parts that change, field by field.
//!
//! The writer works on the protobuf encoding itself. Everything that does not change is copied as bytes, so that
//! unknown fields, metadata, names and order are kept. Weights are sliced while they are streamed to the file. Weights
//! from other sources ([`WeightSource`]) are streamed too. Files are written to temporary files next to their
//! destination and renamed when complete.

mod edits;

mod embed;

mod message;

mod pipe;

mod slice;

mod source;

mod stale;

mod stream;

mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;

use crate::error::{Error, ErrorKind};
use crate::files::{Outputs, RunFiles, TemporaryFolder, parent, unwritable};
use crate::graph::model::Model;
use crate::onnx::{DataLocation, GraphProto, NodeProto, TensorProto};

pub use edits::{DimOut, Edits, InitializerOut, NodeOut};
pub use slice::slice_bytes;
pub use source::{FileWeight, MemoryWeight, WeightSource, safetensors_weights};
pub use stream::Streamed;

/// The size and the external data file of a written model.
#[derive(Clone, Debug)]
pub struct WriteReport {
    /// Size in bytes of the model file and its external data.
    pub bytes: u64,
    /// The external data file. `None`: the model has none.
    pub external: Option<PathBuf>,
}

/// A piece of the output file.
#[derive(Debug)]
pub(crate) enum Chunk<'m> {
    /// Bytes of the original, or new ones.
    Bytes(Bytes),
    /// A tensor that is sliced while it is written.
    Sliced(slice::Sliced<'m>),
    /// A tensor whose elements come from another source, and its size in bytes.
    Streamed(&'m Streamed, u64),
}

impl Chunk<'_> {
    fn len(&self) -> u64 {
        match self {
            Chunk::Bytes(bytes) => bytes.len() as u64,
            Chunk::Sliced(sliced) => sliced.len(),
            Chunk::Streamed(_, length) => *length,
        }
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        match self {
            Chunk::Bytes(bytes) => out.write_all(bytes),
            Chunk::Sliced(sliced) => sliced.write(out),
            Chunk::Streamed(streamed, _) => streamed.write(out),
        }
    }
}

fn total(chunks: &[Chunk<'_>]) -> u64 {
    chunks.iter().map(Chunk::len).sum()
}

/// Maximum size in bytes of a protobuf message. Weights of larger models are written to an external file.
const PROTOBUF_LIMIT: u64 = i32::MAX as u64;

/// Tensors of fewer bytes are kept in the model file even if weights are external.
const EXTERNAL_MINIMUM: u64 = 1024;

/// Alignment in bytes of external tensors: they start at a page boundary.
const EXTERNAL_ALIGNMENT: u64 = 4096;

/// Writes the edited model to `out`.
///
/// # Errors
/// `out` is the input or one of its data files, can't be written, or the disk is full. No file is left behind.
pub fn write(model: &Model, edits: &Edits, out: &Path) -> Result<WriteReport, Error> {
    write_chunks(model, out, &|external| message::model_chunks(model, edits, external))
}

/// A model with a new graph in memory. Everything except the graph comes from the file of the original model, whose
/// external data the graph may use.
#[derive(Clone, Debug)]
pub struct Made<'a> {
    /// The graph. Its own initializers are not written.
    pub graph: &'a GraphProto,
    /// All initializers: new or streamed.
    pub initializers: &'a [InitializerOut],
    /// Metadata entries to add or replace.
    pub metadata: &'a [(String, String)],
}

/// Like [`stage()`], for a model with a new graph.
///
/// # Errors
/// As for [`stage()`].
pub fn stage_made(model: &Model, made: &Made<'_>, out: &Path) -> Result<Staged, Error> {
    let initializers = (made.graph, made.initializers);
    stage_by(model, out, &|file| {
        write_chunks(model, file, &|external| message::made_chunks(model, initializers, made.metadata, external))
    })
}

/// A function that returns the chunks of a file. It moves large tensors to the external data, if given.
type Chunks<'m, 'c> = dyn Fn(Option<&mut ExternalData<'m>>) -> Result<Vec<Chunk<'m>>, Error> + 'c;

fn write_chunks<'m>(model: &Model, out: &Path, make: &Chunks<'m, '_>) -> Result<WriteReport, Error> {
    refuse_overwriting_input(model, out)?;
    let is_external = |tensor: &TensorProto| tensor.data_location == DataLocation::External as i32;
    let mut uses_external = model.graph().initializer.iter().any(is_external);
    let data_name = data_name(model, out);
    let mut external = uses_external.then(|| ExternalData::new(&data_name));
    let mut chunks = make(external.as_mut())?;
    if !uses_external && total(&chunks) > PROTOBUF_LIMIT {
        uses_external = true;
        external = Some(ExternalData::new(&data_name));
        chunks = make(external.as_mut())?;
    }
    if total(&chunks) > PROTOBUF_LIMIT {
        let text = format!("expected a model file below 2 GiB, found {} bytes without external data", total(&chunks));
        return Err(Error::invalid(model.path(), text)
            .of_kind(ErrorKind::Unsupported)
            .hint("store large constants of nodes as initializers"));
    }
    let data_path = out.with_file_name(&data_name);
    if uses_external {
        refuse_overwriting_input(model, &data_path)?;
    }
    let fail = |error: std::io::Error| unwritable(out, error);
    let mut outputs = Outputs::default();
    let mut bytes = total(&chunks);
    let external = external.filter(|external| !external.tensors.is_empty());
    if let Some(external) = &external {
        bytes += external.end;
        let write = |file: &mut dyn Write| external.write(file);
        outputs.write(&data_path, |file| pipe::piped(external.end, file, write)).map_err(fail)?;
    }
    let write = |file: &mut dyn Write| chunks.iter().try_for_each(|chunk| chunk.write(file));
    outputs.write(out, |file| pipe::piped(total(&chunks), file, write)).map_err(fail)?;
    outputs.publish(&[])?;
    Ok(WriteReport { bytes, external: external.map(|_| data_path) })
}

/// An output that is complete but not at its destination yet, so that it can be verified first.
#[derive(Debug)]
pub struct Staged {
    /// Owns the files until they are published.
    #[expect(dead_code, reason = "held, not read")]
    folder: TemporaryFolder,
    file: PathBuf,
    destination: PathBuf,
    external: Option<(PathBuf, PathBuf)>,
    bytes: u64,
    /// The files of the input, which must not be removed.
    inputs: Vec<PathBuf>,
}

/// Writes the edited model into a hidden folder next to `out`. The folder is removed unless the output is published.
///
/// # Errors
/// As for [`write()`].
pub fn stage(model: &Model, edits: &Edits, out: &Path) -> Result<Staged, Error> {
    stage_by(model, out, &|file| write(model, edits, file))
}

fn stage_by(model: &Model, out: &Path, write: &dyn Fn(&Path) -> Result<WriteReport, Error>) -> Result<Staged, Error> {
    check_destination(model, out)?;
    let folder = TemporaryFolder::inside(parent(out)).map_err(|error| unwritable(out, error))?;
    let name = out.file_name().ok_or_else(|| Error::io(out, "expected a path for a file"))?;
    let file = folder.path().join(name);
    let report = write(&file).map_err(|error| error.instead_of_file(&file, out))?;
    let external = report.external.and_then(|data| {
        let destination = out.with_file_name(data.file_name()?);
        Some((data, destination))
    });
    Ok(Staged { folder, file, destination: out.to_owned(), external, bytes: report.bytes, inputs: model.files() })
}

impl Staged {
    /// Returns the current path of the output.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Returns the size in bytes of the model file and its external data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves the output to its destination together with `beside`, further files with their contents: all of them or
    /// none. Removes data files that only the replaced model used.
    ///
    /// # Errors
    /// A destination can't be written, or is the same as another of these files or a file of the input.
    pub fn publish(self, beside: &[(PathBuf, Vec<u8>)]) -> Result<Published, Error> {
        let mut outputs = Outputs::default();
        let mut files = RunFiles::new();
        files.add_inputs("the input", self.inputs.clone());
        for (place, content) in beside {
            files.add_output("the file written with the output", place);
            outputs.write(place, |file| file.write_all(content)).map_err(|error| unwritable(place, error))?;
        }
        files.check()?;
        let mut written = vec![self.destination.clone()];
        if let Some((data, destination)) = &self.external {
            outputs.add(data, destination);
            written.push(destination.clone());
        }
        outputs.add(&self.file, &self.destination);
        let removed = stale::stale_data(&self.destination, &[self.inputs, written].concat());
        outputs.publish(&removed)?;
        let external = self.external.map(|(_, destination)| destination);
        Ok(Published { report: WriteReport { bytes: self.bytes, external }, removed })
    }
}

/// An output that was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// The size and the external data file of the model.
    pub report: WriteReport,
    /// The data files that only the replaced model used. They were removed.
    pub removed: Vec<PathBuf>,
}

/// Checks that an output would not replace the input or one of its data files.
///
/// # Errors
/// It would, is a folder or a device, or can't be written.
pub fn check_destination(model: &Model, out: &Path) -> Result<(), Error> {
    let mut files = files_of(model);
    files
        .add_output("the output", out)
        .add_output("the external data of the output", out.with_file_name(data_name(model, out)));
    files.check()
}

/// Returns the files of a model, declared as inputs.
fn files_of(model: &Model) -> RunFiles {
    let mut files = RunFiles::new();
    files.add_input("the input", model.path()).add_inputs("the external data of the input", model.external_files());
    files
}

/// Returns the name of the external data file for `out`, a changed form of `model`: the name of `out` followed by
/// `.data`. If the model is part of a pipeline, the output has its name, and it has exactly one data file, that file's
/// name is kept instead: runtimes look for `model.onnx_data` or `weights.pb`.
pub fn data_name(model: &Model, out: &Path) -> String {
    let name = out.file_name().map_or("model.onnx".into(), std::ffi::OsStr::to_string_lossy);
    let own = || {
        let [file] = model.external_files().try_into().ok()?;
        let lies_beside = parent(&file) == parent(model.path());
        let keeps = model.keeps_data_name && lies_beside && model.path().file_name() == out.file_name();
        file.file_name().filter(|_| keeps)?.to_str().map(str::to_owned)
    };
    own().unwrap_or_else(|| format!("{name}.data"))
}

fn refuse_overwriting_input(model: &Model, out: &Path) -> Result<(), Error> {
    files_of(model).add_output("the output", out).check()
}

/// The external data file under construction.
pub(crate) struct ExternalData<'m> {
    location: String,
    tensors: Vec<(u64, Chunk<'m>)>,
    end: u64,
}

impl<'m> ExternalData<'m> {
    fn new(location: &str) -> Self {
        Self { location: location.to_owned(), tensors: Vec::new(), end: 0 }
    }

    /// Adds a tensor. Returns location, offset and length.
    fn add(&mut self, chunk: Chunk<'m>) -> (String, u64, u64) {
        let offset = self.end.next_multiple_of(EXTERNAL_ALIGNMENT);
        let length = chunk.len();
        self.end = offset + length;
        self.tensors.push((offset, chunk));
        (self.location.clone(), offset, length)
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let padding = [0; EXTERNAL_ALIGNMENT as usize];
        let mut at = 0;
        for (offset, chunk) in &self.tensors {
            out.write_all(&padding[..usize::try_from(offset - at).unwrap_or(0)])?;
            chunk.write(out)?;
            at = offset + chunk.len();
        }
        Ok(())
    }
}

/// Returns a constant with some axes sliced. Its elements are in `raw_data`.
///
/// # Errors
/// The element type can't be sliced, or the data can't be read.
pub fn constant_slice(model: &Model, tensor: &TensorProto, axes: &[(usize, Vec<usize>)]) -> Result<TensorProto, Error> {
    let sliced = slice::Sliced::new(model, tensor, axes)?;
    let mut raw = Vec::new();
    sliced.write(&mut raw).map_err(|error| unwritable(model.path(), error))?;
    Ok(TensorProto {
        name: tensor.name.clone(),
        doc_string: tensor.doc_string.clone(),
        data_type: tensor.data_type,
        dims: sliced.dims().to_vec(),
        raw_data: raw.into(),
        ..TensorProto::default()
    })
}

/// Returns a node as the output stores it: external data of its tensors is embedded.
///
/// # Errors
/// External data can't be read.
pub(crate) fn whole_node(model: &Model, node: &NodeProto) -> Result<Bytes, Error> {
    embed::embedded(model, embed::Message::Node, &node.encode_to_vec().into())
}
