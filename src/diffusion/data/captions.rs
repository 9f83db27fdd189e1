//! Captions of images: a text file next to each image, or one list for all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::folder::image_files;
use crate::error::Error;
use crate::files::read_text;

/// The file name of the list of captions in a folder.
const LIST: &str = "metadata.jsonl";

/// Maximum size of a caption in bytes.
const MOST_CAPTION: u64 = 1 << 20;

/// Maximum size of a list of captions in bytes.
const MOST_LIST: u64 = 1 << 32;

/// Maximum number of files that a message names.
const MOST_NAMED: usize = 8;

/// Returns the images of a folder with their captions, in the order of their numbers as samples ([`image_files`]).
///
/// The caption of an image comes from `metadata.jsonl` in the folder: lines of JSON with `file_name`, relative to the
/// folder, and `text`, as in the `imagefolder` datasets of Hugging Face. If there is no such file or it does not name
/// an image, the caption is the content of the file next to the image with the extension `.txt`. Surrounding white
/// space is removed.
///
/// # Errors
/// Images have no caption: the error gives their number and names. The list can't be read, names an image twice, or
/// names a file that does not exist.
pub fn captions(folder: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let images = image_files(folder)?;
    let mut listed = listed(folder)?;
    let (mut found, mut missing) = (Vec::with_capacity(images.len()), Vec::new());
    for image in images {
        let beside = image.with_extension("txt");
        let caption = match listed.remove(&image) {
            Some(caption) => caption,
            None if beside.is_file() => read_text(&beside, MOST_CAPTION)?,
            None => {
                missing.push(image);
                continue;
            }
        };
        found.push((image, caption.trim().to_owned()));
    }
    let of = found.len() + missing.len();
    if !missing.is_empty() {
        let text = format!("{} of {of} images have no caption: {}", missing.len(), named(folder, &missing));
        return Err(Error::unreadable(folder, text).hint(format!(
            "give each a line in {LIST} (file_name and text), or a text file next to it: a.txt for a.png"
        )));
    }
    let rest: Vec<PathBuf> = listed.into_keys().collect();
    if !rest.is_empty() {
        let text = format!("{} of its lines name no image in the folder: {}", rest.len(), named(folder, &rest));
        return Err(Error::unreadable(&folder.join(LIST), text).hint("remove these lines, or add the images"));
    }
    Ok(found)
}

/// Returns the captions in the list of a folder, by the paths of the images. Empty if there is no list.
fn listed(folder: &Path) -> Result<BTreeMap<PathBuf, String>, Error> {
    let path = folder.join(LIST);
    let mut captions = BTreeMap::new();
    if !path.exists() {
        return Ok(captions);
    }
    let text = read_text(&path, MOST_LIST)?;
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |text: String| Error::unreadable(&path, format!("line {}: {text}", at + 1));
        let value: Value =
            serde_json::from_str(line).map_err(|error| fail(format!("not JSON: {error}")).caused_by(error))?;
        let field = |name: &str| {
            let text = value.get(name).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| {
                fail(format!("expected a string {name:?}, found {}", value.get(name).unwrap_or(&Value::Null)))
            })
        };
        let name = field("file_name")?;
        // A leading `./` does not change the path.
        let image = folder
            .join(Path::new(&name).components().collect::<PathBuf>().strip_prefix(".").unwrap_or(Path::new(&name)));
        if captions.insert(image, field("text")?).is_some() {
            return Err(fail(format!("{name:?} already has a caption on an earlier line")));
        }
    }
    Ok(captions)
}

/// Lists the first of some files, relative to their folder.
fn named(folder: &Path, files: &[PathBuf]) -> String {
    let name = |file: &PathBuf| file.strip_prefix(folder).unwrap_or(file).display().to_string();
    let names: Vec<String> = files.iter().take(MOST_NAMED).map(name).collect();
    let more = files.len().saturating_sub(MOST_NAMED);
    names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn texts(folder: &Path) -> Result<Vec<String>, String> {
        let found = captions(folder).map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|(_, text)| text).collect())
    }

    #[test]
    fn captions_are_read_from_text_files_or_the_list() {
        let list = "{\"file_name\": \"./b/1.jpg\", \"text\": \"from the \\u00e9list\", \"id\": 3}\n\n";
        let folder = folder(&[
            ("a.png", ""),
            ("a.txt", " a dog\n"),
            ("b/1.jpg", ""),
            ("b/1.txt", "not this one"),
            ("metadata.jsonl", list),
        ]);
        assert_eq!(texts(folder.path()).unwrap(), ["a dog", "from the élist"]);
    }

    #[test]
    fn missing_captions_are_counted_and_named() {
        let files: Vec<String> = (10..30).map(|at| format!("{at}.png")).collect();
        let mut files: Vec<(&str, &str)> = files.iter().map(|name| (name.as_str(), "")).collect();
        files.push(("10.txt", "one"));
        let message = texts(folder(&files).path()).unwrap_err();
        assert!(message.contains("19 of 20 images have no caption: 11.png, 12.png"), "{message}");
        assert!(message.ends_with("18.png and 11 more"), "{message}");
    }

    #[test]
    fn lists_that_contradict_the_folder_are_refused() {
        let refused = |list: &str| texts(folder(&[("a.png", ""), ("metadata.jsonl", list)]).path()).unwrap_err();
        let line = "{\"file_name\": \"a.png\", \"text\": \"x\"}\n";
        assert!(refused(&line.repeat(2)).contains("line 2: \"a.png\" already has a caption"));
        assert!(
            refused(&format!("{line}{}", line.replace("a.png", "b.png")))
                .contains("1 of its lines name no image in the folder: b.png")
        );
        assert!(refused("{\"file_name\": \"a.png\"}").contains("\"text\", found null"));
        assert!(refused("{\"file_name\": 7, \"text\": \"x\"}").contains("\"file_name\", found 7"));
        assert!(refused("not json").contains("line 1: not JSON"));
    }
}
