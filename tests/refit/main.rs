//! Refits of small networks whose removed channels are multiples of kept ones, so that the layer after them can
//! compensate for them exactly.
#![allow(clippy::unwrap_used)]

mod bounds;
mod kinds;
mod ranks;

#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::error::Error;
use onnx_diffprune::graph::sizes::{Sizes, sizes_for};
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, attr_ints};
use onnx_diffprune::plan::Plan;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::refit::{Probe, RefitCut, RefitData, RefitLayer, RefitOptions, Weighting, refit};
use onnx_diffprune::runtime::SessionOptions;
use onnx_diffprune::verify::{VerifyOptions, verify_plan};
use onnx_diffprune::write::write;
use rand::{RngExt, SeedableRng};

use support::builder::Builder;
use support::cuts::{Pruned, prune_model};
use support::fixtures::runtime;

/// The input shape of all networks in these tests.
const INPUT: [usize; 4] = [2, 4, 8, 8];

/// Random inputs `x` in chunks.
struct Inputs {
    chunks: usize,
}

fn input(seed: u64) -> Array {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    let values = (0..INPUT.iter().product::<usize>()).map(|_| random.random_range(-1.0..1.0)).collect();
    Array { dims: INPUT.to_vec(), data: ArrayData::F32(values) }
}

impl RefitData for Inputs {
    fn chunks(&self) -> usize {
        self.chunks
    }

    fn inputs(&self, chunk: usize) -> Result<Vec<(String, Array)>, Error> {
        Ok(vec![("x".to_owned(), input(chunk as u64))])
    }

    fn time(&self, chunk: usize) -> f64 {
        chunk as f64
    }

    fn weight(&self, _chunk: usize) -> f64 {
        1.0
    }
}

/// Builds a convolution of 4 to 8 channels, ReLU, and the layer `second`. The last four channels are half of the first
/// four. If `is_constant`, they are one everywhere.
fn network(is_constant: bool, second: impl Fn(&mut Builder, &str) -> String) -> ModelProto {
    let mut b = Builder::new(5);
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(1);
    let mut doubled = |count: usize, last: Option<f32>| -> Vec<f32> {
        let first: Vec<f32> = (0..count).map(|_| random.random_range(-0.6..0.6)).collect();
        let rest: Vec<f32> = first.iter().map(|value| last.unwrap_or(0.5 * value)).collect();
        [first, rest].concat()
    };
    let (w, bias) = (doubled(144, is_constant.then_some(0.0)), doubled(4, is_constant.then_some(1.0)));
    let (w, bias) = (b.floats(&w, &[8, 4, 3, 3]), b.floats(&bias, &[8]));
    let y = b.op("Conv", &["x", &w, &bias], &[attr_ints("pads", &[1; 4])]);
    let y = b.op("Relu", &[&y], &[]);
    let y = second(&mut b, &y);
    b.finish(&[2, 4, 8, 8], &y, &[2, 4, 8, 8])
}

fn half(model: &ModelProto) -> Pruned {
    prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(0.5)))
}

/// Builds a network with 3x3 and 1x1 convolutions and a sum of two values, and cuts half of it.
fn half_with_a_sum() -> Pruned {
    half(&network(false, |b, y| {
        let y = b.conv(y, 8, 8, 3, 1);
        let y = b.silu(&y);
        let z = b.conv(&y, 8, 8, 1, 1);
        let y = b.op("Add", &[&y, &z], &[]);
        b.conv(&y, 8, 4, 3, 1)
    }))
}

/// The result of a refit.
struct Outcome {
    layers: Vec<RefitLayer>,
    /// The squared error of the network on held-out inputs, relative to the squares of its output.
    before: f64,
    after: f64,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn options() -> RefitOptions {
    // An exact solution needs hardly any ridge.
    RefitOptions { ridge: 1e-7, weighting: Weighting::Uniform, ..RefitOptions::default() }
}

fn refitted(pruned: &Pruned, options: &RefitOptions) -> Outcome {
    refitted_on(8, pruned, options)
}

fn refitted_on(chunks: usize, pruned: &Pruned, options: &RefitOptions) -> Outcome {
    let (data, sizes) = (Inputs { chunks }, sizes_for(&pruned.analysis.facts, &Sizes::new()));
    let probe = Probe { data: &data, sizes: &sizes, prediction: "y", channels: None };
    let file = load(&pruned.path).unwrap();
    let cut = RefitCut { analysis: pruned.analysis, rewritten: &pruned.cut.rewritten, pruned: &file };
    let found = refit(cut, (&data, &sizes), probe, options, runtime(), &mut |_, _| Ok(())).unwrap();
    let (mut edits, changed) =
        found.changes(pruned.analysis, &pruned.cut.rewritten, None).unwrap().finish(&file).unwrap();
    let plan = Plan { changed: Some(changed), ..pruned.cut.plan.clone() };
    edits.metadata = plan.metadata();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("refitted.onnx");
    write(&pruned.analysis.model, &edits, &path).unwrap();
    let report = verify_plan(
        pruned.analysis,
        &plan,
        "plan.json".as_ref(),
        &load(&path).unwrap(),
        runtime(),
        &VerifyOptions::default(),
    );
    let report = report.unwrap();
    assert!(report.passed, "{report:?}");
    let x = [("x".to_owned(), input(1_000))];
    let output = |path: &std::path::Path| {
        let mut session = runtime().session_from_file(path, &SessionOptions::default()).unwrap();
        let (_, array) = session.run(&x).unwrap().remove(0);
        let ArrayData::F32(values) = array.data else { panic!("float32 expected") };
        values
    };
    let original = folder.path().join("original.onnx");
    std::fs::write(&original, pruned.analysis.model.bytes()).unwrap();
    let expected = output(&original);
    let error = |path: &std::path::Path| {
        let squares: f64 = expected.iter().map(|value| f64::from(*value).powi(2)).sum();
        let pairs = output(path).into_iter().zip(&expected);
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / squares
    };
    let (before, after) = (error(&pruned.path), error(&path));
    Outcome { layers: found.layers, before, after, path, _folder: folder }
}

impl Outcome {
    /// Asserts that every layer was fitted, and that at most the share `left` of the error remains.
    fn check(&self, what: &str, left: f64) {
        assert!(!self.layers.is_empty(), "{what}: no layers");
        assert!(self.layers.iter().all(|layer| layer.errors.is_some()), "{what}: {:?}", self.layers);
        assert!(self.before > 1e-3, "{what}: {} before", self.before);
        assert!(self.after < left * self.before, "{what}: {} before, {} after", self.before, self.after);
    }
}
