//! The tokenizers of a pipeline.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::object;

/// Maximum number of tokens that a caption is padded to: configurations without a limit hold an enormous number.
const MOST_TOKENS: usize = 1 << 12;

/// Returns the number of tokens to which a tokenizer truncates and pads captions, from its configuration.
pub(super) fn length(folder: &Path) -> Option<usize> {
    let config = object(&folder.join("tokenizer_config.json")).ok()?;
    let length = usize::try_from(config.get("model_max_length").and_then(Value::as_u64)?).ok()?;
    (1..=MOST_TOKENS).contains(&length).then_some(length)
}

/// Returns those of the named folders that hold a tokenizer.
pub(super) fn of(folder: &Path, names: &[String]) -> Vec<(String, PathBuf)> {
    let is_tokenizer = |path: &Path| ["tokenizer.json", "vocab.json"].iter().any(|file| path.join(file).is_file());
    let named = names.iter().filter(|name| name.starts_with("tokenizer"));
    named.map(|name| (name.clone(), folder.join(name))).filter(|(_, path)| is_tokenizer(path)).collect()
}
