//! Finds the clean samples at a path: images or files of arrays, of which only headers are read.

use std::path::{Path, PathBuf};

use super::arrays::{ArraysOfFile, is_array_file};
use crate::error::Error;

/// Maximum depth of nested folders: a symbolic link to a folder around it would lead in circles.
const MOST_DEPTH: usize = 32;

/// The clean samples at a path.
#[derive(Debug)]
pub(super) enum Found {
    /// Image files in the order of their paths.
    Images(Vec<PathBuf>),
    /// One or more files of arrays in the order of their paths, with the index of the array of samples in each.
    Arrays(Vec<(ArraysOfFile, usize)>),
}

impl Found {
    /// Looks at a folder of images or files of arrays, or at a single file of arrays. `input` is the name of the
    /// network's sample input.
    ///
    /// # Errors
    /// The path can't be read, the folder holds neither images nor arrays, or both, or a file has no array of samples.
    pub(super) fn at(path: &Path, input: &str) -> Result<Self, Error> {
        let open = |path: &PathBuf| {
            let file = ArraysOfFile::open(path)?;
            let at = file.place_of_samples(input)?;
            Ok::<_, Error>((file, at))
        };
        if !path.is_dir() {
            return Ok(Self::Arrays(vec![open(&path.to_owned())?]));
        }
        let (images, arrays): (Vec<_>, Vec<_>) = sample_files(path)?.into_iter().partition(|file| is_image(file));
        match (images.len(), arrays.len()) {
            (_, 0) => Ok(Self::Images(images)),
            (0, _) => Ok(Self::Arrays(arrays.iter().map(open).collect::<Result<_, _>>()?)),
            (images, arrays) => {
                let text = format!(
                    "expected only images or only files of arrays, found {images} images and {arrays} files of arrays"
                );
                Err(Error::unreadable(path, text).hint("keep each kind in its own folder"))
            }
        }
    }

    /// Returns the shape of the array of samples in the first file. `None` for images.
    ///
    /// # Errors
    /// Its header can't be read.
    pub(super) fn dims(&self) -> Result<Option<Vec<usize>>, Error> {
        match self {
            Self::Arrays(files) => files.first().map(|(file, at)| Ok(file.header(*at)?.0.to_vec())).transpose(),
            Self::Images(_) => Ok(None),
        }
    }

    /// Returns the shape of another array in the first file. `None` if there is no array of that name.
    ///
    /// # Errors
    /// Its header can't be read.
    pub(super) fn dims_of(&self, name: &str) -> Result<Option<Vec<usize>>, Error> {
        let Self::Arrays(files) = self else { return Ok(None) };
        let Some((file, _)) = files.first() else { return Ok(None) };
        let at = file.names().iter().position(|found| *found == name);
        at.map(|at| Ok(file.header(at)?.0.to_vec())).transpose()
    }

    /// Returns the number of samples.
    ///
    /// # Errors
    /// A header can't be read.
    pub(super) fn count(&self) -> Result<usize, Error> {
        match self {
            Self::Images(files) => Ok(files.len()),
            Self::Arrays(files) => {
                let rows = |(file, at): &(ArraysOfFile, usize)| Ok(file.header(*at)?.0.first().copied().unwrap_or(0));
                files.iter().map(rows).sum()
            }
        }
    }
}

/// Returns the PNG and JPEG files of a folder and its subfolders, in the order of their paths. Folders whose names
/// begin with a dot are skipped.
///
/// # Errors
/// A folder can't be read, or there are no such files.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    some(folder, walk(folder, is_image)?, ".png or .jpg files")
}

/// Returns the files in a folder of clean samples: images or files of arrays, in the order of their paths.
///
/// # Errors
/// A folder can't be read, or there are no such files.
pub fn sample_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let files = walk(folder, |path| is_image(path) || is_array_file(path))?;
    let kinds = ".png or .jpg files, or .npy, .npz or .safetensors files";
    some(folder, files, kinds)
}

fn some(folder: &Path, files: Vec<PathBuf>, kinds: &str) -> Result<Vec<PathBuf>, Error> {
    match files.is_empty() {
        true => Err(Error::unreadable(folder, format!("expected {kinds} in the folder, found none"))),
        false => Ok(files),
    }
}

fn is_image(path: &Path) -> bool {
    let kind = path.extension().map(|kind| kind.to_string_lossy().to_ascii_lowercase());
    matches!(kind.as_deref(), Some("png" | "jpg" | "jpeg"))
}

/// Returns the wanted regular files of a folder and its subfolders, in the order of their paths.
fn walk(folder: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let fail =
            |error: std::io::Error| Error::unreadable(&folder, format!("can't be read: {error}")).caused_by(error);
        if depth > MOST_DEPTH {
            let text = format!("expected at most {MOST_DEPTH} levels of nested folders, found more");
            return Err(Error::unreadable(&folder, text).hint("remove a symbolic link to a folder that contains it"));
        }
        for entry in std::fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink() && path.is_dir());
            if is_folder {
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    folders.push((path, depth + 1));
                }
            } else if is_wanted(&path) && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn images_are_found_in_subfolders_and_sorted() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["b/2.JPEG", "b/1.png", "a.jpg", "c.txt", ".cache/x.png", "b/deep/er/0.png"]);
        let found = image_files(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
        assert_eq!(names, ["a.jpg", "b/1.png", "b/2.JPEG", "b/deep/er/0.png"].map(Path::new));
    }

    #[test]
    fn a_folder_with_images_and_arrays_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["a.png", "b/x.npz", "b/y.npy"]);
        let message = Found::at(folder.path(), "sample").unwrap_err().to_string();
        assert!(message.ends_with("found 1 images and 2 files of arrays"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn circular_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["a/x.png"]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/around")).unwrap();
        let error = image_files(folder.path()).unwrap_err();
        assert!(error.advice().is_some_and(|hint| hint.contains("link")), "{error}");
    }
}
