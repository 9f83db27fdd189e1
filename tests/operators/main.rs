//! Every operator between two layers, in every form that it has in the opsets. Channels are removed through it or kept,
//! as its rule states. The pruned network is verified, and the gradients with respect to its weights agree with the
//! loss.
#![allow(clippy::unwrap_used)]

mod around;
mod attention;
mod coupling;
mod decided;
mod elementwise;
mod fused;
mod gradients;
mod indexing;
mod layers;
mod lowering;
mod reducing;
mod sampling;
mod sequences;
mod shapes;
mod shaping;
mod sizes;

#[path = "../support/mod.rs"]
mod support;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::load::load;
use onnx_diffprune::plan::kept_axes;
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, verify};
use onnx_diffprune::write::write;

use around::Around;
use support::builder::Builder;
use support::files::save;
use support::fixtures::runtime;

/// The fate of the first layer's output channels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Some are removed.
    Removed,
    /// All are kept.
    Kept,
}

/// Builds a network with operators between two layers, checks the gradients, prunes, and verifies, for each of the
/// opsets.
fn check(
    name: &str,
    around: Around,
    opsets: &[i64],
    fate: Fate,
    build: impl Fn(&mut Builder, &str) -> (String, Option<i64>),
) {
    for opset in opsets {
        let what = format!("{name}, opset {opset}");
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pruned.onnx");
        let path = save(folder.path(), &around.network(*opset, &build));
        let model = load(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        let analysis = analyse(&model).unwrap_or_else(|error| panic!("{what}: {error}"));
        if gradients::survey(name, &what, &analysis) {
            continue;
        }
        gradients::compare(name, &what, &analysis);
        let cut = match cut(
            &analysis,
            &PruneOptions::by_magnitude(Target::Ratio(0.4)),
            onnx_diffprune::runtime::Runtime::open(None).ok(),
        ) {
            Ok(cut) => cut,
            Err(error) => {
                let is_whole = fate == Fate::Kept && error.to_string().contains("nothing can be pruned");
                assert!(is_whole, "{what}: {error}");
                continue;
            }
        };
        let first = cut.plan.tensors.iter().find(|tensor| tensor.tensor == "first");
        let axis = if around == Around::MatMul { 1 } else { 0 };
        let goes = first.is_some_and(|tensor| tensor.keep.contains_key(&axis));
        assert_eq!(goes, fate == Fate::Removed, "{what}: the channels of the first layer; {:?}", cut.warnings);
        write(&model, &cut.rewritten.edits, &out).unwrap_or_else(|error| panic!("{what}: {error}"));
        let kept = kept_axes(&cut.plan, &analysis, &out).unwrap();
        let report = verify(&analysis, &kept, &load(&out).unwrap(), runtime(), &VerifyOptions::default());
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.passed, "{what}: {report:?}");
    }
}

/// Every operator has a gradient that a network of these tests exercises, or is on the list of those that need none.
#[test]
fn every_gradient_is_checked() {
    let tests = [
        attention::ALL,
        decided::ALL,
        elementwise::ALL,
        fused::ALL,
        indexing::ALL,
        layers::ALL,
        reducing::ALL,
        sampling::ALL,
        sequences::ALL,
        shaping::ALL,
    ];
    gradients::check_coverage(&tests.concat());
}
