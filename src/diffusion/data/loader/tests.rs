//! Batches do not depend on the number of threads or the position at which reading starts.

use std::path::Path;
use std::time::{Duration, Instant};

use image::{GrayImage, Luma};

use super::super::ranges::Ranges;
use super::super::source::SourceOptions;
use super::*;
use crate::array::ArrayData;
use crate::npz;

fn open(path: &Path, dims: &[usize], most_unreadable: usize) -> Arc<SampleSource> {
    let options = SourceOptions { most_unreadable, ..SourceOptions::default() };
    let ranges = Ranges { data: Some((0.0, 1.0)), sample: (0.0, 1.0) };
    Arc::new(SampleSource::open(path, ("sample", dims), &ranges, &options).unwrap())
}

/// Ten samples of 1 x 1 x 2 with a label each, `[10 n, 10 n + 1]` and `n`.
fn arrays(folder: &Path) -> Arc<SampleSource> {
    let samples = (0..10).flat_map(|number| [10.0 * number as f32, 10.0 * number as f32 + 1.0]).collect();
    let samples = Array::new(vec![10, 1, 1, 2], ArrayData::F32(samples)).unwrap();
    let labels = Array::new(vec![10], ArrayData::I64((1..11).collect())).unwrap();
    let path = folder.join("x.npz");
    npz::write(&path, [("sample", &samples), ("labels", &labels)]).unwrap();
    open(&path, &[1, 1, 1, 2], 0)
}

fn flipping(batch: usize) -> LoaderOptions {
    LoaderOptions { flip: true, drop_conditioning: 0.3, ..LoaderOptions::new(batch) }
}

fn take(source: &Arc<SampleSource>, options: &LoaderOptions, count: usize) -> Vec<Batch> {
    let order = SampleOrder::new(7, source.len());
    let mut loader = Loader::new(source.clone(), order, options.clone()).unwrap();
    (0..count).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn batches_follow_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let source = arrays(folder.path());
    let order = SampleOrder::new(7, 10);
    let (mut flipped, mut dropped) = (0, 0);
    for batch in take(&source, &flipping(4), 15) {
        assert_eq!(batch.numbers, order.numbers(batch.positions[0]..batch.positions[3] + 1));
        for (row, position) in batch.positions.iter().enumerate() {
            let first = 10.0 * batch.numbers[row] as f32;
            let expected = if order.flips(*position) { [first + 1.0, first] } else { [first, first + 1.0] };
            flipped += usize::from(order.flips(*position));
            assert_eq!([batch.values[[row, 0, 0, 0].as_slice()], batch.values[[row, 0, 0, 1].as_slice()]], expected);
            let (name, labels) = &batch.conditioning[0];
            assert_eq!(batch.dropped[row], order.drops(*position, 0.3));
            dropped += usize::from(batch.dropped[row]);
            let label = if batch.dropped[row] { 0.0 } else { batch.numbers[row] as f64 + 1.0 };
            assert_eq!((name.as_str(), labels.to_f64()[row]), ("labels", label));
        }
    }
    assert!(flipped > 10 && flipped < 50 && dropped > 5 && dropped < 40, "{flipped} {dropped}");
}

#[test]
fn threads_restarts_and_ranks_read_the_same_batches() {
    let folder = tempfile::tempdir().unwrap();
    let source = arrays(folder.path());
    let one = take(&source, &LoaderOptions { workers: Some(1), ..flipping(6) }, 20);
    assert_eq!(one, take(&source, &LoaderOptions { workers: Some(4), ..flipping(6) }, 20));
    let ahead = LoaderOptions { workers: Some(3), ahead: 1, ..flipping(6) };
    assert_eq!(one, take(&source, &ahead, 20));
    // From the middle of an epoch.
    assert_eq!(one[7..], take(&source, &LoaderOptions { start: 42, ..flipping(6) }, 13));
    // Two ranks with a half of each step.
    let rank = |offset| take(&source, &LoaderOptions { stride: 6, offset, ..flipping(3) }, 20);
    for (whole, (first, second)) in one.iter().zip(rank(0).iter().zip(&rank(3))) {
        let numbers = [first.numbers.clone(), second.numbers.clone()].concat();
        let values: Vec<f32> = first.values.iter().chain(&second.values).copied().collect();
        assert_eq!((whole.numbers.clone(), whole.values.iter().copied().collect()), (numbers, values));
        assert_eq!(whole.dropped, [first.dropped.clone(), second.dropped.clone()].concat());
    }
}

/// Creates twelve images, of which those with these numbers are damaged.
fn images(folder: &Path, damaged: &[usize], most_unreadable: usize) -> Arc<SampleSource> {
    for number in 0..12 {
        let path = folder.join(format!("{number:02}.png"));
        match damaged.contains(&number) {
            true => std::fs::write(path, b"\x89PNG\r\n\x1a\n damaged").unwrap(),
            false => GrayImage::from_pixel(2, 2, Luma([number as u8])).save(path).unwrap(),
        }
    }
    open(folder, &[1, 1, 2, 2], most_unreadable)
}

