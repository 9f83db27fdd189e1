//! Conditioning that belongs to the samples of the data.

use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::diffusion::{DenoisingTask, Ranges, Samples, noise, read_scheduler_config};
use onnx_diffprune::gradient::accumulate::Denoising;
use onnx_diffprune::graph::sizes::Sizes;

use super::network::{Arrays, Network};
use crate::support::fixtures::fixture;

/// Loads some held-out images of the conditional network, chosen by a seed.
fn held_out(count: usize, seed: u64) -> Samples {
    let path = fixture("dit_fashion16/heldout_images.npy");
    Samples::load(&path, ("sample", &[1, 1, 16, 16]), &Ranges::default(), count, seed).unwrap()
}

/// Returns these labels as an input of the network.
fn labels(values: Vec<i64>) -> [(String, Array); 1] {
    [("class_labels".to_owned(), Array::new(vec![values.len()], ArrayData::I64(values)).unwrap())]
}

#[test]
fn every_chosen_image_keeps_its_label() {
    let network = Network::new("dit_fashion16.onnx");
    let process = read_scheduler_config(&fixture("dit_fashion16/scheduler_config.json")).unwrap().process;
    let all = Arrays::read("dit_fashion16/heldout_labels.npz");
    let all = all.get("class_labels").unwrap();
    let (mut denoiser, conditioning) = network.denoiser_given(&[("class_labels".to_owned(), all.clone())], 3);
    for seed in 0..3 {
        let samples = held_out(6, seed);
        assert!(conditioning.unpaired(&samples).is_empty());
        // The samples are the rows of the file at their numbers.
        let whole = held_out(samples.total.unwrap(), 0);
        for (row, number) in samples.values.outer_iter().zip(&samples.numbers) {
            assert_eq!(row, whole.values.index_axis(ndarray::Axis(0), *number));
        }
        let expected: Vec<f64> = samples.numbers.iter().map(|number| all.to_f64()[*number]).collect();
        assert_ne!(expected, all.to_f64()[..6], "the choice should not be the first six");
        let label_of = |inputs: &[(String, Array)]| {
            inputs.iter().find(|(name, _)| name == "class_labels").map(|(_, array)| array.to_f64()).unwrap()
        };
        // The inputs that gradients and losses use.
        let (roles, sizes) = (network.roles(), Sizes::new());
        let of = (&process, &roles, &conditioning);
        let drawn = noise(&[3, 1, 16, 16], 6, 0);
        let task = DenoisingTask::new(of, (&network.facts, &sizes), &samples, drawn.clone(), Some(2)).unwrap();
        let level = process.schedule.level(500).unwrap();
        for rows in [0..3, 3..6] {
            assert_eq!(label_of(&task.inputs(1, rows.clone()).unwrap()), expected[rows.clone()]);
            denoiser.set_conditioning(&conditioning, &samples.numbers[rows.clone()]).unwrap();
            let x = drawn.slice_axis(ndarray::Axis(0), rows.clone().into()).to_owned();
            assert_eq!(label_of(denoiser.inputs(&process, &x, &level).unwrap()), expected[rows]);
        }
    }
}

#[test]
fn the_digest_changes_when_labels_are_swapped() {
    let network = Network::new("dit_fashion16.onnx");
    let digest = |values: Vec<i64>, rows: &[usize]| network.denoiser_given(&labels(values), 4).1.digest(rows).unwrap();
    let first = digest(vec![1, 2, 3], &[0, 1]);
    assert_eq!(first, digest(vec![1, 2, 4], &[0, 1]), "a row that belongs to no sample should not count");
    assert_ne!(first, digest(vec![2, 1, 3], &[0, 1]));
    assert_ne!(first, digest(vec![1, 2, 3], &[1, 0]));
}

#[test]
fn a_row_count_that_differs_from_the_samples_is_reported() {
    let network = Network::new("dit_fashion16.onnx");
    let samples = held_out(8, 0);
    let total = samples.total.unwrap();
    let told = |rows: usize| network.denoiser_given(&labels(vec![1; rows]), 4).1.unpaired(&samples).join("\n");
    assert!(
        told(10).contains(&format!("10 rows, but the data has {total} samples: sample 10 uses row 0 again")),
        "{}",
        told(10)
    );
    assert!(told(total + 7).contains("last 7"), "{}", told(total + 7));
    // One label for all samples, and one label for each.
    assert_eq!((told(1), told(total)), (String::new(), String::new()));
    // Random conditioning has no rows to pair with samples.
    assert!(network.denoiser(4).1.unpaired(&samples).is_empty());
}
