//! Several ranks fit what one process does: the same rows are used, and only rounding differs.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use onnx_diffprune::collective::{Alone, Collective, Threads};
use onnx_diffprune::error::Error;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, TensorProto};
use onnx_diffprune::prune::{Model, Ratio, RefitSettings, Runtime, ScoreOptions};
use onnx_diffprune::refit::RefitOptions;

use super::{half_with_a_sum, options, refitted_on};
use crate::support::fixtures::fixture;

/// Returns all weights of a file in one vector.
fn weights(path: &Path) -> Vec<f32> {
    let model = load(path).unwrap();
    let floats = |tensor: &&TensorProto| tensor.data_type == DataType::Float as i32;
    let values = |tensor: &TensorProto| {
        let bytes = model.tensor_bytes(tensor).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
    };
    model.graph().initializer.iter().filter(floats).flat_map(values).collect()
}

/// Returns the distance of weights relative to their change by the fit.
fn apart(found: &[f32], expected: &[f32], before: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    distance(found, expected) / distance(before, expected).max(f64::MIN_POSITIVE)
}

#[test]
fn several_ranks_fit_the_weights_of_one_process() {
    let pruned = half_with_a_sum();
    let before = weights(&pruned.path);
    // With little memory, the rows are stored instead of their products. Of 16 chunks, some are held out.
    for (chunks, memory) in [(8, 1_500_000_000), (8, 40_000), (16, 1_500_000_000)] {
        let fit = |ranks: Arc<dyn Collective>| {
            let options = RefitOptions { memory, ranks, ridge: 1e-3, ..options() };
            let outcome = refitted_on(chunks, &pruned, &options);
            (weights(&outcome.path), outcome.layers.len())
        };
        let (expected, layers) = fit(Arc::new(Alone));
        assert!(before.len() == expected.len() && before != expected);
        for size in [2, 3] {
            let all: Vec<_> = Threads::run(size, |ranks| Ok(fit(ranks))).into_iter().map(Result::unwrap).collect();
            assert!(all.iter().all(|found| *found == all[0]), "the ranks differ");
            assert_eq!(all[0].1, layers);
            let apart = apart(&all[0].0, &expected, &before);
            println!("{chunks} chunks on {size} ranks: {apart:.1e}");
            assert!(apart < 1e-4, "{chunks} chunks, {memory} bytes, {size} ranks: {apart}");
        }
    }
}

/// Cuts and refits the trained network as one rank. Returns its weights and the held-out losses.
fn refit_network(folder: &Path, ranks: Arc<dyn Collective>) -> Result<(Vec<f32>, [f64; 3]), Error> {
    let runtime = Runtime::open(None)?;
    let output = folder.join(format!("rank-{}.onnx", ranks.rank()));
    let analysis = Model::open(fixture("ddpm_fashion16.onnx"))?.analyse()?;
    let mut score = ScoreOptions::magnitude();
    // Only the first rank reads the data.
    let data = if ranks.rank() == 0 { fixture("ddpm_fashion16/train_images.npy") } else { "nothing".into() };
    score.gradients.data = Some(data);
    let staged = analysis.score(&score, &runtime)?.cut(Ratio(0.3))?.stage(&output)?;
    let options = RefitOptions { ranks, threads: Some(1), ..RefitOptions::default() };
    let settings =
        RefitSettings { samples: Some(32), timesteps: Some(16), held_out: 4, options, ..RefitSettings::default() };
    let staged = staged.refit(&runtime, &score, &settings, &mut |_| ControlFlow::Continue(()))?;
    let losses = staged.refit_report().and_then(|report| report.losses.as_ref()).map(|losses| losses.means());
    staged.save()?;
    Ok((weights(&output), losses.unwrap_or_default()))
}

#[test]
fn a_refit_on_two_ranks_agrees_with_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, losses) = refit_network(folder.path(), Arc::new(Alone)).unwrap();
    assert!(losses[2] < losses[1], "{losses:?}");
    let all = Threads::run(2, |ranks| refit_network(folder.path(), ranks));
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert!(all[0] == all[1], "the ranks differ");
    for (found, expected) in all[0].1.iter().zip(losses) {
        assert!((found - expected).abs() < 1e-3 * expected, "{:?}, expected {losses:?}", all[0].1);
    }
    println!("losses {:?}, of one process {losses:?}", all[0].1);
    assert_eq!(all[0].0.len(), expected.len());
}
