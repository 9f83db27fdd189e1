//! Several ranks: measurements and samples equal those of one process.

use std::ops::ControlFlow;
use std::sync::Arc;

use onnx_diffprune::collective::{Alone, Collective, Threads};
use onnx_diffprune::diffusion::SampleOptions;
use onnx_diffprune::error::Error;
use onnx_diffprune::evaluate::FeatureOptions;
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::prune::{
    EvaluateOptions, Evaluation, LossOptions, Model, Network, NetworkOptions, Progress, Ratio, Runtime, ScoreOptions,
};

use super::features::network;
use crate::support::files::save;
use crate::support::fixtures::fixture;

fn unwatched(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Losses by timestep, and the elements of the samples.
type Measured = (Vec<(f64, f64)>, Vec<f32>);

/// Measures the losses of the trained network, and generates some samples.
fn measure(ranks: Arc<dyn Collective>) -> Result<Measured, Error> {
    let runtime = Runtime::open(None)?;
    let model = Model::open(fixture("ddpm_fashion16.onnx"))?;
    let options = NetworkOptions { batch: Some(2), ..NetworkOptions::default() };
    let network = Network::open(&model, &options, &Sizes::new(), None)?.over(ranks);
    let data = fixture("ddpm_fashion16/heldout_images.npy");
    let losses =
        network.loss(&runtime, &LossOptions { count: 10, timesteps: 3, ..LossOptions::on(data) }, &mut unwatched)?;
    // The last batch is not full.
    let drawn =
        network.sample(&runtime, &SampleOptions { count: 7, steps: 3, ..SampleOptions::default() }, &mut unwatched)?;
    Ok((losses.losses, drawn.values.iter().copied().collect()))
}

#[test]
fn losses_and_samples_equal_those_of_one_process() {
    let (losses, samples) = measure(Arc::new(Alone)).unwrap();
    for size in [2, 3] {
        for (found, drawn) in Threads::run(size, measure).into_iter().map(Result::unwrap) {
            assert_eq!(found.len(), losses.len());
            for ((t, found), (expected_t, expected)) in found.iter().zip(&losses) {
                assert!(t == expected_t && (found - expected).abs() <= 1e-6 * expected, "{found}, expected {expected}");
            }
            assert!(drawn.len() == samples.len() && samples.iter().any(|value| value.abs() > 0.1));
            let worst = drawn.iter().zip(&samples).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 1e-4, "{size} ranks: {worst}");
        }
    }
}

#[test]
fn the_figures_of_an_evaluation_equal_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::open(None).unwrap();
    let original = Model::open(fixture("ddpm_fashion16.onnx")).unwrap();
    let scores = original.analyse().unwrap().score(&ScoreOptions::magnitude(), &runtime).unwrap();
    let cut = folder.path().join("cut.onnx");
    scores.cut(Ratio(0.2)).unwrap().stage(&cut).unwrap().save().unwrap();
    let features = save(folder.path(), &network(&["N", "1", "16", "16"], &["map"], 1));
    let evaluate = |ranks: Arc<dyn Collective>| -> Result<Evaluation, Error> {
        let features = FeatureOptions { output: Some("map".to_owned()), ..FeatureOptions::default() };
        let options = EvaluateOptions {
            count: Some(6),
            timesteps: 2,
            samples: Some(9),
            steps: Some(2),
            features: Some((Model::open(folder.path().join("net.onnx"))?, features)),
            measures_latency: true,
            network: NetworkOptions { batch: Some(2), ..NetworkOptions::default() },
            ranks,
            ..EvaluateOptions::on(fixture("ddpm_fashion16/heldout_images.npy"))
        };
        original.evaluate(&[Model::open(&cut)?], &Runtime::open(None)?, &options, &mut unwatched)
    };
    assert!(features.exists());
    let figures = |of: &Evaluation| -> Vec<f64> {
        let network = &of.networks[0];
        let (similar, far) = (network.consistency.as_ref().unwrap(), network.distances.as_ref().unwrap());
        let ssim = similar.ssim.as_ref().unwrap().mean;
        vec![network.mean_loss, ssim, far.fd_to_original.unwrap(), far.fd_to_data.unwrap(), of.original.mean_loss]
    };
    let expected = evaluate(Arc::new(Alone)).unwrap();
    assert!(expected.networks[0].latency.is_some());
    for found in Threads::run(2, evaluate) {
        let found = found.unwrap();
        for (found, expected) in figures(&found).iter().zip(figures(&expected)) {
            assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found}, expected {expected}");
        }
        assert!(found.networks[0].latency.is_none() && found.notes.iter().any(|note| note.contains("2 ranks")));
    }
}
