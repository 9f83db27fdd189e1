//! Whole cuts of real exports: they verify against the masked reference in ONNX Runtime, reach the requested size, keep
//! the network's inputs and outputs, and can be repeated from their plan.

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::couple::options::{AttentionOption, NormGroups};
use onnx_diffprune::load::load;
use onnx_diffprune::plan::Plan;
use onnx_diffprune::prune::apply::apply;
use onnx_diffprune::prune::{CriterionOption, PruneOptions, Target};
use onnx_diffprune::select::Scope;
use onnx_diffprune::write::write;

use crate::support::cuts::{halved, prune};
use crate::support::files::decoded;
use crate::support::fixtures::{FIXTURES, analysed, fixture};

#[test]
fn every_ratio_verifies_and_a_ratio_of_half_leaves_at_most_two_fifths() {
    for name in FIXTURES {
        for ratio in [0.25, 0.5, 0.75] {
            let own;
            let pruned = match ratio {
                0.5 => halved(name),
                _ => {
                    own = prune(analysed(name), &PruneOptions::by_magnitude(Target::Ratio(ratio)));
                    &own
                }
            };
            let report = pruned.report();
            assert!(report.passed, "{name} at {ratio}: {report:?}");
            assert!(!report.runs.is_empty() && report.runs.iter().all(|run| !run.outputs.is_empty()), "{name}");
            let share = pruned.share();
            if ratio == 0.5 {
                assert!(share <= 0.4, "{name} keeps {share}");
            }
            assert!(share < 1.0, "{name} at {ratio} keeps {share}");
        }
    }
}

#[test]
fn cuts_with_every_option_verify() {
    type Change = fn(&mut PruneOptions);
    let changes: [(&str, Change); 10] = [
        ("random", |options| options.score.criterion = CriterionOption::Random),
        ("global", |options| options.cut.scope = Scope::Global),
        ("dropped norm groups", |options| options.score.norm_groups = NormGroups::Drop),
        ("head dimensions", |options| options.score.attention = AttentionOption::Dims),
        ("heads and dimensions", |options| options.score.attention = AttentionOption::Both),
        ("no attention", |options| options.score.attention = AttentionOption::None),
        ("round to 8", |options| options.cut.round_to = 8),
        ("target MACs", |options| options.cut.target = Target::Macs(0.5)),
        ("target MACs, global", |options| {
            options.cut.target = Target::Macs(0.5);
            options.cut.scope = Scope::Global;
        }),
        ("target parameters", |options| options.cut.target = Target::Params(0.5)),
    ];
    for name in FIXTURES {
        for (what, change) in changes {
            let mut options = PruneOptions::by_magnitude(Target::Ratio(0.4));
            change(&mut options);
            let pruned = prune(analysed(name), &options);
            let report = pruned.report();
            assert!(report.passed, "{name}, {what}: {report:?}");
            match options.cut.target {
                Target::Macs(share) => assert!(pruned.cut.after.macs <= share * pruned.cut.before.macs, "{name}"),
                Target::Params(share) => {
                    assert!(
                        pruned.cut.after.parameters as f64 <= share * pruned.cut.before.parameters as f64,
                        "{name}"
                    );
                }
                Target::Ratio(_) => {}
            }
        }
    }
}

#[test]
fn keep_and_ratio_for_apply_to_their_groups() {
    let mut options = PruneOptions::by_magnitude(Target::Ratio(0.5));
    options.cut.keep = vec![regex::Regex::new("mid_block").unwrap()];
    options.cut.ratio_for = vec![(regex::Regex::new("time_embedding").unwrap(), 0.25)];
    let pruned = prune(analysed("ddpm_fashion16.onnx"), &options);
    assert!(pruned.report().passed);
    let of = |name: &str| {
        let groups = pruned.cut.plan.groups.iter();
        groups.filter(|group| group.members.iter().any(|member| member.tensor.contains(name))).collect::<Vec<_>>()
    };
    let kept = of("mid_block");
    assert!(!kept.is_empty() && kept.iter().all(|group| group.kept.len() == group.channels));
    let own = of("time_embedding.linear_1");
    assert!(!own.is_empty() && own.iter().any(|group| group.kept.len() * 4 == group.channels * 3), "{own:?}");
}

#[test]
fn a_plan_repeats_the_cut_and_another_file_is_refused() {
    for name in FIXTURES {
        let pruned = halved(name);
        let folder = tempfile::tempdir().unwrap();
        let plan_path = folder.path().join("cut.plan.json");
        pruned.cut.plan.write(&plan_path).unwrap();
        let plan = Plan::read(&plan_path).unwrap();
        assert_eq!(plan.tensors, pruned.cut.plan.tensors);
        let (_, again) =
            apply(pruned.analysis, &plan, &plan_path, onnx_diffprune::runtime::Runtime::open(None).ok()).unwrap();
        let path = folder.path().join("again.onnx");
        write(&pruned.analysis.model, &again.edits, &path).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&pruned.path).unwrap(), "{name} differs");

        let other = load(&pruned.path).unwrap();
        let error =
            apply(&analyse(&other).unwrap(), &plan, &plan_path, onnx_diffprune::runtime::Runtime::open(None).ok())
                .unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("another file"), "{error}");
    }
}

#[test]
fn an_independent_decoder_finds_the_sizes_of_the_plan_and_the_same_interface() {
    for name in FIXTURES {
        let pruned = halved(name);
        let (before, after) = (decoded(&fixture(name)), decoded(&pruned.path));
        assert_eq!(before.graph.input, after.graph.input, "{name}");
        assert_eq!(before.graph.output, after.graph.output, "{name}");
        assert_eq!(before.opset_import, after.opset_import, "{name}");
        let mut compared = 0;
        for plan in &pruned.cut.plan.tensors {
            let Some(tensor) = after.graph.initializer.iter().find(|tensor| tensor.name == plan.tensor) else {
                continue;
            };
            let is_only_form = pruned.cut.plan.tensors.iter().filter(|other| other.tensor == plan.tensor).count() == 1;
            let is_sliced = tensor.dims != plan.dims;
            if is_only_form && is_sliced {
                let sizes = plan
                    .dims
                    .iter()
                    .enumerate()
                    .map(|(axis, size)| plan.keep.get(&axis).map_or(*size, |kept| kept.len() as i64));
                assert_eq!(tensor.dims, sizes.collect::<Vec<_>>(), "{name}: {}", plan.tensor);
                compared += 1;
            }
        }
        assert!(compared > 10, "{name}: {compared}");
    }
}
