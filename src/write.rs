//! Writing: the original file with the parts that change replaced, field by field.
//!
//! The writer works on the protobuf encoding itself. Whatever it does not have to change is copied as bytes, so that
//! fields this version does not know, metadata, names and order survive. Weights are sliced while they stream to the
//! file, and those that come from elsewhere ([`WeightSource`]) stream through it too. Files are written beside their
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

/// What was written.
#[derive(Clone, Debug)]
pub struct WriteReport {
    /// Bytes of the model file and its external data.
    pub bytes: u64,
    /// The external data file, if there is one.
    pub external: Option<PathBuf>,
}

/// A piece of the output file.
#[derive(Debug)]
pub(crate) enum Chunk<'m> {
    /// Bytes of the original or new ones.
    Bytes(Bytes),
    /// A tensor that is sliced while it is written.
    Sliced(slice::Sliced<'m>),
    /// A tensor whose elements come from elsewhere, and the bytes that they take.
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

/// The largest protobuf message; beyond it, weights go to an external file.
const PROTOBUF_LIMIT: u64 = i32::MAX as u64;

/// Tensors of fewer bytes stay in the model file even where weights are external.
const EXTERNAL_MINIMUM: u64 = 1024;

/// External tensors start at multiples of a page.
const EXTERNAL_ALIGNMENT: u64 = 4096;

/// Writes the edited model to `out`.
///
/// # Errors
/// `out` is the input or one of its data files, can't be written, or the disk is full; nothing is left behind then.
pub fn write(model: &Model, edits: &Edits, out: &Path) -> Result<WriteReport, Error> {
    write_chunks(model, out, &|external| message::model_chunks(model, edits, external))
}

/// A model with a graph that was made anew in memory; everything but the graph is that of the file it was made of, whose
/// external data the graph may name.
#[derive(Clone, Debug)]
pub struct Made<'a> {
    /// The graph, of which initializers are not written.
    pub graph: &'a GraphProto,
    /// All initializers: new or streamed ones.
    pub initializers: &'a [InitializerOut],
    /// Metadata entries to add or replace.
    pub metadata: &'a [(String, String)],
}

/// As [`stage()`], of a graph that was made anew.
///
/// # Errors
/// As [`stage()`].
pub fn stage_made(model: &Model, made: &Made<'_>, out: &Path) -> Result<Staged, Error> {
    let initializers = (made.graph, made.initializers);
    stage_by(model, out, &|file| {
        write_chunks(model, file, &|external| message::made_chunks(model, initializers, made.metadata, external))
    })
}

/// The chunks of a file, with what goes to external data where there is any.
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
        let text = format!("expected a model file below 2 GiB, found {} bytes beside external data", total(&chunks));
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

/// An output that is complete but not yet in its place, so that it can be verified first.
#[derive(Debug)]
pub struct Staged {
    /// Holds the files until they are published.
    #[expect(dead_code, reason = "held, not read")]
    folder: TemporaryFolder,
    file: PathBuf,
    destination: PathBuf,
    external: Option<(PathBuf, PathBuf)>,
    bytes: u64,
    /// The files of the input, none of which may go.
    inputs: Vec<PathBuf>,
}

/// Writes the edited model into a hidden folder beside `out`, which disappears unless the output is published.
///
/// # Errors
/// As [`write()`].
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
    /// Where the output is for now.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Bytes of the model file and its external data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves the output to its place together with `beside`, files with their contents: all of them or none. Data files
    /// that only the file in its place before named are removed.
    ///
    /// # Errors
    /// A place can't be written, or is that of another file of these or of the input.
    pub fn publish(self, beside: &[(PathBuf, Vec<u8>)]) -> Result<Published, Error> {
        let mut outputs = Outputs::default();
        let mut files = RunFiles::new();
        files.reads_all("the input", self.inputs.clone());
        for (place, content) in beside {
            files.writes("the file that goes beside the output", place);
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

/// What has taken its place.
#[derive(Clone, Debug)]
pub struct Published {
    /// What was written.
    pub report: WriteReport,
    /// Data files that only the replaced file named, and that are gone.
    pub removed: Vec<PathBuf>,
}

/// Refuses an output that would replace the input or one of its data files.
///
/// # Errors
/// See above; also an output that is a folder or a device, or that can't be written.
pub fn check_destination(model: &Model, out: &Path) -> Result<(), Error> {
    let mut files = files_of(model);
    files
        .writes("the output", out)
        .writes("the external data of the output", out.with_file_name(data_name(model, out)));
    files.check()
}

/// The files of a model, as what is read.
fn files_of(model: &Model) -> RunFiles {
    let mut files = RunFiles::new();
    files.reads("the input", model.path()).reads_all("the external data of the input", model.external_files());
    files
}

/// The name of the file with the external data of `out`, a changed form of `model`: its own name with `.data` after it. Where
/// the model is a part of a pipeline and the output has its name, the name of its data file stays too if there is one such
/// file: loaders look for `model.onnx_data` or `weights.pb`.
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
    files_of(model).writes("the output", out).check()
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

    /// Adds a tensor; returns location, offset and length.
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

/// A constant with some axes sliced, its elements in `raw_data`.
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

/// A node as the output stores it, with the external data of its tensors in it.
///
/// # Errors
/// External data that can't be read.
pub(crate) fn whole_node(model: &Model, node: &NodeProto) -> Result<Bytes, Error> {
    embed::embedded(model, embed::Message::Node, &node.encode_to_vec().into())
}
