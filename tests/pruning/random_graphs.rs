//! Random graphs of many operators: every cut is verified, and inputs and outputs keep their shapes.

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::couple::options::NormGroups;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, attr_float, attr_int, attr_ints, attr_string};
use onnx_diffprune::plan::kept_axes;
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{CriterionOption, PruneOptions, ScoreOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, verify};
use onnx_diffprune::write::write;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::support::builder::Builder;
use crate::support::files::save;
use crate::support::fixtures::runtime;

/// Number of random graphs.
const CASES: u32 = 96;

/// Height and width of the input.
const SIZE: i64 = 8;

/// An image in the graph under construction.
#[derive(Clone)]
struct Image {
    name: String,
    channels: i64,
    size: i64,
}

/// Adds the step with this number.
fn step(b: &mut Builder, kind: u8, x: &Image, earlier: &[Image]) -> Image {
    let (channels, size) = (x.channels, x.size);
    let same = |name: String| Image { name, channels, size };
    match kind {
        0 => Image { name: b.conv(&x.name, channels, 24, 3, 1), channels: 24, size },
        1 => Image { name: b.conv(&x.name, channels, 16, 1, 1), channels: 16, size },
        2 => same(b.conv(&x.name, channels, channels, 3, 4)),
        3 => same(b.conv(&x.name, channels, channels, 3, channels)),
        4 => {
            let Some(other) = earlier.iter().find(|other| other.channels == channels && other.size == size) else {
                return same(b.silu(&x.name));
            };
            same(b.op("Add", &[&x.name, &other.name], &[]))
        }
        5 => {
            let Some(other) = earlier.iter().find(|other| other.size == size) else {
                return same(b.silu(&x.name));
            };
            let name = b.op("Concat", &[&x.name, &other.name], &[attr_int("axis", 1)]);
            let joined = channels + other.channels;
            Image { name: b.conv(&name, joined, 16, 3, 1), channels: 16, size }
        }
        6 => {
            let y = b.conv(&x.name, channels, 2 * channels, 1, 1);
            let sizes = b.ints(&[channels, channels]);
            let halves = b.ops("Split", &[&y, &sizes], &[attr_int("axis", 1)], 2);
            let gate = b.op("Sigmoid", &[&halves[1]], &[]);
            same(b.op("Mul", &[&halves[0], &gate], &[]))
        }
        7 => {
            let y = b.conv(&x.name, channels, 2 * channels, 3, 1);
            let (zero, middle, end, axis) = (b.ints(&[0]), b.ints(&[channels]), b.ints(&[i64::MAX]), b.ints(&[1]));
            let first = b.op("Slice", &[&y, &zero, &middle, &axis], &[]);
            let second = b.op("Slice", &[&y, &middle, &end, &axis], &[]);
            let gate = b.op("Tanh", &[&second], &[]);
            same(b.op("Mul", &[&first, &gate], &[]))
        }
        8 => same(b.group_norm(&x.name, channels, 4)),
        9 => {
            let (scale, bias) = (b.weight_around(&[channels], 1.0, 0.5), b.bias(channels));
            let attributes = [attr_int("num_groups", 4), attr_float("epsilon", 1e-5)];
            same(b.op("GroupNormalization", &[&x.name, &scale, &bias], &attributes))
        }
        10..=12 => {
            let flat = b.ints(&[0, channels, size * size]);
            let y = b.op("Reshape", &[&x.name, &flat], &[]);
            let y = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1])]);
            let (scale, bias) = (b.weight_around(&[channels], 1.0, 0.5), b.bias(channels));
            let y = b.op("LayerNormalization", &[&y, &scale, &bias], &[attr_int("axis", -1)]);
            let y = match kind {
                10 => b.attention(&y, channels, 4),
                11 => b.gated(&y, channels, 20),
                _ => {
                    let w = b.layer_weight(&[channels, channels], channels);
                    b.op("Einsum", &[&y, &w], &[attr_string("equation", "ntc,cd->ntd")])
                }
            };
            let y = b.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1])]);
            let image = b.ints(&[0, channels, size, size]);
            same(b.op("Reshape", &[&y, &image], &[]))
        }
        13 if size > 2 => {
            let y =
                b.op("AveragePool", &[&x.name], &[attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])]);
            Image { name: y, channels, size: size / 2 }
        }
        14 if size < 16 => {
            let sizes = b.ints(&[2, 2]);
            let attributes = [attr_string("mode", "nearest"), attr_ints("axes", &[2, 3])];
            let shape = b.op("Shape", &[&x.name], &[attr_int("start", 2)]);
            let sizes = b.op("Mul", &[&shape, &sizes], &[]);
            Image { name: b.op("Resize", &[&x.name, "", "", &sizes], &attributes), channels, size: size * 2 }
        }
        15 if size < 16 => {
            let (w, bias) = (b.layer_weight(&[channels, 16, 2, 2], channels), b.bias(16));
            let y = b.op("ConvTranspose", &[&x.name, &w, &bias], &[attr_ints("strides", &[2, 2])]);
            Image { name: y, channels: 16, size: size * 2 }
        }
        16 if size < 16 => {
            let y = b.conv(&x.name, channels, 64, 1, 1);
            let y = b.op("DepthToSpace", &[&y], &[attr_int("blocksize", 2), attr_string("mode", "CRD")]);
            Image { name: y, channels: 16, size: size * 2 }
        }
        17 => {
            let pads = b.ints(&[0, 0, 1, 1, 0, 0, 1, 1]);
            let y = b.op("Pad", &[&x.name, &pads], &[]);
            let w = b.layer_weight(&[16, channels, 3, 3], 9 * channels);
            Image { name: b.op("Conv", &[&y, &w], &[]), channels: 16, size }
        }
        18 => {
            // An embedding that is added to every pixel, like that of a timestep.
            let pooled = b.op("GlobalAveragePool", &[&x.name], &[]);
            let pooled = b.op("Flatten", &[&pooled], &[]);
            let (w, bias) = (b.layer_weight(&[channels, channels], channels), b.bias(channels));
            let y = b.op("Gemm", &[&pooled, &w, &bias], &[attr_int("transB", 1)]);
            let axes = b.ints(&[2, 3]);
            let y = b.op("Unsqueeze", &[&y, &axes], &[]);
            same(b.op("Add", &[&x.name, &y], &[]))
        }
        19 => same(b.op("Relu", &[&x.name], &[])),
        21.. => step_of_digits(b, kind, x),
        _ => same(b.silu(&x.name)),
    }
}

