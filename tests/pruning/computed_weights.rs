//! Weights that the graph computes from constants: normalised and standardised kernels are computed once, and channels
//! are removed from the result.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, attr_int, attr_ints};
use onnx_diffprune::prune::apply::apply;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::write::write;

use crate::support::builder::{Builder, value};
use crate::support::cuts::{Pruned, prune, prune_model};
use crate::support::files::save;
use crate::support::fixtures::analysed_for_good;

/// Computes, from the name of a kernel `[out, in, k, k]`, the weight of the convolution, and returns its name.
pub(super) type Prepare = fn(&mut Builder, &str) -> String;

/// Divides every filter by its norm, as forced weight normalisation does.
pub(super) fn normalised(b: &mut Builder, w: &str) -> String {
    let (axes, epsilon) = (b.ints(&[1, 2, 3]), b.float(1e-4));
    let norm = b.op("ReduceL2", &[w, &axes], &[attr_int("keepdims", 1)]);
    let norm = b.op("Add", &[&norm, &epsilon], &[]);
    b.op("Div", &[w, &norm], &[])
}

/// Scales every filter to mean zero and variance one, as weight standardisation does.
fn standardised(b: &mut Builder, w: &str) -> String {
    let (axes, epsilon) = (b.ints(&[1, 2, 3]), b.float(1e-5));
    let mean = b.op("ReduceMean", &[w, &axes], &[attr_int("keepdims", 1)]);
    let centred = b.op("Sub", &[w, &mean], &[]);
    let squares = b.op("Mul", &[&centred, &centred], &[]);
    let variance = b.op("ReduceMean", &[&squares, &axes], &[attr_int("keepdims", 1)]);
    let variance = b.op("Add", &[&variance, &epsilon], &[]);
    let deviation = b.op("Sqrt", &[&variance], &[]);
    let inverse = b.op("Reciprocal", &[&deviation], &[]);
    b.op("Mul", &[&centred, &inverse], &[])
}

/// Only scales and moves the kernel: there is nothing to fold.
fn scaled(b: &mut Builder, w: &str) -> String {
    let half = b.float(0.5);
    let y = b.op("Transpose", &[w], &[attr_ints("perm", &[0, 1, 3, 2])]);
    b.op("Mul", &[&y, &half], &[])
}

fn conv(b: &mut Builder, x: &str, from: i64, to: i64, prepare: Prepare) -> String {
    let w = b.layer_weight(&[to, from, 3, 3], from * 9);
    let (w, bias) = (prepare(b, &w), b.bias(to));
    b.op("Conv", &[x, &w, &bias], &[attr_ints("pads", &[1; 4])])
}

/// Builds a chain like that of a U-Net: down, up, and a concatenated skip connection.
pub(super) fn chain(prepare: Prepare) -> ModelProto {
    let mut b = Builder::new(7);
    let first = conv(&mut b, "x", 3, 16, prepare);
    let y = b.silu(&first);
    let y = conv(&mut b, &y, 16, 32, prepare);
    let y = b.silu(&y);
    let y = conv(&mut b, &y, 32, 24, prepare);
    let y = b.op("Concat", &[&y, &first], &[attr_int("axis", 1)]);
    let y = conv(&mut b, &y, 40, 16, prepare);
    let y = b.silu(&y);
    let y = conv(&mut b, &y, 16, 3, prepare);
    b.finish(&[2, 3, 8, 8], &y, &[2, 3, 8, 8])
}

fn at(ratio: f64) -> PruneOptions {
    PruneOptions::by_magnitude(Target::Ratio(ratio))
}

/// Prunes and verifies. Returns the cut and the share of parameters that is left.
fn share(model: &ModelProto, ratio: f64) -> (Pruned, f64) {
    let pruned = prune_model(model, &at(ratio));
    let report = pruned.report();
    assert!(report.passed && !report.runs.is_empty(), "{report:?}");
    let share = pruned.share();
    (pruned, share)
}

/// Counts the elements of the floating point initializers of a file.
fn float_elements(path: &Path) -> u64 {
    let model = load(path).unwrap();
    let floats = model.graph().initializer.iter().filter(|tensor| tensor.data_type == 1);
    floats.map(|tensor| tensor.dims.iter().product::<i64>() as u64).sum()
}

#[test]
fn computed_kernels_are_pruned_like_any_other() {
    for (name, prepare, mixing) in
        [("normalised", normalised as Prepare, "ReduceL2"), ("standardised", standardised as Prepare, "ReduceMean")]
    {
        let (pruned, share) = share(&chain(prepare), 0.5);
        assert!(share <= 0.4, "{name}: {share} of the parameters are left");
        let after = load(&pruned.path).unwrap();
        assert!(after.graph().node.iter().all(|node| node.op_type != mixing), "{name}");
        assert_eq!(float_elements(&pruned.path), pruned.cut.after.parameters, "{name}");
        // The plan names the computed weights of the convolutions.
        let is_computed = |tensor: &str| pruned.analysis.model.graph().node.iter().any(|node| node.output[0] == tensor);
        assert_eq!(pruned.cut.plan.tensors.iter().filter(|plan| is_computed(&plan.tensor)).count(), 5, "{name}");
    }
}

