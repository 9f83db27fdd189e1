//! Recorded inputs of a pipeline: one file for every evaluation of its denoiser, as Olive saves them.

use std::path::{Path, PathBuf};

use super::given::read;
use crate::array::{Array, element_count};
use crate::error::Error;
use crate::graph::model::Model;

/// Returns the number of a file such as `12_unet_input.npz` or `12_unet_input_neg.npz`, and whether it is the run
/// without a prompt.
fn number(path: &Path) -> Option<(usize, bool)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".npz")?;
    let (stem, is_negative) = stem.strip_suffix("_neg").map_or((stem, false), |stem| (stem, true));
    let (number, name) = stem.split_once('_')?;
    name.ends_with("_input").then_some(())?;
    Some((number.parse().ok()?, is_negative))
}

/// Returns the files of a folder and of its subfolders (one for each prompt), in the order in which they were written.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |error: std::io::Error| Error::unreadable(folder, format!("can't be read: {error}")).caused_by(error);
    let entries = folder.read_dir().map_err(fail)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = entries.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    paths.sort();
    let mut own: Vec<_> = paths.iter().filter_map(|path| Some((number(path)?, path.clone()))).collect();
    own.sort();
    let mut all: Vec<PathBuf> = own.into_iter().map(|(_, path)| path).collect();
    for below in paths.iter().filter(|path| path.is_dir()) {
        let entries = below.read_dir().map_err(fail)?.flatten().map(|entry| entry.path());
        let mut own: Vec<_> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
        own.sort();
        all.extend(own.into_iter().map(|(_, path)| path));
    }
    Ok(all)
}

/// Reads the inputs of all evaluations in a folder and concatenates the rows of each array. Of inputs without axes,
/// those of the first evaluation are used.
///
/// # Errors
/// Fails if there are no such files, if [`read`] fails, or if a file has other arrays than the first.
pub(super) fn read_folder(model: &Model, folder: &Path) -> Result<Vec<(String, Array)>, Error> {
    let files = files(folder)?;
    let [first, others @ ..] = files.as_slice() else {
        return Err(Error::unreadable(
            folder,
            "expected a folder with files such as 0_unet_input.npz, found no such file",
        )
        .hint("give the folder in which Olive saved the inputs of the pipeline, or one .npz file"));
    };
    let mut all: Vec<(String, Vec<Array>)> =
        read(model, first)?.into_iter().map(|(name, array)| (name, vec![array])).collect();
    for file in others {
        let mut arrays = read(model, file)?;
        for (name, rows) in &mut all {
            let place = arrays.iter().position(|(own, _)| own == name);
            let array = place.map(|place| arrays.swap_remove(place).1);
            let fits = |array: &Array| {
                array.element_type() == rows[0].element_type() && array.dims.get(1..) == rows[0].dims.get(1..)
            };
            match array {
                Some(array) if fits(&array) => rows.push(array),
                found => {
                    let found = found.map_or("none".to_owned(), |array| format!("{:?}", array.dims));
                    let text = format!(
                        "array {name:?}: expected the element type and row shape of the array in {}, found {found}",
                        first.display()
                    );
                    return Err(Error::unreadable(file, text));
                }
            }
        }
    }
    Ok(all.into_iter().filter_map(|(name, rows)| Some((name, one_after_another(&rows)?))).collect())
}

/// Concatenates the rows of all arrays; returns the first array if they have no axes.
fn one_after_another(arrays: &[Array]) -> Option<Array> {
    let first = arrays.first()?;
    let mut dims = first.dims.clone();
    let Some(rows) = dims.first_mut() else { return Some(first.clone()) };
    *rows = arrays.iter().map(|array| array.dims[0]).sum();
    element_count(&dims)?;
    let values: Vec<f64> = arrays.iter().flat_map(Array::to_f64).collect();
    Array::from_f64(first.element_type(), dims, &values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognised_by_their_names() {
        let of = |name: &str| number(Path::new(name));
        assert_eq!([of("0_unet_input.npz"), of("12_unet_input_neg.npz")], [Some((0, false)), Some((12, true))]);
        for other in
            ["text_inputs.npz", "latent.npz", "output_img.npz", "0_unet_input.raw", "x_unet_input.npz", "1_a.npz"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
