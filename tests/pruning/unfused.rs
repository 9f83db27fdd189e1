//! Kernels of ONNX Runtime that support some sizes only: cuts keep to these sizes, or write the node in standard
//! operators.

use onnx_diffprune::onnx::{ModelProto, NodeProto, TensorProto, attr_int, attr_ints};
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;

use crate::support::builder::{Builder, model_of, value};
use crate::support::cuts::{Pruned, prune_model};
use crate::support::files::save;

/// Builds a network from `x [1, 4, 8]`, or `[1, 4, 8, 8]` for images, to the value of `build`.
fn network(is_image: bool, output: &[i64], build: impl FnOnce(&mut Builder) -> String) -> ModelProto {
    let mut b = Builder::with_opset(17, 3);
    let y = build(&mut b);
    b.graph.input = vec![value("x", if is_image { &[1, 4, 8, 8] } else { &[1, 4, 8] })];
    b.graph.output = vec![value(&y, output)];
    model_of(17, b.graph)
}

/// Builds a gated layer whose halves have `half` channels.
fn gated(half: i64) -> ModelProto {
    network(false, &[1, 4, 8], |b| {
        let (w, bias) = (b.layer_weight(&[8, 2 * half], 8), b.bias(2 * half));
        let y = b.op("MatMul", &["x", &w], &[]);
        let y = b.fused("BiasSplitGelu", &[&y, &bias], &[], 1).remove(0);
        b.linear(&y, half, 8)
    })
}

/// Builds two layers whose sum has `channels`.
fn summed(channels: i64) -> ModelProto {
    network(false, &[1, 4, 8], |b| {
        let (w, bias) = (b.layer_weight(&[8, channels], 8), b.bias(channels));
        let first = b.op("MatMul", &["x", &w], &[]);
        let second = b.linear("x", 8, channels);
        let y = b.fused("BiasAdd", &[&first, &bias, &second], &[], 1).remove(0);
        b.linear(&y, channels, 8)
    })
}

/// Builds a norm of eight groups, channels last, between two convolutions. With `skips`, an addition is fused into the
/// norm.
fn normed(channels: i64, skips: bool) -> ModelProto {
    network(true, &[1, 4, 8, 8], |b| {
        let y = b.conv("x", 4, channels, 3, 1);
        let y = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 3, 1])]);
        let (scale, bias) = (b.weight_around(&[channels], 1.0, 0.5), b.bias(channels));
        let attributes = [attr_int("groups", 8), attr_int("activation", 1)];
        let y = if skips {
            let (skip, shift) = (b.op("Sigmoid", &[&y], &[]), b.bias(channels));
            let outputs = b.fused("SkipGroupNorm", &[&y, &scale, &bias, &skip, &shift], &attributes, 2);
            b.op("Add", &[&outputs[0], &outputs[1]], &[])
        } else {
            b.fused("GroupNorm", &[&y, &scale, &bias], &attributes, 1).remove(0)
        };
        let y = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 3, 1, 2])]);
        b.conv(&y, channels, 4, 3, 1)
    })
}

fn cut(model: &ModelProto, ratio: f64) -> Pruned {
    let pruned = prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(ratio)));
    assert!(pruned.report().passed, "{:?}", pruned.report());
    pruned
}

fn kept(pruned: &Pruned) -> usize {
    pruned.cut.plan.groups.iter().find(|group| group.reason.is_none()).map(|group| group.kept.len()).unwrap()
}

/// Returns whether the written file still has a fused node, and asserts that the warnings agree.
fn is_fused(pruned: &Pruned) -> bool {
    let written = ModelProto::decode(&*std::fs::read(&pruned.path).unwrap()).unwrap();
    let fused = written.graph.unwrap().node.iter().any(|node| node.domain == "com.microsoft");
    assert_eq!(pruned.cut.rewritten.unfused.is_empty(), fused);
    assert_eq!(pruned.cut.warnings.iter().any(|warning| warning.contains("standard operators")), !fused);
    fused
}

#[test]
fn gates_and_sums_stay_fused_at_sizes_that_their_kernels_support() {
    for (model, ratio, left, fused) in [
        (gated(2560), 0.5, 1280, true),
        (gated(2560), 0.25, 1920, false),
        // No kernel supports the size of the original either.
        (gated(64), 0.5, 32, true),
        (summed(640), 0.5, 320, true),
        (summed(640), 0.25, 480, false),
    ] {
        let pruned = cut(&model, ratio);
        assert_eq!((kept(&pruned), is_fused(&pruned)), (left, fused), "{ratio}");
    }
    let pruned = cut(&gated(2560), 0.25);
    let [unfused] = pruned.cut.rewritten.unfused.as_slice() else { panic!("expected one node") };
    assert_eq!((unfused.node.as_str(), unfused.operator.as_str()), ("BiasSplitGelu_1", "com.microsoft.BiasSplitGelu"));
}

#[test]
fn norm_groups_keep_an_even_number_of_channels_or_are_unfused() {
    for skips in [false, true] {
        // Five of ten channels would be an odd number.
        let pruned = cut(&normed(80, skips), 0.5);
        assert_eq!((kept(&pruned), is_fused(&pruned)), (48, true));
        // Only one of two channels can be kept.
        let pruned = cut(&normed(16, skips), 0.5);
        assert_eq!((kept(&pruned), is_fused(&pruned)), (8, false));
    }
}

#[test]
fn standard_operators_that_differ_from_the_fused_node_are_detected() {
    let pruned = cut(&normed(16, false), 0.5);
    let written = ModelProto::decode(&*std::fs::read(&pruned.path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let differs = |change: &dyn Fn(&mut ModelProto)| {
        let mut wrong = written.clone();
        change(&mut wrong);
        assert_ne!(wrong, written);
        let report = pruned.verify(&save(folder.path(), &wrong));
        assert!(!report.passed, "{report:?}");
    };
    let node = |model: &mut ModelProto, op: &str, change: &dyn Fn(&mut NodeProto)| {
        change(model.graph.as_mut().unwrap().node.iter_mut().find(|node| node.op_type == op).unwrap());
    };
    differs(&|model| node(model, "InstanceNormalization", &|node| node.attribute[0].f = Some(1e-3)));
    differs(&|model| node(model, "Sigmoid", &|node| node.op_type = "Tanh".to_owned()));
    differs(&|model| {
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let ones = tensors.iter_mut().find(|tensor| tensor.name.contains("/standard/") && tensor.dims == [8]).unwrap();
        *ones = TensorProto::of_floats(&ones.name, &[1.5; 8], &[8]);
    });
}
