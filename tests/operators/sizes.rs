//! Symbolic sizes of inputs: a weight can fix a size, an axis combined with another has its size, and `--size` may
//! choose another only if the network can run at it.

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::graph::sizes::{Sizes, sizes_for};
use onnx_diffprune::inputs::size_variants;
use onnx_diffprune::load::from_bytes;
use onnx_diffprune::onnx::{ModelProto, attr_int, attr_ints, attr_string};
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;

use crate::support::builder::{Builder, node, value_of};
use crate::support::cuts::prune_model;
use onnx_diffprune::onnx::ValueInfoProto;

/// Builds a float32 graph input.
fn input(name: &str, sizes: &[&str]) -> ValueInfoProto {
    value_of(name, 1, Some(sizes))
}

/// Returns the model whose output is the named value.
fn finish(mut n: Builder, inputs: Vec<ValueInfoProto>, output: &str) -> ModelProto {
    n.graph.node.push(node("last", "Identity", &[output], &["y"]));
    n.graph.input = inputs;
    n.graph.output = vec![value_of("y", 1, None)];
    onnx_diffprune::onnx::ModelProto {
        ir_version: 8,
        opset_import: vec![onnx_diffprune::onnx::OperatorSetIdProto { domain: String::new(), version: n.opset }],
        graph: Some(n.graph),
        ..ModelProto::default()
    }
}

fn analysed(model: &ModelProto) -> Result<Analysis, onnx_diffprune::error::Error> {
    analyse(&from_bytes("net.onnx".as_ref(), model.encode_to_vec().into())?)
}

/// Builds two convolutions after the nodes of `build`, which return `from` channels.
fn with_convolutions(inputs: Vec<ValueInfoProto>, from: i64, build: impl FnOnce(&mut Builder) -> String) -> ModelProto {
    let mut n = Builder::new(3);
    let h = build(&mut n);
    let h = n.conv(&h, from, 8, 1, 1);
    let h = n.silu(&h);
    let y = n.conv(&h, 8, 4, 1, 1);
    finish(n, inputs, &y)
}

const SAMPLE: [&str; 4] = ["batch", "channels", "height", "width"];

/// Asserts that the symbol `channels` is fixed, and that the network can be pruned and verified without any `--size`.
fn check_fixed(what: &str, model: &ModelProto, expected: i64) {
    let analysis = analysed(model).unwrap_or_else(|error| panic!("{what}: {error}"));
    let fixed: Vec<_> = analysis.facts.fixed.iter().map(|(name, by)| (name.as_str(), by.size)).collect();
    assert_eq!(fixed, [("channels", expected)], "{what}");
    assert_eq!(sizes_for(&analysis.facts, &Sizes::new())["channels"], expected, "{what}");
    assert!(
        size_variants(&analysis, &Sizes::new(), &Sizes::new())
            .iter()
            .all(|sizes| sizes.get("channels").is_none_or(|c| *c == expected))
    );
    let pruned = prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    assert!(pruned.share() < 0.8, "{what}: {}", pruned.share());
    let report = pruned.report();
    assert!(report.passed, "{what}: {report:?}");
}