#[test]
fn parameters_decrease_with_the_ratio() {
    let mut last = 1.0;
    for ratio in [0.1, 0.3, 0.7] {
        let (_, share) = share(&chain(standardised), ratio);
        assert!(share < last, "{share} at {ratio}");
        last = share;
    }
}

#[test]
fn a_cut_of_computed_weights_is_repeated_from_its_plan() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), &chain(normalised));
    let pruned = prune(analysed_for_good(load(&path).unwrap()), &at(0.5));
    let model = load(&path).unwrap();
    let analysis = analyse(&model).unwrap();
    let again =
        apply(&analysis, &pruned.cut.plan, Path::new("plan.json"), onnx_diffprune::runtime::Runtime::open(None).ok())
            .unwrap();
    let out = folder.path().join("again.onnx");
    write(&model, &again.1.edits, &out).unwrap();
    assert_eq!(std::fs::read(out).unwrap(), std::fs::read(&pruned.path).unwrap());
}

#[test]
fn a_kernel_that_is_kept_by_name_is_still_computed_in_the_graph() {
    let mut options = at(0.5);
    // The output channels of the first kernel and all channels tied to them are kept.
    options.cut.keep = vec![regex::Regex::new("^weight_0$").unwrap()];
    let pruned = prune_model(&chain(normalised), &options);
    let report = pruned.report();
    assert!(report.passed, "{report:?}");
    let after = load(&pruned.path).unwrap();
    let norms: Vec<&str> = after
        .graph()
        .node
        .iter()
        .filter(|node| node.op_type == "ReduceL2")
        .map(|node| node.input[0].as_str())
        .collect();
    assert_eq!(norms, ["weight_0"]);
}

#[test]
fn a_kernel_that_is_also_used_directly_is_not_stored_twice() {
    let mut b = Builder::new(3);
    let w = b.layer_weight(&[16, 16, 3, 3], 144);
    let scaled = normalised(&mut b, &w);
    let x = b.conv("x", 3, 16, 3, 1);
    let x = b.silu(&x);
    let pads = [attr_ints("pads", &[1; 4])];
    let (y, z) = (b.op("Conv", &[&x, &w], &pads), b.op("Conv", &[&x, &scaled], &pads));
    let y = b.op("Add", &[&y, &z], &[]);
    let y = b.silu(&y);
    let y = b.conv(&y, 16, 3, 3, 1);
    let (pruned, share) = share(&b.finish(&[1, 3, 8, 8], &y, &[1, 3, 8, 8]), 0.5);
    assert!(share <= 0.4, "{share}");
    // The norms are constants now, one for every kept filter.
    let after = load(&pruned.path).unwrap();
    assert!(after.graph().node.iter().all(|node| node.op_type != "ReduceL2"));
    assert!(after.graph().node.iter().any(|node| node.op_type == "Div"));
}

#[test]
fn parts_of_a_computed_split_become_separate_constants() {
    // Shift, scale and gate of tokens that depend on no input. The gate has no consumer, or is an output of the
    // network.
    for is_held in [false, true] {
        let mut b = Builder::new(3);
        let (token, w) = (b.layer_weight(&[1, 32], 1), b.layer_weight(&[32, 96], 32));
        let y = b.op("MatMul", &[&token, &w], &[]);
        let sizes = b.ints(&[32, 32, 32]);
        let parts = b.ops("Split", &[&y, &sizes], &[attr_int("axis", -1)], 3);
        let y = b.linear("x", 8, 32);
        let y = b.op("Mul", &[&y, &parts[1]], &[]);
        let y = b.op("Add", &[&y, &parts[0]], &[]);
        let y = b.silu(&y);
        let y = b.linear(&y, 32, 8);
        let mut model = b.finish(&[4, 8], &y, &[4, 8]);
        if is_held {
            model.graph.as_mut().unwrap().output.push(value(&parts[2], &[1, 32]));
        }
        let (pruned, _) = share(&model, 0.5);
        let after = load(&pruned.path).unwrap();
        let has_split = after.graph().node.iter().any(|node| node.op_type == "Split");
        assert_eq!(has_split, is_held);
        let group = pruned.cut.plan.groups.iter().find(|group| group.channels == 32 && group.kept.len() == 16);
        assert!(group.is_some(), "{:?}", pruned.cut.plan.groups);
    }
}

#[test]
fn a_product_of_thin_factors_is_not_folded() {
    let mut b = Builder::new(5);
    let (down, up) = (b.layer_weight(&[64, 4], 64), b.layer_weight(&[4, 64], 4));
    let w = b.op("MatMul", &[&down, &up], &[]);
    let x = b.linear("x", 8, 64);
    let y = b.op("MatMul", &[&x, &w], &[]);
    let y = b.silu(&y);
    let y = b.linear(&y, 64, 8);
    let (pruned, share) = share(&b.finish(&[2, 8], &y, &[2, 8]), 0.5);
    assert!(share < 0.6, "{share}");
    assert_eq!(load(&pruned.path).unwrap().graph().node.iter().filter(|node| node.op_type == "MatMul").count(), 4);
}

