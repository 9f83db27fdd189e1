//! Values between segments, by chunk of samples: in memory up to a limit, beyond it in a temporary file beside the output.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::segment::Held;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::files::TemporaryFolder;

/// The storage of a value's elements.
#[derive(Debug)]
enum Place {
    Memory(Array),
    /// A part of the file: offset and sizes. The elements are float32.
    File {
        offset: u64,
        dims: Vec<usize>,
    },
}

/// The stored values of one network.
#[derive(Debug)]
pub(super) struct Store {
    values: HashMap<String, Vec<Option<Place>>>,
    chunks: usize,
    /// Number of bytes that may still be stored in memory.
    room: u64,
    /// The folder in which the temporary file is created. `None`: the folder for temporary files.
    place: Option<PathBuf>,
    /// The file, in a temporary folder that is removed with it.
    file: Option<(File, TemporaryFolder)>,
    /// The end of the file.
    end: u64,
    /// Unused parts of the file: length and offset.
    free: Vec<(u64, u64)>,
}

impl Held for Store {
    fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
}

fn bytes(array: &Array) -> u64 {
    (array.data.len() * array.element_type().byte_count()) as u64
}

impl Store {
    /// Returns an empty store. It keeps up to `room` bytes in memory and writes the rest to a file in the folder `place`.
    /// `None`: in the folder for temporary files.
    pub(super) fn new(chunks: usize, room: u64, place: Option<&Path>) -> Self {
        Self {
            values: HashMap::new(),
            chunks,
            room,
            place: place.map(Path::to_owned),
            file: None,
            end: 0,
            free: Vec::new(),
        }
    }

    /// Returns the names of all values.
    pub(super) fn names(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }

    /// Stores a value of a chunk.
    ///
    /// # Errors
    /// The temporary file can't be written.
    pub(super) fn put(&mut self, name: &str, chunk: usize, array: Array) -> Result<(), Error> {
        let size = bytes(&array);
        let place = if size <= self.room || array.element_type() != ElementType::F32 {
            self.room = self.room.saturating_sub(size);
            Place::Memory(array)
        } else {
            self.spill(&array)?
        };
        let chunks = self.chunks;
        let values = self.values.entry(name.to_owned()).or_insert_with(|| (0..chunks).map(|_| None).collect());
        values[chunk] = Some(place);
        Ok(())
    }

    fn spill(&mut self, array: &Array) -> Result<Place, Error> {
        let folder = &self.place;
        let ArrayData::F32(values) = &array.data else { return Ok(Place::Memory(array.clone())) };
        let length = bytes(array);
        let made = || {
            let folder = folder.as_deref().map_or_else(TemporaryFolder::anywhere, TemporaryFolder::inside)?;
            Ok((folder.create("values")?, folder))
        };
        let (file, _) = match &mut self.file {
            Some(file) => file,
            none => none.insert(made().map_err(|error| failed(folder.as_deref(), &error))?),
        };
        let offset = match self.free.iter().position(|(free, _)| *free == length) {
            Some(at) => self.free.swap_remove(at).1,
            None => {
                self.end += length;
                self.end - length
            }
        };
        file.seek(SeekFrom::Start(offset)).map_err(|error| failed(folder.as_deref(), &error))?;
        file.write_all(bytemuck::cast_slice(values)).map_err(|error| failed(folder.as_deref(), &error))?;
        Ok(Place::File { offset, dims: array.dims.clone() })
    }

    /// Returns a value of a chunk.
    ///
    /// # Errors
    /// The value is not stored, or the temporary file can't be read.
    pub(super) fn get(&mut self, name: &str, chunk: usize) -> Result<Array, Error> {
        let place = self.values.get(name).and_then(|chunks| chunks.get(chunk)?.as_ref());
        match place {
            Some(Place::Memory(array)) => Ok(array.clone()),
            Some(Place::File { offset, dims }) => {
                let folder = &self.place;
                let mut values = vec![0.0f32; dims.iter().product()];
                let (offset, dims) = (*offset, dims.clone());
                let (file, _) = self.file.as_mut().ok_or_else(|| Error::unmet("the temporary file is missing"))?;
                file.seek(SeekFrom::Start(offset)).map_err(|error| failed(folder.as_deref(), &error))?;
                file.read_exact(bytemuck::cast_slice_mut(&mut values))
                    .map_err(|error| failed(folder.as_deref(), &error))?;
                Ok(Array { dims, data: ArrayData::F32(values) })
            }
            None => Err(Error::unmet(format!("value {name:?} of the refit is not stored"))),
        }
    }

    /// Drops a value.
    pub(super) fn drop(&mut self, name: &str) {
        for place in self.values.remove(name).into_iter().flatten().flatten() {
            match place {
                Place::Memory(array) => self.room += bytes(&array),
                Place::File { offset, dims } => self.free.push((4 * dims.iter().product::<usize>() as u64, offset)),
            }
        }
    }
}

fn failed(folder: Option<&Path>, error: &std::io::Error) -> Error {
    let folder = folder.unwrap_or(Path::new("the folder for temporary files (TMPDIR)"));
    Error::io(folder, format!("values of the refit can't be stored in a temporary file: {error}"))
        .hint("write to a folder with more free space, fit on fewer samples, or raise the memory limit of the refit")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn array(first: f32) -> Array {
        Array { dims: vec![2, 3], data: ArrayData::F32((0..6).map(|at| first + at as f32).collect()) }
    }

    #[test]
    fn values_beyond_the_memory_limit_are_stored_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = || folder.path().read_dir().unwrap().count();
        // Room for two arrays of 24 bytes.
        let mut store = Store::new(4, 50, Some(folder.path()));
        for chunk in 0..4 {
            store.put("v", chunk, array(10.0 * chunk as f32)).unwrap();
        }
        assert_eq!((store.room, files()), (2, 1));
        for chunk in [3, 0, 2, 1] {
            assert_eq!(store.get("v", chunk).unwrap(), array(10.0 * chunk as f32));
        }
        // Parts of the file are reused, and memory is freed.
        store.drop("v");
        assert_eq!(store.room, 50);
        let end = store.end;
        (0..4).for_each(|chunk| store.put("w", chunk, array(chunk as f32)).unwrap());
        assert_eq!((store.get("w", 3).unwrap(), store.end), (array(3.0), end));
        assert!(store.get("v", 0).is_err());
        drop(store);
        assert_eq!(files(), 0);
    }
}