/// Adds the step with this number, from those that treat channels as products.
fn step_of_digits(b: &mut Builder, kind: u8, x: &Image) -> Image {
    let (channels, size) = (x.channels, x.size);
    let same = |name: String| Image { name, channels, size };
    let mut of_digits = |mix: &dyn Fn(&mut Builder, &str) -> String| {
        let (split, joined) = (b.ints(&[0, 4, channels / 4, size, size]), b.ints(&[0, channels, size, size]));
        let y = b.op("Reshape", &[&x.name, &split], &[]);
        let y = mix(b, &y);
        b.op("Reshape", &[&y, &joined], &[])
    };
    match kind {
        // One filter for several channels, which are repetitions or the groups of a transposed convolution.
        21 => {
            let repeats = b.ints(&[1, 2, 1, 1]);
            let y = b.op("Tile", &[&x.name, &repeats], &[]);
            let y = b.conv(&y, 2 * channels, channels, 1, channels);
            Image { name: b.conv(&y, channels, 16, 1, 1), channels: 16, size }
        }
        22 => {
            let w = b.layer_weight(&[channels, 4, 1, 1], channels / 4);
            let y = b.op("ConvTranspose", &[&x.name, &w], &[attr_int("group", 4)]);
            let y = b.conv(&y, 16, 4, 3, 4);
            Image { name: b.conv(&y, 4, 16, 1, 1), channels: 16, size }
        }
        23 | 24 => same(of_digits(&|b, y| b.op("Softmax", &[y], &[attr_int("axis", i64::from(kind) - 22)]))),
        25 | 26 => same(of_digits(&|b, y| {
            let axes = if kind == 25 { b.ints(&[1, 2, 3, 4]) } else { b.ints(&[1, 3]) };
            let mean = b.op("ReduceMean", &[y, &axes], &[]);
            b.op("Sub", &[y, &mean], &[])
        })),
        27 => same(of_digits(&|b, y| {
            let w = b.layer_weight(&[4, channels / 4, channels / 4], channels / 4);
            b.op("Einsum", &[y, &w], &[attr_string("equation", "ngchw,gcd->ngdhw")])
        })),
        28 => {
            // Halves of pairs, in reverse order.
            let axis = b.ints(&[1]);
            let mut half = |start: i64, step: i64| {
                let limits = [start, if step < 0 { i64::MIN } else { i64::MAX }, step].map(|limit| b.ints(&[limit]));
                b.op("Slice", &[&x.name, &limits[0], &limits[1], &axis, &limits[2]], &[])
            };
            let parts = [half(-1, -2), half(0, 2)];
            let gate = b.op("Tanh", &[&parts[0]], &[]);
            let y = b.op("Mul", &[&gate, &parts[1]], &[]);
            Image { name: b.conv(&y, channels / 2, 16, 1, 1), channels: 16, size }
        }
        29 => {
            let pads = b.ints(&[0, 1, 0, 0, 0, 3, 0, 0]);
            let y = b.op("Pad", &[&x.name, &pads], &[]);
            Image { name: b.conv(&y, channels + 4, 16, 1, 1), channels: 16, size }
        }
        _ => {
            // Assigns the first half again.
            let half = channels / 2;
            let places: Vec<i64> = (0..2).flat_map(|n| (0..half).flat_map(move |c| [n, c])).collect();
            let (places, updates) = (b.ints_of(&places, &[2, half, 2]), b.conv(&x.name, channels, half, 3, 1));
            same(b.op("ScatterND", &[&x.name, &places, &updates], &[]))
        }
    }
}