#[test]
fn long_chains_of_large_values_are_searched_quickly() {
    let mut b = Builder::new(5);
    let (w, axes, shape) = (b.layer_weight(&[16, 3, 1, 1], 3), b.ints(&[1]), b.ints(&[16, 48, 3, 3]));
    let norm = b.op("ReduceL2", &[&w, &axes], &[]);
    let mut large = b.op("Expand", &[&norm, &shape], &[]);
    // Every value has two paths to its source, and has more elements than the source.
    for _ in 0..64 {
        large = b.op("Add", &[&large, &large], &[]);
    }
    let x = b.conv("x", 3, 48, 1, 1);
    let y = b.op("Conv", &[&x, &large], &[]);
    let folder = tempfile::tempdir().unwrap();
    let model = load(&save(folder.path(), &b.finish(&[1, 3, 8, 8], &y, &[1, 16, 6, 6]))).unwrap();
    let analysis = analyse(&model).unwrap();
    let graph = &analysis.graph;
    assert!(
        analysis.fold.contains(graph.value(&norm).unwrap()) && !analysis.fold.contains(graph.value(&large).unwrap())
    );
}

#[test]
fn random_numbers_are_never_folded() {
    let mut b = Builder::new(5);
    let w = b.layer_weight(&[16, 3, 3, 3], 27);
    let noise = b.op("RandomNormalLike", &[&w], &[]);
    let w = b.op("Add", &[&w, &noise], &[]);
    let w = normalised(&mut b, &w);
    let y = b.op("Conv", &["x", &w], &[attr_ints("pads", &[1; 4])]);
    let y = b.conv(&y, 16, 3, 3, 1);
    let folder = tempfile::tempdir().unwrap();
    let model = load(&save(folder.path(), &b.finish(&[1, 3, 8, 8], &y, &[1, 3, 8, 8]))).unwrap();
    assert!(analyse(&model).unwrap().fold.is_empty());
}

#[test]
fn only_networks_that_compute_weights_need_onnx_runtime_for_a_dry_run() {
    let run = |prepare: Prepare| {
        let folder = tempfile::tempdir().unwrap();
        Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"))
            .arg(save(folder.path(), &chain(prepare)))
            .args(["--ratio", "0.5", "--criterion", "magnitude", "--dry-run", "--no-verify", "--onnxruntime"])
            .arg(folder.path().join("nothing.so"))
            .output()
            .unwrap()
    };
    assert_eq!(run(scaled).status.code(), Some(0));
    let refused = run(normalised);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("nothing.so"));
}

#[test]
fn folded_values_are_the_weights_of_the_convolutions() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&save(folder.path(), &chain(standardised))).unwrap();
    let analysis = analyse(&model).unwrap();
    let graph = &analysis.graph;
    let read: BTreeSet<usize> =
        graph.nodes.iter().filter(|node| node.proto.op_type == "Conv").filter_map(|node| node.input(1)).collect();
    assert_eq!(read.len(), 5);
    assert!(read.iter().all(|value| analysis.fold.contains(*value)));
    assert_eq!((0..graph.values.len()).filter(|value| analysis.fold.contains(*value)).count(), 5);
}

#[test]
fn a_table_of_frequencies_is_not_a_prunable_weight() {
    let mut b = Builder::new(5);
    let table = b.weight_around(&[1, 12], 1.0, 0.9);
    let angles = b.op("Mul", &["x", &table], &[]);
    let waves = b.op("Sin", &[&angles], &[]);
    let hidden = b.linear(&waves, 12, 10);
    let scale = b.weight_around(&[10], 1.0, 0.5);
    let hidden = b.op("Mul", &[&hidden, &scale], &[]);
    let again = b.op("Sin", &[&hidden], &[]);
    let y = b.linear(&again, 10, 3);
    let folder = tempfile::tempdir().unwrap();
    let model = load(&save(folder.path(), &b.finish(&[4, 1], &y, &[4, 3]))).unwrap();
    let analysis = analyse(&model).unwrap();
    let weights: Vec<&str> =
        analysis.prunable_weights().into_iter().map(|value| analysis.graph.values[value].name.as_str()).collect();
    assert!(!weights.contains(&table.as_str()), "{weights:?}");
    assert!(weights.contains(&scale.as_str()), "the input of this sine may be learned: {weights:?}");
    let groups = &analysis.groupings(Default::default(), Default::default())[0].groups;
    let is_member = |group: &onnx_diffprune::couple::group::ChannelGroup| {
        let mut values = group.members.iter().map(|member| analysis.coupling.uses[member.weight].value);
        values.any(|value| analysis.graph.values[value].name == table)
    };
    assert!(groups.iter().any(is_member), "the channels of the table should be prunable with others");
}
