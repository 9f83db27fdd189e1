//! The folders of a pipeline's tokenizers.

use std::path::{Path, PathBuf};

/// The folders among these names that hold the files of a tokenizer.
pub(super) fn of(folder: &Path, names: &[String]) -> Vec<(String, PathBuf)> {
    let is_tokenizer = |path: &Path| ["tokenizer.json", "vocab.json"].iter().any(|file| path.join(file).is_file());
    let named = names.iter().filter(|name| name.starts_with("tokenizer"));
    named.map(|name| (name.clone(), folder.join(name))).filter(|(_, path)| is_tokenizer(path)).collect()
}
