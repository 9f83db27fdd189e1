//! Converts captions to the token ids that a text encoder takes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use crate::error::Error;
use crate::files::read_text;

/// Maximum number of bytes of a tokenizer file.
const MOST_BYTES: u64 = 1 << 28;

/// Maximum number of tokens of a caption. Configurations without a limit have an enormous one.
const MOST_LENGTH: usize = 1 << 16;

/// The pattern by which CLIP splits a caption: contractions, runs of letters, single digits, runs of other characters
/// except white space (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
/// published tokenizer).
const CLIP_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The token ids of a caption, and its attention mask: 0 for padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tokens {
    pub(super) ids: Vec<u32>,
    pub(super) mask: Vec<u32>,
}

/// A tokenizer that truncates and pads captions to one length.
#[derive(Debug)]
pub(super) struct CaptionTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
    digest: String,
}

impl CaptionTokenizer {
    /// Reads a tokenizer. `length` is the number of tokens; `None`: the length in the configuration.
    ///
    /// # Errors
    /// Fails if files are missing or can't be read, or if the padding token or the length is not known.
    pub(super) fn open(path: &Path, length: Option<usize>) -> Result<Self, Error> {
        let fail = |text: String| Error::unreadable(path, text);
        let folder = if path.is_dir() { path } else { crate::files::parent(path) };
        let whole = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let config = optional(&folder.join("tokenizer_config.json"))?;
        let json = if whole.is_file() { read(&whole)? } else { clip(folder, &config)? };
        let text = json.to_string();
        let mut tokenizer = Tokenizer::from_bytes(&text)
            .map_err(|error| fail(format!("not a tokenizer that the tokenizers library can use: {error}")))?;
        let configured = config.get("model_max_length").and_then(Value::as_u64);
        let configured = configured.and_then(|length| usize::try_from(length).ok());
        let length = length.or(configured).filter(|length| (1..=MOST_LENGTH).contains(length)).ok_or_else(|| {
            fail(
                "expected a number of tokens for captions, as model_max_length in tokenizer_config.json, found none"
                    .to_owned(),
            )
            .hint("set it with --text-length")
        })?;
        let special = optional(&folder.join("special_tokens_map.json"))?;
        let padding = content(config.get("pad_token")).or_else(|| content(special.get("pad_token")));
        let padding = padding.or_else(|| content(json.get("padding").and_then(|padding| padding.get("pad_token"))));
        let padding = padding.ok_or_else(|| {
            fail("expected a padding token in tokenizer_config.json or special_tokens_map.json, found none".to_owned())
        })?;
        let pad_id = tokenizer
            .token_to_id(&padding)
            .ok_or_else(|| fail(format!("the padding token {padding:?} is not in the vocabulary")))?;
        tokenizer.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(length),
            pad_id,
            pad_token: padding.clone(),
            ..PaddingParams::default()
        }));
        let cut = TruncationParams { max_length: length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(cut)).map_err(|error| fail(format!("captions can't be truncated: {error}")))?;
        let mut hash = blake3::Hasher::new();
        hash.update(text.as_bytes()).update(format!("{length} {padding}").as_bytes());
        Ok(Self { tokenizer, path: path.to_owned(), digest: hash.finalize().to_hex().to_string() })
    }

    /// Returns the BLAKE3 of everything that affects the token ids.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// Converts captions to token ids.
    ///
    /// # Errors
    /// Fails if the tokenizer fails.
    pub(super) fn encode(&self, captions: &[String]) -> Result<Vec<Tokens>, Error> {
        let encode = |caption: &String| {
            let encoded = self.tokenizer.encode(caption.as_str(), true).map_err(|error| {
                Error::unmet(format!("caption {caption:?} can't be encoded: {error}")).in_file(&self.path)
            })?;
            Ok(Tokens { ids: encoded.get_ids().to_vec(), mask: encoded.get_attention_mask().to_vec() })
        };
        captions.iter().map(encode).collect()
    }
}

