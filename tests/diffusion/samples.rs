//! Clean samples from folders of images and from array files.

use std::collections::HashMap;
use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};
use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::diffusion::{Ranges, Samples};
use onnx_diffprune::npz;
use safetensors::tensor::{Dtype, TensorView};

fn load(path: &Path, dims: &[usize], count: usize) -> Result<Samples, String> {
    Samples::load(path, ("sample", dims), &Ranges::default(), count, 0).map_err(|error| error.to_string())
}

fn values(samples: &Samples) -> Vec<f32> {
    samples.values.iter().copied().collect()
}

#[test]
fn images_are_scaled_by_channel() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::from_fn(2, 1, |x, _| Rgb([255 * u8::try_from(x).unwrap(), 51, 0]))
        .save(folder.path().join("b.png"))
        .unwrap();
    GrayImage::from_pixel(2, 1, Luma([255])).save(folder.path().join("a.png")).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    let samples = load(folder.path(), &[8, 3, 1, 2], 2).unwrap();
    assert_eq!(samples.values.shape(), [2, 3, 1, 2]);
    assert_eq!(samples.numbers, [0, 1]);
    let expected = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -0.6, -0.6, -1.0, -1.0];
    assert!(values(&samples).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", samples.values);
    let ranges = Ranges { sample: (0.0, 1.0), ..Ranges::default() };
    let samples = Samples::load(folder.path(), ("sample", &[8, 3, 1, 2]), &ranges, 2, 0).unwrap();
    assert!((samples.values[[1, 1, 0, 0].as_slice()] - 0.2).abs() < 1e-6);
}

#[test]
fn images_of_other_sizes_are_centre_cropped_and_resized() {
    let folder = tempfile::tempdir().unwrap();
    // White, with black borders at the left and right that the centre crop removes.
    let image = GrayImage::from_fn(16, 8, |x, _| Luma([if (4..12).contains(&x) { 255 } else { 0 }]));
    image.save(folder.path().join("wide.png")).unwrap();
    let samples = load(folder.path(), &[1, 1, 4, 4], 1).unwrap();
    assert!(values(&samples).iter().all(|value| *value == 1.0), "{:?}", samples.values);
    assert!(samples.source.contains("1 resized to 1 x 4 x 4"), "{}", samples.source);
    // A tall image whose middle is grey.
    let folder = tempfile::tempdir().unwrap();
    let image = GrayImage::from_fn(4, 12, |_, y| Luma([if (4..8).contains(&y) { 51 } else { 0 }]));
    image.save(folder.path().join("tall.jpg")).unwrap();
    let samples = load(folder.path(), &[1, 1, 2, 2], 1).unwrap();
    assert!(values(&samples).iter().all(|value| (value + 0.6).abs() < 0.05), "{:?}", samples.values);
}

#[test]
fn folders_without_usable_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(load(folder.path(), &[1, 1, 4, 4], 1).unwrap_err().contains("found none"));
    GrayImage::new(4, 4).save(folder.path().join("a.png")).unwrap();
    let message = load(folder.path(), &[1, 4, 4, 4], 1).unwrap_err();
    assert!(
        message.contains("a.png") && message.contains("1 or 3 channels") && message.contains("have 4"),
        "{message}"
    );
    let message = load(folder.path(), &[1, 1, 4, 4], 2).unwrap_err();
    assert!(message.contains("expected at least 2") && message.contains("found 1"), "{message}");
    assert!(load(folder.path(), &[1, 16, 8], 1).unwrap_err().contains("[channels, height, width]"));
    std::fs::write(folder.path().join("a.png"), b"\x89PNG\r\n\x1a\n damaged").unwrap();
    assert!(load(folder.path(), &[1, 1, 4, 4], 1).unwrap_err().contains("not a readable image"));
    assert!(load(&folder.path().join("missing.npy"), &[1, 1, 4, 4], 1).is_err());
    assert!(load(&folder.path().join("missing"), &[1, 1, 4, 4], 1).unwrap_err().contains("does not exist"));
}

/// Builds twelve arrays of 1x2x3 whose values are their positions.
fn counted(dims: Vec<usize>) -> Array {
    let count = dims.iter().product();
    Array::new(dims, ArrayData::F32((0..count).map(|at| at as f32).collect())).unwrap()
}

