//! Sums over the elements of a channel, which are computed in the graph or before the remaining weights are
//! differentiated, against sums of the gradients.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use onnx_diffprune::analysis::Analysis;
use onnx_diffprune::array::Array;
use onnx_diffprune::couple::group::ChannelGroup;
use onnx_diffprune::couple::options::{AttentionOption, NormGroups};
use onnx_diffprune::error::Error;
use onnx_diffprune::gradient::accumulate::{AccumulateOptions, Accumulated, Denoising, ThresholdMode, accumulate};
use onnx_diffprune::gradient::pass::{GradientPass, PassOptions};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, Precision};
use onnx_diffprune::graph::Reader;
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::score::{
    Criterion, GradientCriterion, GradientForm, GroupReduction, ScoreCx, ScoringMembers, Term, scoring_axes,
};

use crate::diff_pruning::{Fixed, reference};
use crate::support::fixtures::{THREADS, analysed, runtime};

/// Three of the timesteps of a task.
struct Three<'a>(&'a Fixed, Vec<f64>);

impl Denoising for Three<'_> {
    fn timesteps(&self) -> &[f64] {
        &self.1
    }

    fn batch(&self) -> usize {
        self.0.batch()
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        self.0.inputs(100 * at, samples)
    }
}

fn groups(analysis: &Analysis) -> Vec<ChannelGroup> {
    let groupings = analysis.groupings(AttentionOption::Both, NormGroups::Keep);
    groupings.into_iter().flat_map(|grouping| grouping.groups).collect()
}

fn form(term: Term, members: ScoringMembers, reduction: GroupReduction) -> GradientForm {
    GradientForm { name: "test", term, members, reduction, is_ddpm_exp: false, loss_scale: 1.0 }
}

/// Returns the sums over three timesteps. With `bound`, they are kept in device memory.
fn sums(analysis: &Analysis, options: &GradientOptions, squared: bool, bound: bool) -> Accumulated {
    let reference = reference();
    let all = reference.task.timesteps();
    let task = Three(&reference.task, vec![all[0], all[100], all[200]]);
    let options = GradientOptions { sizes: Sizes::from([("batch".to_owned(), 2)]), ..options.clone() };
    let graph = GradientGraph::build(analysis, &options).unwrap();
    let pass = PassOptions { threads: THREADS, keeps_on_device: Some(bound), ..PassOptions::default() };
    let mut pass = GradientPass::with_options(runtime(), &graph, &analysis.model, &pass).unwrap();
    let mut sum = Accumulated::new(pass.uses());
    let (threshold, mode) = (0.0, ThresholdMode::Prefix);
    let how = AccumulateOptions { threshold, mode, sums_last: false, squared, micro_batch: 2 };
    accumulate(&mut pass, &analysis.model, &task, &how, None, &mut sum, |_| Ok(ControlFlow::Continue(()))).unwrap();
    sum
}

fn scores(analysis: &Analysis, sum: &Accumulated, form: &GradientForm) -> Vec<Vec<f64>> {
    let cx = cx(analysis);
    let groups = groups(analysis);
    let criterion = GradientCriterion::new(&cx, &groups, sum, form).unwrap();
    groups.iter().map(|group| criterion.score(&cx, group).unwrap()).collect()
}

fn cx(analysis: &Analysis) -> ScoreCx<'_> {
    let Analysis { model, graph, operators, fold, coupling, .. } = analysis;
    ScoreCx { model, graph, operators, fold, coupling }
}

#[test]
fn terms_linear_in_the_gradients_are_summed_in_the_graph() {
    let analysis = analysed("ddpm_fashion16.onnx");
    let axes = scoring_axes(&groups(analysis));
    let axes: BTreeMap<Reader, Vec<usize>> =
        axes.into_iter().map(|(at, axes)| (analysis.coupling.uses[at].reader(), axes.into_iter().collect())).collect();
    let whole = GradientOptions { wanted: analysis.prunable_weights(), ..GradientOptions::default() };
    let by_index = GradientOptions { by_index: Some(axes), ..whole.clone() };
    let halves = GradientOptions { precision: Precision::Float16, ..by_index.clone() };
    let expected = sums(analysis, &whole, false, false);
    let found = [
        (sums(analysis, &by_index, false, false), 1e-5),
        (sums(analysis, &by_index, false, true), 1e-5),
        (sums(analysis, &halves, false, false), 1e-2),
    ];
    let elements = |sum: &Accumulated| sum.sums.iter().map(Vec::len).sum::<usize>();
    for (found, tolerance) in &found {
        assert!(20 * elements(found) < elements(&expected), "{} of {}", elements(found), elements(&expected));
        for (members, reduction) in
            [(ScoringMembers::All, GroupReduction::Sum), (ScoringMembers::Weights, GroupReduction::Mean)]
        {
            assert!(form(Term::Signed, members, reduction).is_linear());
            let by_sums = scores(analysis, found, &form(Term::Signed, members, reduction));
            let by_gradients = scores(analysis, &expected, &form(Term::Signed, members, reduction));
            // The sum of the absolute terms, as the scale of the error.
            let sizes = scores(analysis, &expected, &form(Term::Absolute, members, reduction));
            let all = || by_gradients.iter().flatten().zip(by_sums.iter().flatten()).zip(sizes.iter().flatten());
            for ((expected, found), size) in all() {
                assert!((expected - found).abs() <= tolerance * size, "{found}, expected {expected}; terms {size}");
            }
            assert!(all().any(|((expected, _), size)| *expected > 0.01 * size), "only rounding errors were compared");
        }
    }
}

#[test]
fn reduced_sums_produce_the_scores_of_gradients() {
    let analysis = analysed("ddpm_fashion16.onnx");
    let options = GradientOptions { wanted: analysis.prunable_weights(), ..GradientOptions::default() };
    for (term, squared) in [(Term::Absolute, false), (Term::Squared, false), (Term::Curvature, true)] {
        let form = form(term, ScoringMembers::All, GroupReduction::Sum);
        assert!(!form.is_linear());
        let sum = sums(analysis, &options, squared, false);
        let mut reduced = sum.clone();
        form.reduce(&cx(analysis), &groups(analysis), &mut reduced).unwrap();
        assert!(reduced.sums.iter().zip(&sum.sums).all(|(reduced, whole)| reduced.len() <= whole.len()));
        let (found, expected) = (scores(analysis, &reduced, &form), scores(analysis, &sum, &form));
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() <= 1e-6 * expected, "{term:?}: {found}, expected {expected}");
        }
    }
}
