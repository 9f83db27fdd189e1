//! Diffusion processes against independent references: diffusers' schedulers, and PyTorch's losses of the trained
//! network.

use ndarray::{ArrayD, Axis};
use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::collective::Alone;
use onnx_diffprune::diffusion::{
    Conditioning, ConfiguredProcess, Denoiser, Level, SampleOptions, Sampler, Samples, Skip, StepInput, Trajectory,
    VarianceType, generate, noise, read_scheduler_config,
};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::runtime::SessionOptions;

use super::network::{Arrays, Network, floats};
use crate::support::fixtures::{fixture, runtime};

/// Fails unless the arrays agree to 1e-5 of their largest magnitude.
fn agree(what: &str, found: &ArrayD<f32>, expected: &ArrayD<f32>) {
    agree_to(1e-5, what, found, expected);
}

/// Fails unless the arrays agree to this share of their largest magnitude.
pub(crate) fn agree_to(share: f32, what: &str, found: &ArrayD<f32>, expected: &ArrayD<f32>) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let magnitude = expected.iter().fold(1.0f32, |most, value| most.max(value.abs()));
    let error = found.iter().zip(expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / magnitude;
    assert!(error <= share, "{what}: error {error:e} of {magnitude}");
}

/// Returns every configuration of a fixture with its name, number of steps and eta.
pub(crate) fn cases_of(file: &str) -> Vec<(String, ConfiguredProcess, usize, f64)> {
    let text = std::fs::read_to_string(fixture(file)).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let case = |case: &serde_json::Value| {
        let path = folder.path().join("scheduler_config.json");
        std::fs::write(&path, case["config"].to_string()).unwrap();
        let name = case["name"].as_str().unwrap().to_owned();
        let steps = usize::try_from(case["steps"].as_u64().unwrap()).unwrap();
        (name, read_scheduler_config(&path).unwrap(), steps, case["eta"].as_f64().unwrap_or(0.0))
    };
    file["cases"].as_array().unwrap().iter().map(case).collect()
}

fn cases() -> Vec<(String, ConfiguredProcess, usize, f64)> {
    let cases = cases_of("diffusion/schedulers.json");
    assert!(cases.len() >= 14);
    cases
}

