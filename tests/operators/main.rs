//! Every operator between two layers: channels go through it or stay as its rule says, in every form that the opsets
//! give it, what is left of the network verifies, and the gradients by its weights are those of the loss.
#![allow(clippy::unwrap_used)]

#[path = "operators/net.rs"]
mod net;

#[path = "operators/attention.rs"]
mod attention;

#[path = "operators/decided.rs"]
mod decided;

#[path = "operators/elementwise.rs"]
mod elementwise;

#[path = "operators/fused.rs"]
mod fused;

#[path = "operators/gradients.rs"]
mod gradients;

#[path = "operators/indexing.rs"]
mod indexing;

#[path = "operators/layers.rs"]
mod layers;

#[path = "operators/reducing.rs"]
mod reducing;

#[path = "operators/sampling.rs"]
mod sampling;

#[path = "operators/shaping.rs"]
mod shaping;

mod slopes;

use onnx_diffprune::load::load;
use onnx_diffprune::pipeline::{PruneOptions, Target, analyse, cut};
use onnx_diffprune::runtime::Runtime;
use onnx_diffprune::verify::{VerifyOptions, verify};
use onnx_diffprune::write::write;
use prost::Message;

use net::{Around, Net};

/// What becomes of the first layer's output channels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Some go.
    Go,
    /// All stay.
    Stay,
}

/// Puts operators between two layers, checks the gradients, prunes, and verifies, for each of the opsets.
fn check(
    name: &str,
    around: Around,
    opsets: &[i64],
    fate: Fate,
    build: impl Fn(&mut Net, &str) -> (String, Option<i64>),
) {
    for opset in opsets {
        let what = format!("{name}, opset {opset}");
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("net.onnx"), folder.path().join("pruned.onnx"));
        std::fs::write(&path, Net::around(around, *opset, &build).encode_to_vec()).unwrap();
        let model = load(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        let analysis = analyse(&model).unwrap_or_else(|error| panic!("{what}: {error}"));
        if gradients::survey(name, &what, &analysis) {
            continue;
        }
        gradients::compare(name, &what, &analysis);
        let cut = match cut(&analysis, &PruneOptions::new(Target::Ratio(0.4))) {
            Ok(cut) => cut,
            Err(error) => {
                let is_whole = fate == Fate::Stay && error.to_string().contains("nothing can be pruned");
                assert!(is_whole, "{what}: {error}");
                continue;
            }
        };
        let first = cut.plan.tensors.iter().find(|tensor| tensor.tensor == "first");
        let axis = if around == Around::MatMul { 1 } else { 0 };
        let goes = first.is_some_and(|tensor| tensor.keep.contains_key(&axis));
        assert_eq!(goes, fate == Fate::Go, "{what}: the channels of the first layer; {:?}", cut.warnings);
        write(&model, &cut.rewritten.edits, &out).unwrap_or_else(|error| panic!("{what}: {error}"));
        let kept = cut.plan.kept_axes(&analysis.graph, &out).unwrap();
        let runtime = Runtime::open(None).unwrap_or_else(|error| panic!("{error}\nhint: run `make venv` first"));
        let report = verify(&analysis, &kept, &load(&out).unwrap(), runtime, &VerifyOptions::default());
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.passed, "{what}: {report:?}");
    }
}

/// Every operator has a gradient that a network here exercises, or stands on the list of those that need none.
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
        shaping::ALL,
    ];
    gradients::check_coverage(&tests.concat());
}
