//! `--round-to`: the widths of pruned weights, as kernels use them, are multiples, including those of attention.

use onnx_diffprune::couple::options::{AttentionOption, NormGroups};
use onnx_diffprune::onnx::{ModelProto, attr_ints};
use onnx_diffprune::prune::{PruneOptions, Target};

use crate::support::builder::{Builder, model_of, value};
use crate::support::cuts::{Pruned, prune, prune_model};
use crate::support::fixtures::{FIXTURES, analysed};

fn options(multiple: usize) -> PruneOptions {
    let mut options = PruneOptions::by_magnitude(Target::Ratio(0.5));
    options.cut.round_to = multiple;
    options
}

/// Counts the pruned axes of layers' weights, and asserts that all widths are multiples.
fn rounded(pruned: &Pruned, multiple: usize) -> usize {
    let plan = &pruned.cut.plan;
    let members = plan.groups.iter().filter(|group| group.kept.len() < group.channels).flat_map(|group| &group.members);
    let mut axes = 0;
    for member in members.filter(|member| member.role != "parameter") {
        for tensor in plan.tensors.iter().filter(|tensor| tensor.tensor == member.tensor) {
            let Some(kept) = tensor.keep.get(&member.axis) else { continue };
            let (name, axis, dims, kept) = (&member.tensor, member.axis, &tensor.dims, kept.len());
            assert_eq!(kept % multiple, 0, "{name} {dims:?} keeps {kept} along axis {axis}");
            axes += 1;
        }
    }
    axes
}

#[test]
fn pruned_axes_of_every_fixture_are_multiples_and_attention_shrinks() {
    for name in FIXTURES {
        for multiple in [8, 32] {
            let pruned = prune(analysed(name), &options(multiple));
            assert!(rounded(&pruned, multiple) > 0, "{name} at {multiple}");
            // Exporters name the biases of queries, keys and values, but not always their weights.
            let attention = pruned.cut.plan.tensors.iter().filter(|tensor| tensor.tensor.contains("attn"));
            assert!(!name.starts_with("sd15") || attention.count() > 0, "{name} at {multiple}");
        }
    }
}

/// Builds attention over the pixels of a U-Net block, with eight heads of dimension `size`, after a norm of 32 groups.
fn attention(size: i64) -> ModelProto {
    let width = 8 * size;
    let mut b = Builder::with_opset(17, 9);
    let x = b.conv("x", 4, width, 3, 1);
    let y = b.group_norm(&x, width, 32);
    let (flat, back) = (b.ints(&[1, width, 16]), b.ints(&[1, width, 4, 4]));
    let y = b.op("Reshape", &[&y, &flat], &[]);
    let tokens = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1])]);
    let heads = b.ints(&[1, 16, 8, size]);
    let [q, k, v] = [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]].map(|perm| {
        let y = b.linear(&tokens, width, width);
        let y = b.op("Reshape", &[&y, &heads], &[]);
        b.op("Transpose", &[&y], &[attr_ints("perm", &perm)])
    });
    let scores = b.op("MatMul", &[&q, &k], &[]);
    let scores = b.op("Softmax", &[&scores], &[]);
    let y = b.op("MatMul", &[&scores, &v], &[]);
    let y = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1, 3])]);
    let joined = b.ints(&[1, 16, width]);
    let y = b.op("Reshape", &[&y, &joined], &[]);
    let y = b.linear(&y, width, width);
    let y = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1])]);
    let y = b.op("Reshape", &[&y, &back], &[]);
    let y = b.op("Add", &[&x, &y], &[]);
    let y = b.conv(&y, width, 4, 3, 1);
    b.graph.input = vec![value("x", &[1, 4, 4, 4])];
    b.graph.output = vec![value(&y, &[1, 4, 4, 4])];
    model_of(17, b.graph)
}

/// Returns the widths after the cut of the joined eight heads, and of the residual stream. Both are `width` before.
fn widths(pruned: &Pruned, width: usize) -> (usize, usize) {
    let plan = &pruned.cut.plan;
    let heads = plan.groups.iter().find(|group| group.channels == 8).unwrap().kept.len() * width / 8;
    let first = plan.tensors.iter().find(|tensor| tensor.tensor == "weight_0");
    (heads, first.map_or(width, |tensor| tensor.keep[&0].len()))
}

#[test]
fn widths_include_all_channels_of_heads_and_norm_groups() {
    // By the ratio three of eight heads are kept, which have 120 channels for a head dimension of 40. The 32 norm
    // groups lose 32 channels at a time.
    for (size, ratio, multiple, expected) in [
        (40, 0.6, 8, (120, 128)),
        (40, 0.6, 32, (160, 128)),
        (64, 0.6, 32, (192, 224)),
        (64, 0.6, 128, (256, 256)),
        (20, 0.5, 32, (160, 96)),
    ] {
        let mut options = options(multiple);
        options.cut.target = Target::Ratio(ratio);
        let pruned = prune_model(&attention(size), &options);
        assert!(pruned.report().passed, "{:?}", pruned.report());
        rounded(&pruned, multiple);
        assert_eq!(widths(&pruned, 8 * size as usize), expected, "heads of {size}, {ratio}, {multiple}");
    }
}

#[test]
fn whole_norm_groups_and_head_dimensions_are_rounded_by_axis_width() {
    let mut options = options(32);
    options.score.norm_groups = NormGroups::Drop;
    options.score.attention = AttentionOption::Dims;
    let pruned = prune_model(&attention(40), &options);
    assert!(pruned.report().passed, "{:?}", pruned.report());
    // Norm groups of 10: 16 of the 32 groups make 160. Head dimensions: 32 of 40, a multiple in every head.
    let heads = pruned.cut.plan.groups.iter().find(|group| group.channels == 40).unwrap();
    assert_eq!(heads.kept.len(), 32);
    let first = pruned.cut.plan.tensors.iter().find(|tensor| tensor.tensor == "weight_0").unwrap();
    assert_eq!(first.keep[&0].len(), 160);
}
