//! The loss terms of distillation against those of PyTorch on the same inputs (`scripts/make_distill_reference.py`),
//! and the outputs of a teacher for a cut network.

use std::collections::HashMap;
use std::path::Path;

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::diffusion::{Process, read_scheduler_config};
use onnx_diffprune::finetune::graph::TrainingGraph;
use onnx_diffprune::finetune::objective::Objective;
use onnx_diffprune::finetune::pass::TrainingPass;
use onnx_diffprune::gradient::loss::LossTerm;
use onnx_diffprune::gradient::pass::PassOptions;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::sizes_for;
use onnx_diffprune::load::load;
use onnx_diffprune::npz;
use onnx_diffprune::runtime::Device;

use crate::support::fixtures::runtime;

const BATCH: usize = 2;
/// The step size of the script.
const STEP: f32 = 0.16;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn floats(array: &Array) -> Vec<f32> {
    array.to_f64().into_iter().map(|value| value as f32).collect()
}

fn array(dims: &[usize], values: Vec<f32>) -> Array {
    Array { dims: dims.to_vec(), data: ArrayData::F32(values) }
}

struct Reference {
    arrays: HashMap<String, Array>,
    names: Vec<String>,
    analysis: Analysis,
    process: Process,
}

impl Reference {
    fn open() -> Self {
        let arrays: HashMap<String, Array> =
            npz::read(&fixture("ddpm_fashion16/distill_reference.npz")).unwrap().into_iter().collect();
        let ArrayData::U8(names) = &arrays["names"].data else { panic!("names should be stored as bytes") };
        let names = String::from_utf8(names.clone()).unwrap().lines().map(str::to_owned).collect();
        let analysis = analyse(&load(&fixture("ddpm_fashion16.onnx")).unwrap()).unwrap();
        let process = read_scheduler_config(&fixture("ddpm_fashion16/scheduler_config.json")).unwrap().process;
        Self { arrays, names, analysis, process }
    }

