//! Several ranks compute the importance of one process: the same timesteps are kept, with the same losses, and only
//! rounding differs.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use onnx_diffprune::array::Array;
use onnx_diffprune::collective::{Alone, Collective, Threads};
use onnx_diffprune::error::Error;
use onnx_diffprune::gradient::accumulate::{
    AccumulateOptions, Accumulated, Denoising, LossPoint, Rounds, ThresholdMode, accumulate_over,
};
use onnx_diffprune::gradient::pass::GradientPass;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::{CriterionOption, CutOptions, Model, Ratio, Runtime, ScoreOptions};

use super::diff_pruning::{Fixed, reference};
use crate::support::fixtures::{THREADS, analysed, fixture, runtime};

/// The scores of all channels, the kept channels, and the losses.
type Found = (Vec<Vec<f64>>, Vec<Vec<usize>>, Vec<LossPoint>);

fn scored(options: &ScoreOptions, ranks: Arc<dyn Collective>) -> Result<Found, Error> {
    let runtime = Runtime::open(None)?;
    let mut options = options.clone();
    if ranks.rank() > 0 {
        // Only the first rank reads the data.
        options.gradients.data = options.gradients.data.map(|_| "nothing".into());
    }
    options.gradients.ranks = ranks;
    let model = Model::open(fixture("ddpm_fashion16.onnx"))?;
    let scores = model.analyse()?.score(&options, &runtime)?;
    let curve = scores.gradients().map(|report| report.curve.clone()).unwrap_or_default();
    let cut = scores.cut(Ratio(0.5))?;
    let groups = &cut.plan().groups;
    Ok((
        groups.iter().map(|group| group.scores.clone()).collect(),
        groups.iter().map(|group| group.kept.clone()).collect(),
        curve,
    ))
}

/// Compares the result of several ranks with that of one process. Returns the points of the loss curve.
fn compare(options: &ScoreOptions, size: usize) -> Vec<LossPoint> {
    let (scores, kept, curve) = scored(options, Arc::new(Alone)).unwrap();
    let all: Vec<Found> =
        Threads::run(size, |ranks| scored(options, ranks)).into_iter().map(|found| found.unwrap()).collect();
    for (found, found_kept, found_curve) in &all {
        assert_eq!((found, found_kept), (&all[0].0, &all[0].1), "the ranks differ");
        assert_eq!(found_curve.len(), curve.len());
        for (found, expected) in found_curve.iter().zip(&curve) {
            assert_eq!((found.t, found.kept), (expected.t, expected.kept));
            assert!((found.loss - expected.loss).abs() <= 1e-6 * expected.loss, "{found:?}, not {expected:?}");
        }
    }
    let mut worst = 0.0_f64;
    for (found, expected) in all[0].0.iter().zip(&scores) {
        let largest = expected.iter().fold(0.0_f64, |largest, score| largest.max(score.abs()));
        for (found, expected) in found.iter().zip(expected) {
            worst = worst.max((found - expected).abs() / largest);
        }
    }
    println!("{size} ranks, {} timesteps: scores differ by {worst:.1e}", curve.len());
    assert!(worst < 1e-5, "{worst}");
    assert_eq!(all[0].1, kept);
    curve
}

/// Returns options for scoring by a criterion on some samples and timesteps.
fn options(criterion: CriterionOption, timesteps: usize) -> ScoreOptions {
    let mut options = ScoreOptions::by(criterion);
    options.gradients.data = Some(fixture("ddpm_fashion16/train_images.npy"));
    options.gradients.network.batch = Some(4);
    options.gradients.timesteps = Some(timesteps);
    options
}

#[test]
fn a_prefix_ends_at_the_timestep_of_one_process() {
    let mut options = options(CriterionOption::DiffPruning, 20);
    options.gradients.threshold = 0.05;
    for size in [2, 3] {
        let curve = compare(&options, size);
        assert!(curve.len() < 20 && !curve.last().unwrap().kept, "{curve:?}");
        // Other ranks have computed timesteps beyond the end.
        assert!(!curve.len().is_multiple_of(size), "{} timesteps", curve.len());
    }
}

#[test]
fn a_mask_and_squares_of_whole_timesteps_agree_with_one_process() {
    let mut masked = options(CriterionOption::DiffPruning, 7);
    masked.gradients.mode = ThresholdMode::Mask;
    masked.gradients.threshold = 0.05;
    let curve = compare(&masked, 2);
    assert!(curve.len() == 7 && curve.iter().any(|point| !point.kept));
    let mut squared = options(CriterionOption::Hessian, 5);
    squared.gradients.micro_batch = Some(2);
    assert_eq!(compare(&squared, 2).len(), 5);
}

#[test]
fn the_adaptive_rule_visits_the_timesteps_of_one_process() {
    let mut adaptive = options(CriterionOption::Taylor, 50);
    adaptive.gradients.network.batch = Some(1);
    // If no channel is removed, the choice is stable after four checks.
    adaptive.gradients.adaptive = Some(CutOptions::new(Ratio(0.0)));
    let curve = compare(&adaptive, 3);
    assert_eq!(curve.len(), 40);
}

/// A task at fewer timesteps.
struct Few<'a>(&'a Fixed, Vec<f64>);

impl Denoising for Few<'_> {
    fn timesteps(&self) -> &[f64] {
        &self.1
    }

    fn batch(&self) -> usize {
        2
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        self.0.inputs(self.1[at] as usize, samples)
    }
}

#[test]
fn a_sum_resumes_with_another_number_of_ranks() {
    let reference = reference();
    let task = Few(&reference.task, (0..7).map(|at| f64::from(at * 90)).collect());
    let analysis = analysed("ddpm_fashion16.onnx");
    let sizes = Sizes::from([("batch".to_owned(), 2)]);
    let graph = GradientGraph::build(
        analysis,
        &GradientOptions { sizes, wanted: analysis.prunable_weights(), ..GradientOptions::default() },
    )
    .unwrap();
    let how = AccumulateOptions {
        threshold: 0.0,
        mode: ThresholdMode::Prefix,
        sums_last: false,
        squared: false,
        micro_batch: 2,
    };
    let go = |ranks: &dyn Collective, sum: Option<Accumulated>, until: usize| {
        let mut pass = GradientPass::new(runtime(), &graph, &analysis.model, THREADS)?;
        let mut sum = sum.unwrap_or_else(|| Accumulated::new(pass.uses()));
        let rounds = Rounds { ranks, ends_at: None };
        accumulate_over(&rounds, &mut pass, &analysis.model, &task, (&how, None), &mut sum, |visited| {
            Ok(if visited.visited() >= until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok::<_, Error>(sum)
    };
    let whole = go(&Alone, None, 7).unwrap();
    let mut before = go(&Alone, None, 2).unwrap();
    before.complete = false;
    let after = Threads::run(3, |ranks| {
        let mut own = before.clone();
        if ranks.rank() > 0 {
            own.sums.iter_mut().for_each(Vec::clear);
        }
        let mut own = go(&*ranks, Some(own), 7)?;
        own.reduce(&*ranks)?;
        Ok(own)
    });
    for after in after {
        let after = after.unwrap();
        assert_eq!((&after.curve, after.complete), (&whole.curve, true));
        for (found, expected) in after.sums.iter().zip(&whole.sums) {
            let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let worst = found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(found.len() == expected.len() && worst <= 1e-5 * largest, "{worst} of {largest}");
        }
    }
}