#[test]
fn arrays_keep_their_values_and_the_seed_chooses_samples() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    let array = counted(vec![12, 1, 2, 3]);
    npz::write(&path, [("labels", &counted(vec![12])), ("sample", &array)]).unwrap();
    let dims = [4, 1, 2, 3];
    let all = load(&path, &dims, 12).unwrap();
    assert_eq!(values(&all), array.to_f64().iter().map(|v| *v as f32).collect::<Vec<_>>());
    let draw = |seed| Samples::load(&path, ("sample", &dims), &Ranges::default(), 5, seed).unwrap();
    let five = draw(1);
    assert_eq!(five, draw(1));
    assert!((2..6).any(|seed| draw(seed).numbers != five.numbers));
    for (row, number) in five.numbers.iter().enumerate() {
        assert_eq!(five.values[[row, 0, 0, 0].as_slice()], (number * 6) as f32);
    }
    // The ends of the data range map to those of the network's range.
    let ranges = Ranges { data: Some((0.0, 71.0)), sample: (-2.0, 2.0) };
    let scaled = Samples::load(&path, ("sample", &dims), &ranges, 12, 0).unwrap();
    let (first, last) = (scaled.values[[0, 0, 0, 0].as_slice()], scaled.values[[11, 0, 1, 2].as_slice()]);
    assert!((first + 2.0).abs() < 1e-6 && (last - 2.0).abs() < 1e-6);
    let ranges = Ranges { data: Some((1.0, 1.0)), ..ranges };
    assert!(Samples::load(&path, ("sample", &dims), &ranges, 12, 0).is_err());
    // Neither array has a name that identifies the samples.
    npz::write(&path, [("a", &array), ("b", &array)]).unwrap();
    assert!(load(&path, &dims, 1).unwrap_err().contains("found a, b"));
}

#[test]
fn samples_that_are_not_finite_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let mut array = counted(vec![12, 1, 2, 3]);
    if let ArrayData::F32(values) = &mut array.data {
        values[6 * 7 + 1] = f32::NAN;
    }
    std::fs::write(&path, npz::to_npy(&array).unwrap()).unwrap();
    let message = load(&path, &[4, 1, 2, 3], 12).unwrap_err();
    assert!(message.contains("x.npy") && message.contains("sample 7") && message.contains("not finite"), "{message}");
}

#[test]
fn the_channel_axis_may_be_last_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    std::fs::write(&path, npz::to_npy(&counted(vec![1, 2, 2, 3])).unwrap()).unwrap();
    let samples = load(&path, &[1, 3, 2, 2], 1).unwrap();
    assert_eq!(values(&samples), [0.0, 3.0, 6.0, 9.0, 1.0, 4.0, 7.0, 10.0, 2.0, 5.0, 8.0, 11.0]);
    let bytes = Array::new(vec![2, 1, 2], ArrayData::U8(vec![0, 255, 51, 204])).unwrap();
    std::fs::write(&path, npz::to_npy(&bytes).unwrap()).unwrap();
    let samples = load(&path, &[1, 1, 1, 2], 2).unwrap();
    assert!(values(&samples).iter().zip([-1.0, 1.0, -0.6, 0.6]).all(|(a, b)| (a - b).abs() < 1e-6));
    let message = load(&path, &[1, 3, 8, 8], 1).unwrap_err();
    assert!(message.contains("3 x 8 x 8") && message.contains("[2, 1, 2]"), "{message}");
}

#[test]
fn safetensors_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let halves: Vec<u8> = [0x3c00u16, 0xbc00].iter().flat_map(|half| half.to_le_bytes()).collect();
    let labels = [1u8; 8];
    let tensors = HashMap::from([
        ("latents", TensorView::new(Dtype::F16, vec![1, 2, 1, 1], &halves).unwrap()),
        ("labels", TensorView::new(Dtype::I64, vec![1], &labels).unwrap()),
    ]);
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(values(&load(&path, &[1, 2, 1, 1], 1).unwrap()), [1.0, -1.0]);
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(load(&path, &[1, 2, 1, 1], 1).unwrap_err().contains("not a readable safetensors file"));
}
