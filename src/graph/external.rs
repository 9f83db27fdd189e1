//! The location of a tensor's external data.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::files::parent;
use crate::onnx::TensorProto;

/// A mapped file of external data.
#[derive(Clone, Debug)]
pub(crate) struct ExternalFile {
    /// The path in the model's folder.
    pub(crate) path: PathBuf,
    /// The path with links resolved.
    pub(crate) real: PathBuf,
    pub(crate) bytes: Bytes,
}

/// The file, offset and length of a tensor's external data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    file: String,
    offset: u64,
    length: Option<u64>,
}

impl Location {
    /// Reads the keys `location`, `offset` and `length` of a tensor.
    pub(crate) fn of(tensor: &TensorProto) -> Result<Self, String> {
        let value = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let number = |key: &str| {
            value(key)
                .map(|text| {
                    text.trim()
                        .parse::<u64>()
                        .map_err(|_| format!("its external data has the {key} {text:?}; expected a number of bytes"))
                })
                .transpose()
        };
        let file = value("location").ok_or("it is stored as external data but has no `location`")?.clone();
        Ok(Self { file, offset: number("offset")?.unwrap_or(0), length: number("length")? })
    }

    /// Returns the file as the tensor names it.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Returns the file for a model at `model`: its path in the model's folder, and its real path.
    ///
    /// As in ONNX Runtime, the real file must be in the folder of the model's path, or in the real folder of the file
    /// that this path links to. Download caches keep all files in one folder and link to them from elsewhere.
    pub(crate) fn resolve(&self, model: &Path) -> Result<(PathBuf, PathBuf), String> {
        let relative = Path::new(&self.file);
        let stays = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !stays || self.file.is_empty() {
            let file = &self.file;
            return Err(format!(
                "its external data location {file:?} must be a relative path inside the folder of the model"
            ));
        }
        // `./data` and `data` are the same file.
        let parts = relative.components().filter(|part| matches!(part, Component::Normal(_)));
        let folder = parent(model);
        let path = folder.join(parts.collect::<PathBuf>());
        let real = path.canonicalize().map_err(|error| {
            let path = path.display();
            format!("its external data file {path} can't be found (copy it together with the model): {error}")
        })?;
        let root = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
        let is_in_real_folder =
            || model.canonicalize().is_ok_and(|model| model.parent().is_some_and(|root| real.starts_with(root)));
        if !real.starts_with(&root) && !is_in_real_folder() {
            let file = &self.file;
            return Err(format!(
                "its external data location {file:?} is a link that leads out of the folder of the model"
            ));
        }
        Ok((path, real))
    }

    /// Returns the range of the tensor's bytes in a file of `size` bytes. `needed` is the size that follows from its
    /// shape.
    pub(crate) fn range(&self, size: u64, needed: Option<u64>) -> Result<Range<usize>, String> {
        let length = self.length.or(needed).unwrap_or(size.saturating_sub(self.offset));
        if let Some(needed) = needed
            && needed != length
        {
            return Err(format!("expected {needed} bytes for its shape, found a length of {length}"));
        }
        let end = self.offset.checked_add(length).filter(|end| *end <= size).ok_or_else(|| {
            format!("expected {length} bytes at offset {}, found a file of {size} bytes", self.offset)
        })?;
        let to_index = |at: u64| usize::try_from(at).map_err(|_| "it does not fit into memory".to_owned());
        Ok(to_index(self.offset)?..to_index(end)?)
    }
}