#[test]
fn the_first_weight_along_an_axis_fixes_its_size() {
    let sample = || vec![input("x", &SAMPLE)];
    check_fixed("Conv", &with_convolutions(sample(), 4, |_| "x".to_owned()), 4);
    let elementwise = |n: &mut Builder| {
        let (scale, shift) = (n.float(0.5), n.float(1.0));
        let y = n.op("Mul", &["x", &scale], &[]);
        n.op("Add", &[&y, &shift], &[])
    };
    check_fixed("elementwise", &with_convolutions(sample(), 4, elementwise), 4);
    let mask = input("mask", &["batch", "5", "height", "width"]);
    let joined = |n: &mut Builder| n.op("Concat", &["x", "mask"], &[attr_int("axis", 1)]);
    check_fixed("Concat", &with_convolutions(vec![input("x", &SAMPLE), mask], 9, joined), 4);
    let twice = |n: &mut Builder| n.op("Concat", &["x", "x"], &[attr_int("axis", 1)]);
    check_fixed("Concat with itself", &with_convolutions(sample(), 8, twice), 4);
    let halves = |n: &mut Builder| {
        let parts = n.ops("Split", &["x"], &[attr_int("axis", 1), attr_int("num_outputs", 2)], 2);
        n.op("Add", &[&parts[0], &parts[1]], &[])
    };
    check_fixed("Split", &with_convolutions(sample(), 4, halves), 8);
    let deep = |n: &mut Builder| n.op("SpaceToDepth", &["x"], &[attr_int("blocksize", 2)]);
    check_fixed("SpaceToDepth", &with_convolutions(sample(), 16, deep), 4);
    let padded = |n: &mut Builder| {
        let pads = n.ints(&[0, 1, 0, 0, 0, 0, 0, 0]);
        n.op("Pad", &["x", &pads], &[attr_string("mode", "constant")])
    };
    check_fixed("Pad", &with_convolutions(sample(), 5, padded), 4);
    // Blocks of pixels as channels, by Reshape and Transpose with sizes that the graph computes.
    let blocks = |n: &mut Builder| {
        let shape = n.op("Shape", &["x"], &[]);
        let (two, four) = (n.ints(&[2]), n.ints(&[4]));
        let size = |n: &mut Builder, at: i64| {
            let at = n.ints(&[at]);
            n.op("Gather", &[&shape, &at], &[])
        };
        let (b, c, h, w) = (size(n, 0), size(n, 1), size(n, 2), size(n, 3));
        let (h, w) = (n.op("Div", &[&h, &two], &[]), n.op("Div", &[&w, &two], &[]));
        let to = n.op("Concat", &[&b, &c, &h, &two, &w, &two], &[attr_int("axis", 0)]);
        let y = n.op("Reshape", &["x", &to], &[]);
        let y = n.op("Transpose", &[&y], &[attr_ints("perm", &[0, 1, 3, 5, 2, 4])]);
        let deep = n.op("Mul", &[&c, &four], &[]);
        let to = n.op("Concat", &[&b, &deep, &h, &w], &[attr_int("axis", 0)]);
        n.op("Reshape", &[&y, &to], &[])
    };
    check_fixed("Reshape", &with_convolutions(sample(), 16, blocks), 4);
}

/// Matrix products fix the last axis. Norms and scales fix the axis of their channels.
#[test]
fn every_kind_of_weight_fixes_an_axis() {
    let tokens = || vec![input("x", &["batch", "seq", "channels"])];
    let network = |build: &dyn Fn(&mut Builder) -> String| {
        let mut n = Builder::new(5);
        let h = build(&mut n);
        let h = n.linear(&h, 8, 6);
        let y = n.linear(&h, 6, 4);
        finish(n, tokens(), &y)
    };
    check_fixed("MatMul", &network(&|_| "x".to_owned()), 8);
    check_fixed(
        "scale",
        &network(&|n| {
            let scale = n.weight(&[8]);
            let y = n.op("Mul", &["x", &scale], &[]);
            let (w, axis) = (n.layer_weight(&[8, 8], 8), n.ints(&[0, 0, 8]));
            let y = n.op("Reshape", &[&y, &axis], &[]);
            n.op("MatMul", &[&y, &w], &[])
        }),
        8,
    );
    check_fixed(
        "Gemm of rows",
        &network(&|n| {
            let rows = n.ints(&[-1, 8]);
            let y = n.op("Reshape", &["x", &rows], &[]);
            let (w, b) = (n.layer_weight(&[8, 8], 8), n.bias(8));
            let y = n.op("Gemm", &[&y, &w, &b], &[]);
            let whole = n.ints(&[1, -1, 8]);
            n.op("Reshape", &[&y, &whole], &[])
        }),
        8,
    );
    check_fixed(
        "Einsum",
        &network(&|n| {
            let w = n.layer_weight(&[8, 8], 8);
            n.op("Einsum", &["x", &w], &[attr_string("equation", "bsd,de->bse")])
        }),
        8,
    );
    let mut n = Builder::new(6);
    let (w, b) = (n.layer_weight(&[6, 8], 8), n.bias(6));
    let h = n.op("Gemm", &["x", &w, &b], &[attr_int("transB", 1)]);
    let y = n.linear(&h, 6, 4);
    check_fixed("Gemm", &finish(n, vec![input("x", &["batch", "channels"])], &y), 8);
}

