//! The cache: shards of latents and states, each with the digest of what it was made of.

use std::collections::HashMap;
use std::path::PathBuf;

use blake3::Hasher;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::EncodeOptions;
use crate::array::{Array, ElementType};
use crate::diffusion::sample_files;
use crate::error::Error;
use crate::files::{NewFolder, map, open, unwritable, write_file};

/// The key of the digest in a shard's metadata.
const KEY: &str = "onnx_diffprune_inputs";

/// The cache of a run.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// What all shards are made with.
    described: String,
    sample_name: String,
    half: bool,
    /// Goes again if nothing comes to lie in it.
    _made: Option<NewFolder>,
}

/// The name of a shard.
fn name(shard: usize) -> String {
    format!("latents-{shard:05}.safetensors")
}

/// The names of the first shards.
pub(super) fn names(count: usize) -> Vec<String> {
    (0..count).map(name).collect()
}

/// The number in the name of a shard.
fn number(name: &str) -> Option<usize> {
    let number = name.strip_prefix("latents-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

impl Cache {
    /// Opens the cache, or makes its folder; `described` is what all shards are made with.
    ///
    /// # Errors
    /// The folder can't be made, or holds arrays that are no shards.
    pub(super) fn open(options: &EncodeOptions, described: &str) -> Result<Self, Error> {
        let folder = options.cache.clone();
        let made = NewFolder::at(&folder).map_err(|error| unwritable(&folder, error))?;
        let cache = Self {
            folder,
            described: format!("{described} half {}", options.half),
            sample_name: options.sample_name.clone(),
            half: options.half,
            _made: made,
        };
        if let Some(other) = cache.files().into_iter().find(|(_, number)| number.is_none()) {
            let text = format!("expected nothing but shards in the folder, found {}", other.0.display());
            return Err(Error::usage(text).in_file(&cache.folder).hint("choose a folder of its own for the cache"));
        }
        Ok(cache)
    }

    /// The files of arrays in the folder, with their numbers if they are shards.
    fn files(&self) -> Vec<(PathBuf, Option<usize>)> {
        let number_of = |path: &PathBuf| {
            let is_here = path.parent() == Some(self.folder.as_path());
            path.file_name().and_then(|name| number(name.to_str()?)).filter(|_| is_here)
        };
        // There may be none.
        let files = sample_files(&self.folder).unwrap_or_default();
        files.into_iter().map(|path| (number_of(&path), path)).map(|(number, path)| (path, number)).collect()
    }

    /// The BLAKE3 of all that decides the values of a shard: of its images, and their captions, of which there is one for
    /// each or none at all.
    pub(super) fn digest(&self, files: &[PathBuf], captions: &[String]) -> String {
        let of_file = |file: &PathBuf| {
            let mut content = Hasher::new();
            // One that can't be read has no content; it is left out of the shard.
            let read = open(file).and_then(|(file, _)| content.update_reader(file).map(|_| ()));
            (content.finalize(), read.is_ok())
        };
        let contents: Vec<(blake3::Hash, bool)> = files.par_iter().map(of_file).collect();
        let mut hash = Hasher::new();
        hash.update(self.described.as_bytes());
        for (at, (content, is_read)) in contents.into_iter().enumerate() {
            hash.update(content.as_bytes()).update(&[u8::from(is_read)]);
            if let Some(caption) = captions.get(at) {
                hash.update(&(caption.len() as u64).to_le_bytes()).update(caption.as_bytes());
            }
        }
        hash.finalize().to_hex().to_string()
    }

    /// The number of rows of a shard that is there and was made of what has this digest.
    pub(super) fn rows_of(&self, shard: usize, digest: &str) -> Option<usize> {
        let bytes = map(&self.folder.join(name(shard))).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        let found = metadata.metadata().as_ref()?.get(KEY)?;
        let rows = *metadata.info(&self.sample_name)?.shape.first()?;
        (found == digest).then_some(rows)
    }

    /// Writes a shard: float32 arrays by their names.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn write(&self, shard: usize, digest: &str, arrays: &[(&str, Array)]) -> Result<(), Error> {
        let path = self.folder.join(name(shard));
        let (kind, dtype) = if self.half { (ElementType::F16, Dtype::F16) } else { (ElementType::F32, Dtype::F32) };
        let mut stored = Vec::with_capacity(arrays.len());
        for (name, array) in arrays {
            let mut bytes = Vec::new();
            array.cast(kind).data.append_bytes(&mut bytes);
            stored.push((*name, array.dims.clone(), bytes));
        }
        let fail = |error: safetensors::SafeTensorError| Error::io(&path, format!("can't be written: {error}"));
        let views = stored
            .iter()
            .map(|(name, dims, bytes)| Ok((*name, TensorView::new(dtype, dims.clone(), bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(fail)?;
        let metadata = HashMap::from([(KEY.to_owned(), digest.to_owned())]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(fail)?;
        write_file(&path, &bytes)
    }

    /// Removes the shards that were made of something else than what has these digests.
    ///
    /// # Errors
    /// One can't be removed.
    pub(super) fn remove_others(&self, digests: &[String]) -> Result<(), Error> {
        let is_other = |number: usize| digests.get(number).is_none_or(|digest| self.rows_of(number, digest).is_none());
        for (path, number) in self.files() {
            if number.is_some_and(is_other) {
                std::fs::remove_file(&path).map_err(|error| unwritable(&path, error))?;
            }
        }
        Ok(())
    }
}