#[test]
fn noisy_samples_and_times_agree_with_those_of_diffusers() {
    let arrays = Arrays::read("diffusion/schedulers.npz");
    let mut compared = 0;
    for (name, ConfiguredProcess { process, .. }, ..) in cases() {
        let Some(steps) = arrays.get(&format!("{name}.training_steps")) else { continue };
        let (x0, noise) = (arrays.floats(&format!("{name}.x0")), arrays.floats(&format!("{name}.noise")));
        let noisy = arrays.floats(&format!("{name}.noisy"));
        let times = arrays.get(&format!("{name}.training_times")).unwrap().to_f64();
        for (at, step) in steps.to_f64().into_iter().enumerate() {
            let level = process.schedule.level(step as usize).unwrap();
            let mut out = ArrayD::zeros(x0.shape());
            process.add_noise(&x0, &noise, &level, &mut out);
            agree(&format!("{name} at {step}"), &out, &noisy.index_axis(Axis(0), at).to_owned());
            let time = process.time_value(&level);
            assert!((time - times[at]).abs() <= 1e-5 * times[at].abs().max(1.0), "{name}: {time} {}", times[at]);
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn steps_agree_with_those_of_diffusers() {
    let arrays = Arrays::read("diffusion/schedulers.npz");
    for (name, ConfiguredProcess { process, variance, .. }, steps, eta) in cases() {
        let part = |key: &str, at: usize| arrays.floats(&format!("{name}.{key}")).index_axis(Axis(0), at).to_owned();
        let sampler = if name.starts_with("ddpm") { Sampler::Ddpm } else { Sampler::Ddim };
        let options = SampleOptions { steps, sampler, eta, variance, ..SampleOptions::default() };
        let mut trajectory = Trajectory::new(&process, &options).unwrap();
        assert_eq!(trajectory.len(), steps, "{name}");
        for at in 0..steps {
            let what = |key: &str| format!("{name}: {key} of step {at}");
            let mut x = part("x", at);
            let scale = process.input_scale(trajectory.level(at)) as f32;
            agree(&what("input"), &x.mapv(|value| value * scale), &part("scaled", at));
            let time = part("time", at).sum();
            let own = process.time_value(trajectory.level(at)) as f32;
            assert!((own - time).abs() <= 1e-5 * time.abs().max(1.0), "{}: {own} {time}", what("time"));
            let output = part("output", at);
            let channels = x.shape()[1];
            let (first, rest) = output.view().split_at(Axis(1), channels);
            let (first, rest) = (first.to_owned(), rest.to_owned());
            let learned = variance == VarianceType::LearnedRange;
            let input =
                StepInput { x: &mut x, output: &first, fresh: &part("fresh", at), variance: learned.then_some(&rest) };
            trajectory.step(at, input);
            agree(&what("result"), &x, &part("next", at));
        }
    }
}

/// A target is correct if the perfect output leads to the clean sample in one step.
#[test]
fn the_perfect_output_leads_to_the_clean_sample() {
    let arrays = Arrays::read("diffusion/schedulers.npz");
    for (name, ConfiguredProcess { mut process, .. }, ..) in cases() {
        process.clip = None;
        let (x0, noise) = (arrays.floats(&format!("{name}.x0")), arrays.floats(&format!("{name}.noise")));
        for t in [1, process.schedule.step_count() / 2] {
            let level = process.schedule.level(t).unwrap();
            let (mut x, mut target) = (ArrayD::zeros(x0.shape()), ArrayD::zeros(x0.shape()));
            process.add_noise(&x0, &noise, &level, &mut x);
            process.target(&x0, &noise, &level, &mut target);
            let input = StepInput { x: &mut x, output: &target, fresh: &noise, variance: None };
            Trajectory::over(&process, &SampleOptions::default(), vec![level, Level::CLEAN]).step(0, input);
            let error = x.iter().zip(&x0).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            // The rounding error of the noisy sample is divided by the signal.
            assert!(error <= 1e-6 * (4.0 + (level.sigma() as f32).powi(2) * 4.0), "{name} at {t}: {error:e}");
        }
    }
}

#[test]
fn the_quadratic_skip_agrees_with_that_of_ddim() {
    let process = read_scheduler_config(&fixture("ddpm_fashion16/scheduler_config.json")).unwrap().process;
    let levels = process.schedule.sampling_levels(10, Skip::Quadratic).unwrap();
    // numpy: [int(s) for s in numpy.linspace(0, (1000 * 0.8) ** 0.5, 10) ** 2], from the last to the first.
    let steps: Vec<f64> = levels[..10].iter().map(|level| level.t).collect();
    assert_eq!(steps, [800.0, 632.0, 483.0, 355.0, 246.0, 158.0, 88.0, 39.0, 9.0, 0.0]);
    assert!(process.schedule.sampling_levels(1001, Skip::Quadratic).is_err());
}

/// `reference.npz` contains the losses that PyTorch computed with the original weights on this `x0` and `noise`.
#[test]
fn losses_agree_with_those_of_pytorch() {
    let process = read_scheduler_config(&fixture("ddpm_fashion16/scheduler_config.json")).unwrap().process;
    let arrays = Arrays::read("ddpm_fashion16/reference.npz");
    let alphas = arrays.get("alphas_cumprod").unwrap().to_f64();
    assert!(alphas.iter().zip(process.schedule.alphas_cumprod()).all(|(a, b)| (a - b).abs() < 1e-6));
    let losses = arrays.get("losses").unwrap().to_f64();
    // Near t = 0 the reference's 1 - ᾱ_t, which was computed in float32, has only four digits.
    for (t, allowed) in [(0, 1e-4), (10, 1e-5), (100, 1e-5), (296, 1e-5), (500, 1e-5), (900, 1e-5), (999, 1e-5)] {
        compare_loss("ddpm_fashion16", &[], t, (losses[t], allowed));
    }
}

/// The same test on a network with flow matching and labels.
#[test]
fn losses_of_a_conditional_flow_agree_with_those_of_pytorch() {
    let arrays = Arrays::read("dit_fashion16/reference.npz");
    let given = [("class_labels".to_owned(), arrays.get("class_labels").unwrap().clone())];
    let (steps, losses) = (arrays.get("timesteps").unwrap().to_f64(), arrays.get("losses").unwrap().to_f64());
    for (t, loss) in steps.iter().zip(losses).step_by(7) {
        compare_loss("dit_fashion16", &given, *t as usize, (loss, 1e-5));
    }
}

/// Fails unless the loss of a trained network at step t on the samples of its reference is `expected`, up to the
/// relative error `allowed`.
fn compare_loss(name: &str, given: &[(String, Array)], t: usize, (expected, allowed): (f64, f64)) {
    let process = read_scheduler_config(&fixture(&format!("{name}/scheduler_config.json"))).unwrap().process;
    let arrays = Arrays::read(&format!("{name}/reference.npz"));
    let (x0, noise) = (arrays.floats("x0"), arrays.floats("noise"));
    let count = x0.shape()[0];
    let (mut denoiser, conditioning) = Network::new(&format!("{name}.onnx")).denoiser_given(given, count);
    denoiser.set_conditioning(&conditioning, &(0..count).collect::<Vec<_>>()).unwrap();
    let zeros = || ArrayD::<f32>::zeros(x0.shape());
    let (mut x, mut target, mut output) = (zeros(), zeros(), zeros());
    let level = process.schedule.level(t).unwrap();
    process.add_noise(&x0, &noise, &level, &mut x);
    process.target(&x0, &noise, &level, &mut target);
    denoiser.predict(&process, &x, &level, &mut output, None).unwrap();
    let squares = output.iter().zip(&target).map(|(a, b)| f64::from(a - b).powi(2));
    let loss = squares.sum::<f64>() / output.len() as f64;
    assert!((loss - expected).abs() <= allowed * expected, "{name}, t = {t}: {loss} instead of {expected}");
}

#[test]
fn samples_depend_on_the_seed_and_not_on_the_batch() {
    let network = Network::new("ddpm_fashion16.onnx");
    let process = read_scheduler_config(&fixture("ddpm_fashion16/scheduler_config.json")).unwrap().process;
    let draw = |batch: usize, seed: u64, sampler: Sampler| {
        let (mut denoiser, conditioning) = network.denoiser(batch);
        let options = SampleOptions { steps: 4, count: 3, seed, sampler, ..SampleOptions::default() };
        let mut calls = Vec::new();
        let samples = generate(&mut denoiser, &process, &conditioning, &options, &Alone, &mut |at, of| {
            calls.push((at, of));
            Ok(())
        })
        .unwrap();
        assert_eq!(calls.last(), Some(&(4 * 3usize.div_ceil(batch), 4 * 3usize.div_ceil(batch))));
        samples
    };
    let far = |a: &ArrayD<f32>, b: &ArrayD<f32>| a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    for sampler in [Sampler::Ddim, Sampler::Ddpm, Sampler::DpmSolver2M] {
        let samples = draw(3, 7, sampler);
        assert_eq!(samples.shape(), [3, 1, 16, 16]);
        assert!(far(&samples, &draw(2, 7, sampler)) < 1e-3, "another batch size should not change the samples");
        assert!(far(&samples, &draw(3, 8, sampler)) > 0.1, "another seed should change the samples");
    }
    // Samples that replace missing data are generated alike, and the source states it.
    let (mut denoiser, conditioning) = network.denoiser(3);
    let options = SampleOptions { steps: 4, count: 3, seed: 7, ..SampleOptions::default() };
    let noisy = SampleOptions { sampler: Sampler::DpmSolver2M, eta: 0.5, ..options };
    let error = generate(&mut denoiser, &process, &conditioning, &noisy, &Alone, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("adds no noise"), "{error}");
    let drawn = Samples::from_network(&mut denoiser, &process, &conditioning, &options, &mut |_, _| Ok(())).unwrap();
    assert_eq!(drawn.values, draw(3, 7, Sampler::Ddim));
    assert!(["3 samples", "network itself", "DDIM"].iter().all(|fact| drawn.source.contains(fact)), "{}", drawn.source);
    let many = SampleOptions { count: usize::MAX / 2, ..options };
    assert!(generate(&mut denoiser, &process, &conditioning, &many, &Alone, &mut |_, _| Ok(())).is_err());
    assert_eq!(noise(&[9, 2, 2], 2, 1), noise(&[4, 2, 2], 5, 1).slice_axis(Axis(0), (0..2).into()));
}

#[test]
fn learned_variance_and_conditioning_inputs_are_recognised() {
    let network = Network::new("dit_tiny.onnx");
    let roles = network.roles();
    assert_eq!(roles.variance_axis, Some(1));
    assert_eq!(roles.conditioning[0].name, "class_labels");
    let (mut denoiser, conditioning) = network.denoiser(2);
    denoiser.set_conditioning(&conditioning, &[0, 1]).unwrap();
    let process = read_scheduler_config(&fixture("ddpm_fashion16/scheduler_config.json")).unwrap().process;
    let x = noise(denoiser.dims(), 2, 0);
    let (mut output, mut variance) = (ArrayD::zeros(x.shape()), ArrayD::zeros(x.shape()));
    let level = process.schedule.level(500).unwrap();
    denoiser.predict(&process, &x, &level, &mut output, Some(&mut variance)).unwrap();
    // The two halves of the network's output.
    let inputs = denoiser.inputs(&process, &x, &level).unwrap().to_vec();
    let mut session = runtime().session_from_file(network.model.path(), &SessionOptions::default()).unwrap();
    let whole = floats(&session.run(&inputs).unwrap()[0].1);
    let (first, second) = whole.view().split_at(Axis(1), 4);
    assert_eq!((first, second), (output.view(), variance.view()));
    // The graph fixes a batch of two.
    let session = runtime().session_from_file(network.model.path(), &SessionOptions::default()).unwrap();
    let error = Denoiser::new(session, &roles, &network.facts, &Sizes::new(), 3).unwrap_err();
    assert!(["batch size of 2", "3"].iter().all(|fact| error.to_string().contains(fact)), "{error}");
}

#[test]
fn given_conditioning_of_the_wrong_shape_is_refused() {
    let network = Network::new("sd15_tiny_fp16.onnx");
    let roles = network.roles();
    let parts = (&network.model, &network.graph, &network.facts);
    let given = |dims: Vec<usize>| {
        let count = dims.iter().product();
        let array = Array::new(dims, ArrayData::F32(vec![0.5; count])).unwrap();
        let given = [("encoder_hidden_states".to_owned(), array)];
        Conditioning::new(parts, &roles, Some(&given), (&Sizes::from([("seq".to_owned(), 5)]), 2), 0)
    };
    assert!(given(vec![3, 5, 48]).unwrap().is_given("encoder_hidden_states"));
    let error = given(vec![3, 6, 48]).unwrap_err().to_string();
    assert!(error.contains("[samples, 5, 48]") && error.contains("[3, 6, 48]"), "{error}");
}
