//! DPM-Solver++ 2M against diffusers' DPMSolverMultistepScheduler, whose results were computed in float64.

use ndarray::{ArrayD, Axis};
use onnx_diffprune::diffusion::{
    BetaSchedule, DiscreteOptions, Level, NoiseSchedule, PredictionType, Process, SampleOptions, Sampler, Skip,
    StepInput, Trajectory,
};

use super::network::Arrays;
use super::schedulers::{agree_to, cases_of};

#[test]
fn steps_agree_with_those_of_diffusers() {
    let arrays = Arrays::read("diffusion/multistep.npz");
    let cases = cases_of("diffusion/multistep.json");
    assert!(cases.len() >= 49, "{}", cases.len());
    for (name, configured, steps, _) in cases {
        let process = configured.process;
        let part = |key: &str, at: usize| arrays.floats(&format!("{name}.{key}")).index_axis(Axis(0), at).to_owned();
        let options = SampleOptions { steps, sampler: Sampler::DpmSolver2M, ..SampleOptions::default() };
        let mut trajectory = Trajectory::new(&process, &options).unwrap();
        assert_eq!(trajectory.len(), steps, "{name}");
        let share = if name.starts_with("float32") { 1e-5 } else { 3e-7 };
        for at in 0..steps {
            let (time, own) = (part("time", at).sum(), process.time_value(trajectory.level(at)) as f32);
            assert!((own - time).abs() <= 1e-6 * time.abs().max(1.0), "{name}: time of step {at}: {own} {time}");
            let (mut x, output) = (part("x", at), part("output", at));
            let fresh = ArrayD::zeros(x.shape());
            assert!(!trajectory.adds_noise(at));
            trajectory.step(at, StepInput { x: &mut x, output: &output, fresh: &fresh, variance: None });
            agree_to(share, &format!("{name}: result of step {at}"), &x, &part("next", at));
        }
    }
}

fn linear() -> Process {
    let schedule = NoiseSchedule::discrete(&DiscreteOptions::default()).unwrap();
    Process::new(schedule, PredictionType::Sample, None).unwrap()
}

/// For one-dimensional data with variance 1/4, the best estimate is known, and so is the end of the exact trajectory.
#[test]
fn doubling_the_steps_quarters_the_error() {
    let process = linear();
    let variance = 0.25;
    let best = |level: &Level, x: f32| {
        let (a, s) = (level.signal, level.noise);
        (a * variance / (a * a * variance + s * s) * f64::from(x)) as f32
    };
    // Along the exact trajectory, the ratio of x to its standard deviation is constant.
    let deviation = |level: &Level| (level.signal.powi(2) * variance + level.noise.powi(2)).sqrt();
    let error = |sampler: Sampler, steps: usize| {
        let options = SampleOptions { steps, sampler, ..SampleOptions::default() };
        // From a high noise level to a low one: a last first-order step to zero noise would hide the order of the
        // others.
        let levels: Vec<Level> = (0..=steps)
            .map(|at| {
                let lambda = -2.0 + 4.0 * at as f64 / steps as f64;
                let signal = (1.0 / (1.0 + f64::exp(-2.0 * lambda))).sqrt();
                Level { t: 0.0, signal, noise: (1.0 - signal * signal).sqrt() }
            })
            .collect();
        let mut trajectory = Trajectory::over(&process, &options, levels);
        let mut x = ArrayD::from_elem(vec![1], deviation(trajectory.level(0)) as f32);
        for at in 0..steps {
            let output = x.mapv(|x| best(trajectory.level(at), x));
            let fresh = ArrayD::zeros(vec![1]);
            trajectory.step(at, StepInput { x: &mut x, output: &output, fresh: &fresh, variance: None });
        }
        (f64::from(x[0]) / deviation(trajectory.level(steps)) - 1.0).abs()
    };
    let second = error(Sampler::DpmSolver2M, 20) / error(Sampler::DpmSolver2M, 40);
    let first = error(Sampler::Ddim, 20) / error(Sampler::Ddim, 40);
    assert!((3.3..4.7).contains(&second), "{second}");
    assert!((1.7..2.3).contains(&first), "{first}");
    assert!(error(Sampler::DpmSolver2M, 20) < 0.2 * error(Sampler::Ddim, 20));
}

#[test]
fn every_number_of_steps_decreases_to_zero_noise() {
    let squaredcos =
        DiscreteOptions { schedule: BetaSchedule::SquaredcosCapV2, steps: 30, ..DiscreteOptions::default() };
    let rescaled = DiscreteOptions { zero_terminal_snr: true, steps: 30, ..DiscreteOptions::default() };
    for options in [squaredcos, rescaled] {
        let schedule = NoiseSchedule::discrete(&options).unwrap();
        for (count, skip) in (1..=30).flat_map(|count| [(count, Skip::Uniform), (count, Skip::Quadratic)]) {
            let levels = schedule.multistep_levels(count, skip).unwrap();
            assert!(levels.len() <= count + 1);
            assert!(levels.windows(2).all(|pair| pair[0].noise / pair[0].signal > pair[1].noise / pair[1].signal));
            assert_eq!(levels.last(), Some(&Level::CLEAN));
        }
        let error = schedule.multistep_levels(31, Skip::Uniform).unwrap_err();
        assert!(error.to_string().contains("at most 30 steps"), "{error}");
        assert!(schedule.multistep_levels(0, Skip::Uniform).is_err());
    }
}