#[test]
fn slices_bound_the_size_of_an_axis() {
    let model = with_convolutions(vec![input("x", &["batch", "c", "height", "width"])], 4, |n| {
        let (start, end, axis) = (n.ints(&[0]), n.ints(&[4]), n.ints(&[1]));
        n.op("Slice", &["x", &start, &end, &axis], &[])
    });
    let analysis = analysed(&model).unwrap();
    assert_eq!(sizes_for(&analysis.facts, &Sizes::new())["c"], 4);
    assert_eq!(sizes_for(&analysis.facts, &[("c".to_owned(), 9)].into())["c"], 9);
    let pruned = prune_model(&model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    assert!(pruned.report().passed, "{:?}", pruned.report());
    // The other part of an axis that slices divide is fixed by a weight.
    let model = with_convolutions(vec![input("x", &SAMPLE)], 5, |n| {
        let (start, end, axis) = (n.ints(&[4]), n.ints(&[i64::MAX]), n.ints(&[1]));
        n.op("Slice", &["x", &start, &end, &axis], &[])
    });
    check_fixed("Slice", &model, 9);
}

#[test]
fn contradicting_sizes_are_refused_with_both_values() {
    let mut n = Builder::new(4);
    let (a, b) = (n.conv("x", 4, 8, 1, 1), n.conv("x", 5, 8, 1, 1));
    let y = n.op("Add", &[&a, &b], &[]);
    let error = analysed(&finish(n, vec![input("x", &SAMPLE)], &y)).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("expected 5 input channels") && message.contains("found 4"), "{message}");
    assert!(format!("{error:?}").contains("channels = 4"), "{error:?}");
}

/// Builds a network with a time embedding, whose time input has the given axis.
fn with_time(sample: &[&str], time: &[&str], expands: bool) -> ModelProto {
    let mut n = Builder::new(9);
    let mut t = "t".to_owned();
    if expands {
        let shape = n.op("Shape", &["x"], &[]);
        let first = n.ints(&[0]);
        let batch = n.op("Gather", &[&shape, &first], &[]);
        t = n.op("Expand", &[&t, &batch], &[]);
    }
    let column = n.ints(&[1]);
    let t = n.op("Unsqueeze", &[&t, &column], &[]);
    let t = n.linear(&t, 1, 8);
    let places = n.ints(&[2, 3]);
    let t = n.op("Unsqueeze", &[&t, &places], &[]);
    let h = n.conv("x", 4, 8, 1, 1);
    let h = n.op("Add", &[&h, &t], &[]);
    let h = n.silu(&h);
    let y = n.conv(&h, 8, 4, 1, 1);
    finish(n, vec![input("x", sample), input("t", time)], &y)
}

#[test]
fn an_independent_time_axis_has_the_size_of_the_batch() {
    let sizes = |model: &ModelProto| -> Vec<(i64, i64)> {
        let analysis = analysed(model).unwrap();
        let of = |sizes: &Sizes| (sizes.get("b").copied().unwrap_or(1), sizes["step"]);
        let counted = of(&sizes_for(&analysis.facts, &Sizes::new()));
        let variants = size_variants(&analysis, &Sizes::new(), &Sizes::new());
        let pruned = prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
        assert!(pruned.report().passed, "{:?}", pruned.report());
        [counted].into_iter().chain(variants.iter().take(2).map(of)).collect()
    };
    for expands in [false, true] {
        let symbolic = with_time(&["b", "4", "h", "w"], &["step"], expands);
        assert_eq!(sizes(&symbolic), [(1, 1), (1, 1), (2, 2)], "expanded: {expands}");
        // With a batch of one, two timesteps would turn one image into two, or fail.
        let fixed = with_time(&["1", "4", "h", "w"], &["step"], expands);
        assert!(sizes(&fixed).iter().all(|sizes| *sizes == (1, 1)), "expanded: {expands}");
    }
}

#[test]
fn given_sizes_also_set_those_tied_to_them() {
    let analysis = analysed(&with_time(&["b", "4", "h", "w"], &["step"], false)).unwrap();
    let sizes = |given: &[(&str, i64)]| {
        let given = given.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        let sizes = sizes_for(&analysis.facts, &given);
        (sizes["b"], sizes["step"])
    };
    assert_eq!(sizes(&[("b", 5)]), (5, 5));
    assert_eq!(sizes(&[("step", 5)]), (5, 5));
    assert_eq!(sizes(&[("step", 1), ("b", 5)]), (5, 1));
}
