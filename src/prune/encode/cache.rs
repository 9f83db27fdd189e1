//! The cache: shards of latents and hidden states, each with a digest of its inputs.

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
    /// A description of everything that affects the values of all shards.
    described: String,
    sample_name: String,
    half: bool,
    /// The folder, if it is new. It is removed again if it remains empty.
    _made: Option<NewFolder>,
}

/// Returns the file name of a shard.
fn name(shard: usize) -> String {
    format!("latents-{shard:05}.safetensors")
}

/// Returns the file names of the first shards.
pub(super) fn names(count: usize) -> Vec<String> {
    (0..count).map(name).collect()
}

/// Returns the number in the file name of a shard.
fn number(name: &str) -> Option<usize> {
    let number = name.strip_prefix("latents-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

impl Cache {
    /// Opens the cache and creates its folder if needed. `described` describes everything that affects the values of
    /// all shards.
    ///
    /// # Errors
    /// Fails if the folder can't be created, or if it contains arrays that are not shards.
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
            let text = format!("expected a folder that contains only shards, found {}", other.0.display());
            return Err(Error::usage(text).in_file(&cache.folder).hint("choose a separate folder for the cache"));
        }
        Ok(cache)
    }

    /// Returns the array files in the folder, with their numbers if they are shards.
    fn files(&self) -> Vec<(PathBuf, Option<usize>)> {
        let number_of = |path: &PathBuf| {
            let is_here = path.parent() == Some(self.folder.as_path());
            path.file_name().and_then(|name| number(name.to_str()?)).filter(|_| is_here)
        };
        // The folder may contain none.
        let files = sample_files(&self.folder).unwrap_or_default();
        files.into_iter().map(|path| (number_of(&path), path)).map(|(number, path)| (path, number)).collect()
    }

    /// Computes the BLAKE3 of everything that affects the values of a shard: its images, and their captions. There is
    /// one caption for each image, or none at all.
    pub(super) fn digest(&self, files: &[PathBuf], captions: &[String]) -> String {
        let of_file = |file: &PathBuf| {
            let mut content = Hasher::new();
            // An image that can't be read has no content; it is left out of the shard.
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

    /// Returns the number of rows of a shard, if the shard exists and has this digest.
    pub(super) fn rows_of(&self, shard: usize, digest: &str) -> Option<usize> {
        let bytes = map(&self.folder.join(name(shard))).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        let found = metadata.metadata().as_ref()?.get(KEY)?;
        let rows = *metadata.info(&self.sample_name)?.shape.first()?;
        (found == digest).then_some(rows)
    }

    /// Writes the named float32 arrays into a shard.
    ///
    /// # Errors
    /// Fails if the file can't be written.
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

    /// Removes the shards that have other digests than these.
    ///
    /// # Errors
    /// Fails if a shard can't be removed.
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