#[test]
fn broken_images_are_named_once_and_replaced_by_the_next_readable_one() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(folder.path(), &[3, 4], 2);
    let one = take(&source, &LoaderOptions { workers: Some(1), ..LoaderOptions::new(4) }, 9);
    let four =
        take(&images(folder.path(), &[3, 4], 2), &LoaderOptions { workers: Some(4), ..LoaderOptions::new(4) }, 9);
    assert_eq!(one, four);
    let numbers: Vec<usize> = one.iter().flat_map(|batch| batch.numbers.clone()).collect();
    let expected = SampleOrder::new(7, 12).numbers(0..36);
    let expected: Vec<usize> = expected.into_iter().map(|n| if n == 3 || n == 4 { 5 } else { n }).collect();
    assert_eq!(numbers, expected);
    for batch in &one {
        for (row, number) in batch.numbers.iter().enumerate() {
            assert_eq!(batch.values[[row, 0, 0, 0].as_slice()], *number as f32);
        }
    }
    let warnings: Vec<&String> = one.iter().flat_map(|batch| &batch.warnings).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().any(|text| text.contains("03.png")) && warnings.iter().any(|text| text.contains("04.png")));
}

#[test]
fn more_broken_images_than_may_be_skipped_are_an_error_that_lists_them() {
    let folder = tempfile::tempdir().unwrap();
    let ends = |workers| {
        let source = images(folder.path(), &[1, 3, 8], 2);
        let options = LoaderOptions { workers: Some(workers), ..LoaderOptions::new(2) };
        let mut loader = Loader::new(source.clone(), SampleOrder::new(7, 12), options).unwrap();
        (0..12).find_map(|step| loader.next().err().map(|error| (step, error.to_string()))).unwrap()
    };
    let (step, message) = ends(1);
    assert_eq!((step, message.clone()), ends(4));
    assert!(
        ["01.png", "03.png", "08.png", "at most 2", "found 3"].iter().all(|text| message.contains(text)),
        "{message}"
    );
    // If no image can be read, the run ends whatever the limit.
    let source = images(folder.path(), &(0..12).collect::<Vec<_>>(), 100);
    let mut loader = Loader::new(source, SampleOrder::new(7, 12), LoaderOptions::new(2)).unwrap();
    assert!(loader.next().unwrap_err().to_string().contains("expected images that can be read, found none"));
}

#[test]
fn a_loader_that_is_dropped_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let source = arrays(folder.path());
    for taken in 0..3 {
        let mut loader = Loader::new(source.clone(), SampleOrder::new(7, 10), LoaderOptions::new(2)).unwrap();
        (0..taken).for_each(|_| drop(loader.next().unwrap()));
        let start = Instant::now();
        drop(loader);
        assert!(start.elapsed() < Duration::from_secs(5));
        // No thread holds the source any more.
        assert_eq!(Arc::strong_count(&source), 1);
    }
}

#[test]
fn a_panic_of_a_thread_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    // The list of positions of such a batch fits into no memory. `new` would refuse it.
    let options = LoaderOptions { stride: 1 << 62, ..LoaderOptions::new(1 << 61) };
    let mut loader = Loader::start(arrays(folder.path()), SampleOrder::new(7, 10), options).unwrap();
    for _ in 0..3 {
        let message = loader.next().unwrap_err().to_string();
        assert!(message.contains("10 samples of"), "{message}");
    }
}

#[test]
fn invalid_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = arrays(folder.path());
    let refused = |options: LoaderOptions, count| {
        Loader::new(source.clone(), SampleOrder::new(7, count), options).unwrap_err().to_string()
    };
    let two = LoaderOptions::new(2);
    assert!(refused(LoaderOptions { batch: 0, ..two.clone() }, 10).contains("at least one sample"));
    assert!(refused(LoaderOptions { offset: 1, ..two.clone() }, 10).contains("a step of 2"));
    assert!(refused(LoaderOptions { drop_conditioning: f64::NAN, ..two.clone() }, 10).contains("NaN"));
    assert!(refused(LoaderOptions::new(1 << 60), 10).contains("memory"));
    assert!(refused(two.clone(), 11).contains("1 to 10 samples, found 11"));
    assert!(refused(two.clone(), 0).contains("found 0"));
    let far = LoaderOptions { start: u64::MAX - 1, ..two };
    let mut loader = Loader::new(source.clone(), SampleOrder::new(7, 10), far).unwrap();
    assert!(loader.next().unwrap_err().to_string().contains("64 bits"));
}
