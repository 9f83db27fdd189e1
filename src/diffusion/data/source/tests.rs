//! Reading single samples from every kind of source.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};

use image::{GrayImage, Luma};
use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::npz;

fn open(path: &Path, dims: &[usize]) -> Result<SampleSource, String> {
    SampleSource::open(path, ("sample", dims), &Ranges::default(), &SourceOptions::default())
        .map_err(|error| error.to_string())
}

fn values(source: &SampleSource, number: usize) -> Result<Vec<f32>, String> {
    let mut row = vec![0.0; source.sizes().iter().product()];
    source.read(number, &mut row).map_err(|error| error.to_string())?;
    Ok(row)
}

fn floats(dims: Vec<usize>, first: usize) -> Array {
    let count: usize = dims.iter().product();
    Array::new(dims, ArrayData::F32((first..first + count).map(|at| at as f32).collect())).unwrap()
}

#[test]
fn images_in_subfolders_are_numbered_by_path() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("b")).unwrap();
    for (name, value) in [("c.png", 255), ("b/x.png", 51), ("a.png", 0)] {
        GrayImage::from_pixel(2, 2, Luma([value])).save(folder.path().join(name)).unwrap();
    }
    let source = open(folder.path(), &[1, 1, 2, 2]).unwrap();
    assert_eq!((source.len(), source.describe()), (3, format!("3 images of {}", folder.path().display())));
    let firsts: Vec<f32> = (0..3).map(|number| values(&source, number).unwrap()[0]).collect();
    assert!(firsts.iter().zip([-1.0, -0.6, 1.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{firsts:?}");
    assert!(values(&source, 3).unwrap_err().contains("below 3, found 3"));
    assert!(source.read(0, &mut [0.0; 3]).unwrap_err().to_string().contains("row of 4 values"));
}

#[test]
fn shards_continue_the_numbers_and_provide_conditioning() {
    let folder = tempfile::tempdir().unwrap();
    let labels = |first: i64, count: i64| {
        Array::new(vec![usize::try_from(count).unwrap()], ArrayData::I64((first..first + count).collect())).unwrap()
    };
    // Two, zero and three samples, in three file formats.
    let first = [("sample", &floats(vec![2, 2, 1], 0)), ("labels", &labels(100, 2))];
    npz::write(&folder.path().join("a.npz"), first).unwrap();
    let none = [("sample", &floats(vec![0, 2, 1], 0)), ("labels", &labels(0, 0))];
    npz::write(&folder.path().join("b.npz"), none).unwrap();
    let (data, numbers) = (floats(vec![3, 2, 1], 4), labels(102, 3));
    let (mut of_data, mut of_labels) = (Vec::new(), Vec::new());
    data.data.append_bytes(&mut of_data);
    numbers.data.append_bytes(&mut of_labels);
    let tensors = HashMap::from([
        ("sample", TensorView::new(Dtype::F32, vec![3, 2, 1], &of_data).unwrap()),
        ("labels", TensorView::new(Dtype::I64, vec![3], &of_labels).unwrap()),
        // Has no row for each sample.
        ("scale", TensorView::new(Dtype::F32, vec![1], &of_data[..4]).unwrap()),
    ]);
    std::fs::write(folder.path().join("c.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    let source = open(folder.path(), &[9, 2, 1]).unwrap();
    assert_eq!((source.len(), source.conditioning_names()), (5, ["labels".to_owned()].as_slice()));
    for number in 0..5 {
        assert_eq!(values(&source, number).unwrap(), [2.0 * number as f32, 2.0 * number as f32 + 1.0]);
    }
    let rows = source.rows("labels", &[4, 0, 2, 1]).unwrap();
    assert_eq!(rows, Array::new(vec![4], ArrayData::I64(vec![104, 100, 102, 101])).unwrap());
    assert!(source.rows("labels", &[5]).unwrap_err().to_string().contains("below 5"));
    assert!(source.rows("text", &[0]).unwrap_err().to_string().contains("found [labels]"));
}

#[test]
fn shards_that_differ_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let samples = floats(vec![2, 2, 1], 0);
    npz::write(&folder.path().join("a.npz"), [("sample", &samples), ("labels", &floats(vec![2, 3], 0))]).unwrap();
    let second = |arrays: &[(&str, &Array)]| {
        npz::write(&folder.path().join("b.npz"), arrays.iter().copied()).unwrap();
        open(folder.path(), &[1, 2, 1]).unwrap_err()
    };
    let message = second(&[("sample", &samples)]);
    assert!(message.contains("b.npz") && message.contains("expected an array \"labels\""), "{message}");
    let message = second(&[("sample", &samples), ("labels", &floats(vec![2, 4], 0))]);
    assert!(message.contains("rows [3]") && message.contains("rows [4]"), "{message}");
    let more = floats(vec![2], 0);
    let message = second(&[("sample", &samples), ("labels", &floats(vec![2, 3], 0)), ("text", &more)]);
    assert!(message.contains("found an array \"text\"") && message.contains("a.npz does not have"), "{message}");
    let message = second(&[("sample", &floats(vec![2, 2, 2], 0))]);
    assert!(message.contains("b.npz") && message.contains("expected samples of shape 2 x 1"), "{message}");
}

#[test]
fn only_wanted_arrays_are_conditioning_and_must_have_a_row_for_each_sample() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    let arrays =
        [("sample", &floats(vec![2, 2, 1], 0)), ("labels", &floats(vec![2], 0)), ("text", &floats(vec![3], 0))];
    npz::write(&path, arrays).unwrap();
    let wanting = |names: &[&str]| {
        let inputs = Some(names.iter().map(|name| (*name).to_owned()).collect());
        let options = SourceOptions { inputs, ..SourceOptions::default() };
        SampleSource::open(&path, ("sample", &[1, 2, 1]), &Ranges::default(), &options)
    };
    assert!(wanting(&["other"]).unwrap().conditioning_names().is_empty());
    assert_eq!(wanting(&["labels", "other"]).unwrap().conditioning_names(), ["labels"]);
    let message = wanting(&["text"]).unwrap_err().to_string();
    assert!(message.contains("each of the 2 samples, found 3 rows"), "{message}");
}

#[test]
fn dropped_rows_are_zeros_or_the_given_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    npz::write(&path, [("sample", &floats(vec![2, 2, 1], 0)), ("text", &floats(vec![2, 2], 1))]).unwrap();
    let with = |empty: Vec<(String, Array)>| {
        let options = SourceOptions { empty, ..SourceOptions::default() };
        SampleSource::open(&path, ("sample", &[1, 2, 1]), &Ranges::default(), &options)
    };
    let rows = |source: SampleSource| source.rows_with_dropped("text", &[1, 0], &[false, true]).unwrap().to_f64();
    assert_eq!(rows(with(Vec::new()).unwrap()), [3.0, 4.0, 0.0, 0.0]);
    for dims in [vec![2], vec![1, 2]] {
        // Of another element type than in the file.
        let empty = Array::new(dims, ArrayData::F64(vec![8.0, 9.0])).unwrap();
        assert_eq!(rows(with(vec![("text".to_owned(), empty)]).unwrap()), [3.0, 4.0, 8.0, 9.0]);
    }
    let message = with(vec![("text".to_owned(), floats(vec![3], 0))]).unwrap_err().to_string();
    assert!(message.contains("one row of shape [2], found [3]"), "{message}");
}

/// Returns the resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn only_the_needed_rows_of_a_large_array_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    // 6 GB of float32 in a sparse file, of which only the two ends are on disk.
    let (rows, length) = (2_000_000u64, 3 * 16 * 16u64);
    let header = npz::to_npy(&floats(vec![0, 3, 16, 16], 0)).unwrap();
    let header = String::from_utf8_lossy(&header).replace("(0,3,16,16,), }       ", "(2000000,3,16,16,), } ");
    let mut bytes = npz::to_npy(&floats(vec![0, 3, 16, 16], 0)).unwrap();
    let text = &header.as_bytes()[header.find('{').unwrap()..];
    let start = bytes.len() - text.len();
    bytes.splice(start.., text.iter().copied());
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&bytes).unwrap();
    file.seek(SeekFrom::Start(bytes.len() as u64 + (rows * length - 1) * 4)).unwrap();
    file.write_all(&7.5f32.to_le_bytes()).unwrap();
    drop(file);
    let before = resident();
    let source = open(&path, &[1, 3, 16, 16]).unwrap();
    assert_eq!(source.len(), 2_000_000);
    for number in (0..2_000_000).step_by(100_003) {
        assert_eq!(values(&source, number).unwrap(), [0.0; 768]);
    }
    assert_eq!(values(&source, 1_999_999).unwrap()[767], 7.5);
    assert!(resident() - before < 200_000_000, "{} of 6 GB are in memory", resident() - before);
}

#[test]
fn arrays_with_wrong_headers_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let honest = npz::to_npy(&floats(vec![4, 1, 2, 2], 0)).unwrap();
    for length in 0..honest.len() {
        std::fs::write(&path, &honest[..length]).unwrap();
        assert!(open(&path, &[1, 1, 2, 2]).is_err(), "{length}");
    }
    let claim = |from: &str, to: &str| {
        let at = honest.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut bytes = honest.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        open(&path, &[1, 1, 2, 2]).unwrap_err()
    };
    assert!(claim("(4,1,2,2,)", "(9,1,2,2,)").contains("needs 144 bytes"));
    assert!(claim("(4,1,2,2,)", "(nan,1,2,)").contains("\"nan\" is not a size"));
    assert!(claim("(4,1,2,2,)", "(-4,1,2,2)").contains("not a size"));
    assert!(claim("<f4", "<c8").contains("<c8"));
    assert!(claim("(4,1,2,2,)", "(0,1,2,2,)").contains("expected samples, found none"));
}
