//! Writing: the original file with the parts that change replaced, field by field.
//!
//! The writer works on the protobuf encoding itself. Whatever it does not have to change is copied as bytes, so that
//! fields this version does not know, metadata, names and order survive. Weights are sliced while they stream to the
//! file, and those that come from elsewhere ([`WeightSource`]) stream through it too. Files are written beside their
//! destination and renamed when complete.

mod edits;

mod embed;

mod message;

mod slice;

mod source;

mod stream;

mod wire;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;

use crate::error::{Error, ErrorKind};
use crate::graph::model::Model;
use crate::onnx::{DataLocation, NodeProto, TensorProto};

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
    refuse_overwriting_input(model, out)?;
    let is_external = |tensor: &TensorProto| tensor.data_location == DataLocation::External as i32;
    let mut uses_external = model.graph().initializer.iter().any(is_external);
    let data_name = data_name(out);
    let mut external = uses_external.then(|| ExternalData::new(&data_name));
    let mut chunks = message::model_chunks(model, edits, external.as_mut())?;
    if !uses_external && total(&chunks) > PROTOBUF_LIMIT {
        uses_external = true;
        external = Some(ExternalData::new(&data_name));
        chunks = message::model_chunks(model, edits, external.as_mut())?;
    }
    if total(&chunks) > PROTOBUF_LIMIT {
        let text = format!("expected a model file below 2 GiB, found {} bytes beside external data", total(&chunks));
        return Err(Error::invalid(model.path(), text)
            .of_kind(ErrorKind::Unsupported)
            .hint("store large constants of nodes as initializers"));
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let data_path = folder.join(&data_name);
    if uses_external {
        refuse_overwriting_input(model, &data_path)?;
    }
    let fail = |error: std::io::Error| unwritable(out, error);
    let mut bytes = 0;
    let data_file = match external.as_ref().filter(|external| !external.tensors.is_empty()) {
        Some(external) => {
            bytes += external.end;
            Some(beside(folder, |file| external.write(file)).map_err(fail)?)
        }
        None => None,
    };
    bytes += total(&chunks);
    let model_file = beside(folder, |file| chunks.iter().try_for_each(|chunk| chunk.write(file))).map_err(fail)?;
    let has_data = data_file.is_some();
    if let Some(file) = data_file {
        file.persist(&data_path).map_err(|error| fail(error.error))?;
    }
    if let Err(error) = model_file.persist(out) {
        if has_data {
            // The model that would have named it does not exist.
            let _ = std::fs::remove_file(&data_path);
        }
        return Err(fail(error.error));
    }
    Ok(WriteReport { bytes, external: has_data.then_some(data_path) })
}

/// Writes a temporary file in the folder of its destination; it disappears unless it is persisted.
fn beside(
    folder: &Path,
    content: impl Fn(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnx-diffprune-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary files are private by default; a model is as readable as any file the user makes.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
    content(&mut writer)?;
    writer.flush()?;
    drop(writer);
    Ok(file)
}

/// An output that is complete but not yet in its place, so that it can be verified first.
#[derive(Debug)]
pub struct Staged {
    folder: tempfile::TempDir,
    file: PathBuf,
    destination: PathBuf,
    external: Option<(PathBuf, PathBuf)>,
    bytes: u64,
}

/// Writes the edited model into a hidden folder beside `out`, which disappears unless the output is published.
///
/// # Errors
/// As [`write()`].
pub fn stage(model: &Model, edits: &Edits, out: &Path) -> Result<Staged, Error> {
    check_destination(model, out)?;
    let parent = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new()
        .prefix(".onnx-diffprune-")
        .tempdir_in(parent)
        .map_err(|error| unwritable(out, error))?;
    let name = out.file_name().ok_or_else(|| Error::io(out, "expected a path for a file"))?;
    let file = folder.path().join(name);
    let report = write(model, edits, &file).map_err(|error| error.instead_of_file(&file, out))?;
    let external = report.external.and_then(|data| {
        let destination = parent.join(data.file_name()?);
        Some((data, destination))
    });
    Ok(Staged { folder, file, destination: out.to_owned(), external, bytes: report.bytes })
}

impl Staged {
    /// Where the output is for now.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Moves the output to its destination, external data first.
    ///
    /// # Errors
    /// The destination can't be written.
    pub fn publish(self) -> Result<WriteReport, Error> {
        let move_to = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(|error| unwritable(to, error));
        if let Some((data, destination)) = &self.external {
            move_to(data, destination)?;
        }
        if let Err(error) = move_to(&self.file, &self.destination) {
            if let Some((_, destination)) = &self.external {
                // The model that would have named it does not exist.
                let _ = std::fs::remove_file(destination);
            }
            return Err(error);
        }
        drop(self.folder);
        Ok(WriteReport { bytes: self.bytes, external: self.external.map(|(_, destination)| destination) })
    }
}

/// What the system said of a file that can't be written, and what can be done about it; or what was wrong with a tensor
/// that was to be written.
fn unwritable(path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let error = match error.downcast::<Error>() {
        Ok(of_tensor) => return of_tensor.in_file(path),
        Err(error) => error,
    };
    let hint = match error.kind() {
        StorageFull | QuotaExceeded => "free some space or write to another disk",
        FileTooLarge => "raise the limit of file sizes (ulimit -f) or write to another file system",
        _ => "check that the folder exists and can be written to",
    };
    Error::io(path, format!("can't be written: {error}")).hint(hint).caused_by(error)
}

/// Refuses an output that would replace the input or one of its data files.
///
/// # Errors
/// See above; also an output that is a folder.
pub fn check_destination(model: &Model, out: &Path) -> Result<(), Error> {
    refuse_overwriting_input(model, out)?;
    refuse_overwriting_input(model, &out.with_file_name(data_name(out)))
}

/// The name of the file with the external data of `out`.
fn data_name(out: &Path) -> String {
    format!("{}.data", out.file_name().map_or("model.onnx".into(), std::ffi::OsStr::to_string_lossy))
}

fn refuse_overwriting_input(model: &Model, out: &Path) -> Result<(), Error> {
    let mut inputs = vec![model.path().to_owned()];
    inputs.extend(model.external_files());
    for input in inputs {
        if is_same_file(&input, out) {
            return Err(Error::usage("the output would replace the input")
                .in_file(out)
                .hint("choose another output path"));
        }
    }
    refuse_special(out)
}

/// The rename that ends all writing would put a file in the place of `/dev/null`.
fn refuse_special(out: &Path) -> Result<(), Error> {
    match out.metadata() {
        Ok(data) if data.is_dir() => Err(Error::io(out, "expected a path for a file, found a folder")),
        Ok(data) if !data.is_file() => Err(Error::io(out, "expected a path for a file, found a device or pipe")),
        _ => Ok(()),
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
            return a.dev() == b.dev() && a.ino() == b.ino();
        }
    }
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
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

/// Writes bytes beside their destination and renames them into place.
///
/// # Errors
/// The destination can't be written; nothing is left behind then.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    refuse_special(path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |error: std::io::Error| unwritable(path, error);
    let file = beside(folder, |file| file.write_all(content)).map_err(fail)?;
    let _: File = file.persist(path).map_err(|error| fail(error.error))?;
    Ok(())
}
