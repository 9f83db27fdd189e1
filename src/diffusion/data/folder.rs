//! What a path to clean samples leads to: images or files of arrays, of which nothing but headers has been read.

use std::path::{Path, PathBuf};

use super::arrays::{ArraysOfFile, is_array_file};
use crate::error::Error;

/// Folders inside each other, at most: a link to a folder around it leads in circles.
const MOST_DEPTH: usize = 32;

/// The clean samples at a path.
#[derive(Debug)]
pub(super) enum Found {
    /// Image files in the order of their paths.
    Images(Vec<PathBuf>),
    /// A file of arrays, or all of a folder in the order of their paths, with the place of the samples in each.
    Arrays(Vec<(ArraysOfFile, usize)>),
}

impl Found {
    /// Looks at a folder of images or files of arrays, or at one file of arrays; `input` is the name of the network's
    /// sample input.
    ///
    /// # Errors
    /// The path can't be read; a folder holds neither, or both; a file without samples.
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
                let text = format!("expected images or files of arrays, found {images} and {arrays}");
                Err(Error::unreadable(path, text).hint("keep each kind in a folder of its own"))
            }
        }
    }

    /// The sizes of the array of samples, in the first file of several; `None` for images.
    ///
    /// # Errors
    /// Its header can't be read.
    pub(super) fn dims(&self) -> Result<Option<Vec<usize>>, Error> {
        match self {
            Self::Arrays(files) => files.first().map(|(file, at)| Ok(file.header(*at)?.0.to_vec())).transpose(),
            Self::Images(_) => Ok(None),
        }
    }

    /// The sizes of another array, in the first file of several; `None` where there is none of that name.
    ///
    /// # Errors
    /// Its header can't be read.
    pub(super) fn dims_of(&self, name: &str) -> Result<Option<Vec<usize>>, Error> {
        let Self::Arrays(files) = self else { return Ok(None) };
        let Some((file, _)) = files.first() else { return Ok(None) };
        let at = file.names().iter().position(|found| *found == name);
        at.map(|at| Ok(file.header(at)?.0.to_vec())).transpose()
    }

    /// The number of samples.
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

/// The PNG and JPEG files of a folder and of those in it, in the order of their paths. Folders whose names begin with a
/// dot are left out.
///
/// # Errors
/// A folder can't be read, or there are no such files.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    some(folder, walk(folder, is_image)?, ".png or .jpg files")
}

/// The files that a folder of clean samples holds: images or files of arrays, in the order of their paths.
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

/// The regular files of a folder and of those in it that are wanted, in the order of their paths.
fn walk(folder: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let fail =
            |error: std::io::Error| Error::unreadable(&folder, format!("can't be read: {error}")).caused_by(error);
        if depth > MOST_DEPTH {
            let text = format!("expected at most {MOST_DEPTH} folders inside each other, found more");
            return Err(Error::unreadable(&folder, text).hint("a link in it may lead to a folder around it"));
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
    fn images_are_found_in_folders_and_sorted() {
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
        assert!(message.ends_with("found 1 and 2"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn links_in_circles_end() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["a/x.png"]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/around")).unwrap();
        let error = image_files(folder.path()).unwrap_err();
        assert!(error.advice().is_some_and(|hint| hint.contains("link")), "{error}");
    }
}