    /// Returns the names of the inner values in the reference.
    fn features(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.arrays.keys().filter_map(|name| name.strip_prefix("feature|")).map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    /// Returns the inputs of the Jacobian term, with the same weight for all samples.
    fn slopes(&self, term: &LossTerm) -> Vec<(String, Array)> {
        let weights = (term.sample_weights.clone().unwrap(), array(&[BATCH], vec![1.0; BATCH]));
        vec![(term.target.clone(), array(&[BATCH], floats(&self.arrays["slopes"]))), weights]
    }

    fn graph(&self, terms: &[LossTerm], parts: usize, recomputes: bool) -> TrainingGraph {
        let wanted = self.names.iter().map(|name| self.analysis.graph.value(name).unwrap()).collect();
        let sizes = sizes_for(&self.analysis.facts, &[("batch".to_owned(), (parts * BATCH) as i64)].into());
        let loss = terms.to_vec();
        let options = GradientOptions { sizes, wanted, loss, recomputes, ..GradientOptions::default() };
        TrainingGraph::build(&self.analysis, &options, Device::Cpu).unwrap()
    }

    /// Computes loss and gradients of some terms.
    fn run(&self, terms: &[LossTerm], parts: usize, given: Vec<(String, Array)>, recomputes: bool) -> (f64, Gradients) {
        let graph = self.graph(terms, parts, recomputes);
        let mut pass = TrainingPass::new(runtime(), &self.analysis, &graph, &PassOptions::default()).unwrap();
        let of = &self.analysis.graph;
        let names: Vec<&str> = of.inputs.iter().map(|value| of.values[*value].name.as_str()).collect();
        let x = &self.arrays["x"];
        let mut samples = floats(x);
        if parts == 3 {
            let direction = floats(&self.arrays["direction"]);
            for by in [STEP, -STEP] {
                samples.extend(floats(x).iter().zip(&direction).map(|(x, v)| x + by * v));
            }
        }
        let t: Vec<i64> = self.arrays["t"].to_f64().iter().map(|t| *t as i64).collect();
        let mut inputs = vec![
            (names[0].to_owned(), array(&[parts * BATCH, 1, 16, 16], samples)),
            (names[1].to_owned(), Array { dims: vec![parts * BATCH], data: ArrayData::I64(t.repeat(parts)) }),
        ];
        inputs.extend(given);
        let loss = pass.run(&inputs).unwrap().loss;
        let (_, gradients) = pass.parts();
        let values = gradients.iter().map(|gradient| gradient.values().unwrap().to_vec());
        (loss, graph.weights.iter().map(|weight| weight.name.clone()).zip(values).collect())
    }

    /// Compares with term `at` of the script.
    fn compare(&self, what: &str, at: usize, (loss, gradients): &(f64, Gradients)) {
        let expected = self.arrays["losses"].to_f64()[at];
        assert!((loss - expected).abs() < 1e-4 * expected, "{what}: loss {loss}, PyTorch's {expected}");
        let (shown, largest) = (floats(&self.arrays["gradients"]), floats(&self.arrays["largest"]));
        let (count, mut compared) = (self.names.len(), 0);
        let most = largest[at * count..(at + 1) * count].iter().fold(0.0f32, |most, value| most.max(*value));
        for (place, name) in self.names.iter().enumerate() {
            let row = at * count + place;
            // Skips gradients that consist of rounding errors, such as that of the bias of keys.
            if largest[row] < 1e-6 * most {
                continue;
            }
            let found = &gradients[name];
            let expected = &shown[8 * row..8 * row + 8];
            for (at, expected) in expected.iter().enumerate() {
                // The positions that NumPy's linspace chooses.
                let place =
                    if at == 7 { found.len() - 1 } else { (at as f64 * ((found.len() - 1) as f64 / 7.0)) as usize };
                let found = found[place];
                let difference = (found - expected).abs();
                assert!(
                    difference <= 1e-4 * largest[row],
                    "{what}, {name}: {found}, PyTorch's {expected}, largest {}",
                    largest[row]
                );
            }
            compared += 1;
        }
        assert!(compared > 100, "{what}: {compared} weights were compared");
    }
}

type Gradients = HashMap<String, Vec<f32>>;

#[test]
fn loss_and_gradients_of_every_distillation_term_agree_with_pytorch() {
    let of = Reference::open();
    let given = |name: &str| floats(&of.arrays[name]);
    let levels = vec![of.process.schedule.levels()[100]; BATCH];
    let image = [BATCH, 1, 16, 16];

    let objective = Objective { distill: 0.7, ..Objective::default() };
    let terms = objective.terms(&of.process, ("out_sample", None), &[], STEP);
    let mut inputs = vec![(TARGET.to_owned(), array(&image, given("target")))];
    let rest = objective.complete(&of.process, &mut inputs, Some(given("teacher")), &levels);
    let (loss, gradients) = of.run(&terms, 1, inputs, false);
    of.compare("distill", 0, &(loss + rest, gradients));

    let features = of.features();
    let objective = Objective { features: 1.0, ..objective };
    let terms = objective.terms(&of.process, ("out_sample", None), &features, STEP);
    let mut inputs = Vec::new();
    for (term, name) in terms[1..].iter().zip(&features) {
        let value = of.arrays[&format!("feature|{name}")].clone();
        let weights = onnx_diffprune::finetune::features::weights_of_rows(&value);
        inputs.push((term.target.clone(), value));
        inputs.push((term.sample_weights.clone().unwrap(), array(&[BATCH], weights)));
    }
    let by_features = of.run(&terms[1..], 1, inputs, false);
    of.compare("features", 1, &by_features);

    let objective = Objective { jacobian: 1.0, ..objective };
    let terms = objective.terms(&of.process, ("out_sample", None), &[], STEP);
    let by_slopes = of.run(&terms[1..], objective.parts(), of.slopes(&terms[1]), false);
    of.compare("jacobian", 2, &by_slopes);
}

#[test]
fn recomputing_activations_changes_neither_losses_nor_gradients() {
    let of = Reference::open();
    let features = of.features();
    let objective = Objective { features: 0.5, jacobian: 0.1, ..Objective::default() };
    let terms = objective.terms(&of.process, ("out_sample", None), &features, STEP);
    let mut inputs = vec![(TARGET.to_owned(), array(&[BATCH, 1, 16, 16], floats(&of.arrays["target"])))];
    for (term, name) in terms[1..].iter().zip(&features) {
        inputs.push((term.target.clone(), of.arrays[&format!("feature|{name}")].clone()));
        inputs.push((term.sample_weights.clone().unwrap(), array(&[BATCH], vec![1.0; BATCH])));
    }
    inputs.extend(of.slopes(terms.last().unwrap()));
    let [whole, small] = [false, true].map(|recomputes| of.graph(&terms, objective.parts(), recomputes).graph);
    assert!(
        2 * small.activation_bytes < whole.activation_bytes,
        "{} {}",
        small.activation_bytes,
        whole.activation_bytes
    );
    let nodes = |of: &GradientGraph| of.model.graph.as_ref().unwrap().node.len();
    assert!(nodes(&small) > nodes(&whole) + 100, "{} {}", nodes(&small), nodes(&whole));
    let plain = of.run(&terms, objective.parts(), inputs.clone(), false);
    let again = of.run(&terms, objective.parts(), inputs, true);
    assert_eq!(plain.0, again.0);
    for (name, expected) in &plain.1 {
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let worst = expected.iter().zip(&again.1[name]).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= 1e-6 * largest, "{name}: {worst} of {largest}");
    }
}