/// Returns the text of a special token, which is a string or an object with `content`.
fn content(token: Option<&Value>) -> Option<String> {
    let token = token?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

fn read(path: &Path) -> Result<Value, Error> {
    serde_json::from_str(&read_text(path, MOST_BYTES)?)
        .map_err(|error| Error::unreadable(path, format!("not JSON: {error}")).caused_by(error))
}

/// Reads a JSON file; `Null` if it does not exist.
fn optional(path: &Path) -> Result<Value, Error> {
    if path.is_file() { read(path) } else { Ok(Value::Null) }
}

/// Builds the content of a `tokenizer.json` from the vocabulary and merges of CLIP's tokenizer.
fn clip(folder: &Path, config: &Value) -> Result<Value, Error> {
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocabulary.is_file() || !merges.is_file() {
        return Err(Error::unreadable(folder, "expected tokenizer.json, or vocab.json and merges.txt, found neither"));
    }
    if let Some(class) = config.get("tokenizer_class").and_then(Value::as_str).filter(|name| !name.contains("CLIP")) {
        let text = format!(
            "expected tokenizer.json for a {class}: only CLIP's tokenizer can be read from vocab.json and merges.txt"
        );
        return Err(Error::unreadable(folder, text).hint("save the tokenizer with transformers' fast class"));
    }
    let words = read(&vocabulary)?;
    let special = |key: &str, usual: &str| {
        let token = content(config.get(key)).unwrap_or_else(|| usual.to_owned());
        let id = words.get(&token).and_then(Value::as_u64);
        let id = id.ok_or_else(|| {
            Error::unreadable(&vocabulary, format!("expected the token {token:?} in the vocabulary, found none"))
        })?;
        Ok::<_, Error>((token, id))
    };
    let (start, end) = (special("bos_token", "<|startoftext|>")?, special("eos_token", "<|endoftext|>")?);
    // Stable Diffusion XL's second tokenizer pads with "!". As a special token, it is split off from words.
    let padding =
        content(config.get("pad_token")).and_then(|token| Some((token.clone(), words.get(&token)?.as_u64()?)));
    let mut kept = vec![start.clone(), end.clone()];
    kept.extend(padding);
    let further = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
    kept.extend(further.filter_map(|(id, token)| Some((content(Some(token))?, id.parse().ok()?))));
    kept.sort_by_key(|(_, id)| *id);
    kept.dedup();
    let added = |(token, id): &(String, u64)| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    let text = read_text(&merges, MOST_BYTES)?;
    let merges: Vec<&str> = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": kept.iter().map(added).collect::<Vec<_>>(),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
                { "type": "Lowercase" },
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": CLIP_WORDS }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [end.0, end.1],
            "cls": [start.0, start.1],
            "trim_offsets": false,
            "add_prefix_space": false,
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": end.0,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": false,
            "vocab": words,
            "merges": merges,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the characters that represent bytes in CLIP's vocabulary, in its order.
    fn alphabet() -> Vec<char> {
        let printable: Vec<u32> = (33..127).chain(161..173).chain(174..256).collect();
        printable.into_iter().chain(256..324).map(|code| char::from_u32(code).unwrap()).collect()
    }

    /// Creates a folder with a tokenizer of bytes, and one merge.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = alphabet();
        let words = bytes.iter().map(char::to_string).chain(bytes.iter().map(|byte| format!("{byte}</w>")));
        let words = words.chain(["<|startoftext|>", "<|endoftext|>", "lo"].map(str::to_owned));
        let words: serde_json::Map<String, Value> = words.zip(0..).map(|(word, id)| (word, json!(id))).collect();
        std::fs::write(folder.path().join("vocab.json"), Value::from(words).to_string()).unwrap();
        std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\nl o\n").unwrap();
        let config = json!({ "model_max_length": 16, "pad_token": { "content": "<|endoftext|>" } });
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        folder
    }

    fn ids(tokenizer: &CaptionTokenizer, caption: &str) -> Vec<u32> {
        tokenizer.encode(&[caption.to_owned()]).unwrap().remove(0).ids
    }

    /// The ids are those that `CLIPTokenizer` of transformers 4.57.6, the Python implementation, returns for the same
    /// files. For the caption with two Chinese characters they are those of `CLIPTokenizerFast`, since `CLIPTokenizer`
    /// treats each character as a word.
    #[test]
    fn captions_have_the_token_ids_of_transformers() {
        let folder = folder();
        let tokenizer = CaptionTokenizer::open(folder.path(), None).unwrap();
        let expected = [512, 320, 79, 71, 78, 83, 334, 78, 325, 320, 66, 64, 339, 513, 513, 513];
        assert_eq!(ids(&tokenizer, "a photo of a cat"), expected);
        let expected = [512, 72, 339, 6, 338, 275, 273, 66, 64, 69, 127, 102, 338, 267, 514, 513];
        assert_eq!(ids(&tokenizer, "It's  42 Cafés, lower\tLOW!"), expected);
        let expected = [512, 82, 83, 81, 64, 127, 253, 324, 158, 222, 498, 78, 330, 13, 13, 513];
        assert_eq!(ids(&tokenizer, "straße — ok..."), expected);
        let expected = [512, 82, 83, 81, 64, 127, 253, 324, 162, 245, 98, 162, 250, 361, 158, 513];
        assert_eq!(ids(&tokenizer, "straße 日本 — ok..."), expected);
        let expected = [512, 514, 342, 514, 342, 514, 342, 514, 342, 514, 342, 514, 342, 514, 342, 513];
        assert_eq!(ids(&tokenizer, &"low ".repeat(60)), expected);
        let empty = tokenizer.encode(&[String::new()]).unwrap().remove(0);
        assert_eq!(empty.ids, [&[512], [513; 15].as_slice()].concat());
        assert_eq!(empty.mask, [&[1, 1], [0; 14].as_slice()].concat());
    }

    /// The ids are those that `CLIPTokenizer` of transformers 5.24.0 returns for the tokenizer of the committed
    /// pipeline (`scripts/make_pipeline_fixture.py`).
    #[test]
    fn the_tokenizer_of_a_pipeline_returns_the_token_ids_of_transformers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pipelines");
        let tokenizer = CaptionTokenizer::open(&folder.join("sd_tiny/tokenizer"), None).unwrap();
        let reference: Value = read(&folder.join("tokens.json")).unwrap();
        let prompts: Vec<String> = serde_json::from_value(reference["prompts"].clone()).unwrap();
        let expected: Vec<Vec<u32>> = serde_json::from_value(reference["ids"].clone()).unwrap();
        assert!(prompts.len() > 5 && expected.iter().all(|ids| ids.len() == 77));
        for (prompt, expected) in prompts.iter().zip(expected) {
            assert_eq!(ids(&tokenizer, prompt), expected, "{prompt:?}");
        }
    }

    #[test]
    fn the_length_is_given_or_configured() {
        let folder = folder();
        let open = |length| CaptionTokenizer::open(folder.path(), length);
        assert_eq!(ids(&open(Some(5)).unwrap(), "a cat"), [512, 320, 66, 64, 513]);
        assert_ne!(open(Some(5)).unwrap().digest(), open(None).unwrap().digest());
        let config = folder.path().join("tokenizer_config.json");
        std::fs::write(&config, "{\"pad_token\": \"<|endoftext|>\", \"model_max_length\": 1e30}").unwrap();
        assert!(open(None).unwrap_err().advice().unwrap().contains("--text-length"));
        std::fs::write(&config, "{\"model_max_length\": 16}").unwrap();
        assert!(open(None).unwrap_err().to_string().contains("expected a padding token"));
        std::fs::write(&config, "{\"tokenizer_class\": \"GPT2Tokenizer\"}").unwrap();
        assert!(open(None).unwrap_err().to_string().contains("tokenizer.json for a GPT2Tokenizer"));
        std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
        assert!(open(None).unwrap_err().to_string().contains("found neither"));
    }

    #[test]
    fn tokenizer_json_and_its_parts_return_the_same_ids() {
        let folder = folder();
        let parts = CaptionTokenizer::open(folder.path(), None).unwrap();
        let whole = clip(folder.path(), &Value::Null).unwrap().to_string();
        std::fs::write(folder.path().join("tokenizer.json"), whole).unwrap();
        std::fs::remove_file(folder.path().join("vocab.json")).unwrap();
        for path in [folder.path().to_owned(), folder.path().join("tokenizer.json")] {
            let tokenizer = CaptionTokenizer::open(&path, None).unwrap();
            assert_eq!(ids(&tokenizer, "It's 42"), ids(&parts, "It's 42"));
        }
        std::fs::write(folder.path().join("tokenizer.json"), "{\"model\": 1}").unwrap();
        assert!(CaptionTokenizer::open(folder.path(), None).unwrap_err().to_string().contains("not a tokenizer"));
    }
}