/// Number of steps.
const STEPS: u8 = 31;

fn network(seed: u64, kinds: &[u8]) -> ModelProto {
    let mut b = Builder::new(seed);
    let mut x = Image { name: b.conv("x", 3, 16, 3, 1), channels: 16, size: SIZE };
    let mut earlier = Vec::new();
    for kind in kinds {
        let next = step(&mut b, *kind, &x, &earlier);
        earlier.push(x);
        x = next;
    }
    let y = b.conv(&x.name, x.channels, 3, 3, 1);
    b.finish(&[2, 3, SIZE, SIZE], &y, &[2, 3, x.size, x.size])
}

/// Prunes a network. Returns whether channels were removed, or a description of the fault.
fn check(seed: u64, kinds: &[u8], options: &PruneOptions) -> Result<bool, String> {
    let folder = tempfile::tempdir().unwrap();
    let input = save(folder.path(), &network(seed, kinds));
    let output = folder.path().join("out.onnx");
    let text = |error: onnx_diffprune::error::Error| error.to_string();
    let model = load(&input).map_err(text)?;
    let analysis = analyse(&model).map_err(text)?;
    let cut = match cut(&analysis, options, onnx_diffprune::runtime::Runtime::open(None).ok()) {
        Err(error) if error.to_string().contains("nothing can be pruned") => return Ok(false),
        other => other.map_err(text)?,
    };
    write(&model, &cut.rewritten.edits, &output).map_err(text)?;
    let kept = kept_axes(&cut.plan, &analysis, &output).map_err(text)?;
    let pruned = load(&output).map_err(text)?;
    let strict = VerifyOptions { rtol: Some(1e-4), ..VerifyOptions::default() };
    let report = verify(&analysis, &kept, &pruned, runtime(), &strict).map_err(text)?;
    if !report.passed {
        return Err(format!("verification: {report:?}"));
    }
    if pruned.graph().output != model.graph().output || pruned.graph().input != model.graph().input {
        return Err("inputs or outputs changed".to_owned());
    }
    if cut.after.parameters >= cut.before.parameters {
        return Err("no parameter was removed".to_owned());
    }
    Ok(true)
}

#[test]
fn every_cut_of_a_random_graph_verifies() {
    let config =
        ProptestConfig { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..Default::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]));
    let cases = (any::<u64>(), prop::collection::vec(0u8..STEPS, 1..8), 0.2f64..0.8, any::<bool>(), any::<bool>());
    let pruned = std::cell::Cell::new(0);
    let result = runner.run(&cases, |(seed, kinds, ratio, is_random, drop_norm_groups)| {
        let criterion = if is_random { CriterionOption::Random } else { CriterionOption::Magnitude };
        let norm_groups = if drop_norm_groups { NormGroups::Drop } else { NormGroups::Keep };
        let options = PruneOptions {
            score: ScoreOptions { criterion, norm_groups, seed, ..ScoreOptions::default() },
            ..PruneOptions::new(Target::Ratio(ratio))
        };
        let is_cut = check(seed, &kinds, &options).map_err(TestCaseError::fail)?;
        pruned.set(pruned.get() + u32::from(is_cut));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(pruned.get() >= CASES * 3 / 4, "only {} of {CASES} networks could be pruned", pruned.get());
}

#[test]
fn every_step_can_be_pruned() {
    for kind in 0..STEPS {
        let options = PruneOptions::by_magnitude(Target::Ratio(0.5));
        let is_cut = check(1, &[0, kind], &options).unwrap_or_else(|error| panic!("step {kind}: {error}"));
        assert!(is_cut, "no channel was removed through step {kind}");
    }
}
