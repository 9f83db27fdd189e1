//! Losses of several terms, and gradients with respect to inner values, against centred differences of the network in
//! float64 in ONNX Runtime. The loss is implemented again in this file.

use std::path::Path;

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::gradient::loss::{Distance, LossTerm};
use onnx_diffprune::gradient::pass::{GradientPass, Gradients};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, Precision};
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, ModelProto, TensorProto};
use onnx_diffprune::runtime::{Device, Session, SessionOptions};
use prost::Message;

use crate::support::builder::{Builder, node, value_of};
use crate::support::files::save;
use crate::support::fixtures::runtime;

/// Returns numbers between -1 and 1 that depend on their position.
fn wave(count: usize, phase: f64) -> Vec<f64> {
    (0..count).map(|at| (at as f64 * 1.7 + phase).sin()).collect()
}

fn array(dtype: ElementType, dims: &[i64], values: &[f64]) -> Array {
    Array::from_f64(dtype, dims.iter().map(|size| *size as usize).collect(), values).unwrap()
}

/// Builds a network of operators that ONNX Runtime supports in float64. Returns it with the names of an inner value
/// `[3, 8]` and of one `[3, 4, 2]`.
fn network() -> (ModelProto, String, String) {
    let mut b = Builder::new(5);
    let y = b.linear("x", 5, 8);
    let inner = b.silu(&y);
    let y = b.linear(&inner, 8, 8);
    let y = b.op("Tanh", &[&y], &[]);
    let shape = b.ints(&[3, 4, 2]);
    let whole = b.op("Reshape", &[&y, &shape], &[]);
    let y = b.op("Sin", &[&whole], &[]);
    (b.finish(&[3, 5], &y, &[3, 4, 2]), inner, whole)
}

fn analysed(folder: &Path, model: &ModelProto) -> Analysis {
    analyse(&load(&save(folder, model)).unwrap()).unwrap()
}

/// The network in float64. Its weights are inputs, and an input can be added to some values.
struct Reference {
    session: Session,
    inputs: Vec<(String, Array)>,
    losses: Vec<LossTerm>,
    given: Vec<(String, Array)>,
}

impl Reference {
    /// Opens the reference. `added` lists values with their shapes. `given` contains the input and the inputs of the
    /// loss.
    fn new(model: &ModelProto, losses: &[LossTerm], given: &[(String, Array)], added: &[(&str, &[i64])]) -> Self {
        let mut model = model.clone();
        let graph = model.graph.as_mut().unwrap();
        let mut inputs = vec![("x".to_owned(), given[0].1.cast(ElementType::F64))];
        graph.input = vec![value_of("x", DataType::Double as i32, None)];
        let (floats, ints): (Vec<TensorProto>, Vec<TensorProto>) =
            std::mem::take(&mut graph.initializer).into_iter().partition(|t| t.data_type == DataType::Float as i32);
        graph.initializer = ints;
        for tensor in floats {
            let (chunks, _) = tensor.raw_data.as_chunks::<4>();
            let values: Vec<f64> = chunks.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
            graph.input.push(value_of(&tensor.name, DataType::Double as i32, None));
            inputs.push((tensor.name, array(ElementType::F64, &tensor.dims, &values)));
        }
        for (name, dims) in added {
            let at = graph.node.iter().position(|node| node.output.contains(&(*name).to_owned())).unwrap();
            let (raw, addend) = (format!("{name}/raw"), format!("{name}/added"));
            graph.node[at].output = vec![raw.clone()];
            graph.node.insert(at + 1, node(&addend, "Add", &[&raw, &addend], &[name]));
            graph.input.push(value_of(&addend, DataType::Double as i32, None));
            let count = dims.iter().product::<i64>() as usize;
            inputs.push((addend, array(ElementType::F64, dims, &vec![0.0; count])));
        }
        let mut names: Vec<&str> = losses.iter().map(|term| term.value.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        graph.output = names.iter().map(|name| value_of(name, DataType::Double as i32, None)).collect();
        let session = runtime().session_from_bytes(&model.encode_to_vec(), &SessionOptions::default()).unwrap();
        Self { session, inputs, losses: losses.to_vec(), given: given.to_vec() }
    }

    /// Computes every term.
    fn terms(&mut self) -> Vec<f64> {
        let outputs = self.session.run(&self.inputs).unwrap();
        let of = |name: &str| self.given.iter().find(|(own, _)| own == name).unwrap().1.to_f64();
        let term = |term: &LossTerm| {
            let (_, found) = outputs.iter().find(|(name, _)| *name == term.value).unwrap();
            let mut dims = found.dims.clone();
            let target = of(&term.target);
            if let Distance::SquaredDirectionalDerivative { step } = term.distance {
                dims[0] /= 3;
                return term.weight * squared_derivatives(&found.to_f64(), (&dims, term), &target, step);
            }
            dims[0] /= term.parts as usize;
            let samples = dims[0];
            let (mut sum, mut count) = (0.0, 0);
            for (at, value) in found.to_f64().into_iter().enumerate() {
                let inner: usize = dims[2.min(dims.len())..].iter().product();
                let row: usize = dims[1..].iter().product();
                let (sample, channel) = (at / row, at % row / inner);
                let channels = term.channels.map_or(dims[1], |channels| channels as usize);
                if channel >= channels || sample >= samples {
                    continue;
                }
                let y = target[sample * channels * inner + at % row];
                let of_element = match term.distance {
                    Distance::Squared => (value - y).powi(2),
                    Distance::Huber { delta } => {
                        let (distance, delta) = ((value - y).abs(), f64::from(delta));
                        if distance <= delta { distance.powi(2) / 2.0 } else { delta * (distance - delta / 2.0) }
                    }
                    Distance::InnerProduct => value * y,
                    Distance::SquaredDirectionalDerivative { .. } => unreachable!(),
                };
                let weights = term.sample_weights.as_ref().map_or(vec![1.0; samples], |name| of(name));
                sum += of_element * weights[sample];
                count += 1;
            }
            term.weight * if term.distance == Distance::InnerProduct { sum } else { sum / count as f64 }
        };
        self.losses.iter().map(term).collect()
    }

    /// Computes the centred differences of the loss with respect to every element of an input.
    fn gradient(&mut self, name: &str) -> Vec<f64> {
        let at = self.inputs.iter().position(|(input, _)| input == name).unwrap();
        let whole = self.inputs[at].1.clone();
        let dims: Vec<i64> = whole.dims.iter().map(|size| *size as i64).collect();
        let step = 1e-5;
        let mut slopes = Vec::new();
        for element in 0..whole.to_f64().len() {
            let mut loss_at = |step: f64| {
                let mut values = whole.to_f64();
                values[element] += step;
                self.inputs[at].1 = array(ElementType::F64, &dims, &values);
                self.terms().iter().sum::<f64>()
            };
            slopes.push((loss_at(step) - loss_at(-step)) / (2.0 * step));
        }
        self.inputs[at].1 = whole;
        slopes
    }
}

/// Computes the mean over rows of the squared error of the squared derivative. `dims` is the shape of a part.
fn squared_derivatives(values: &[f64], (dims, term): (&[usize], &LossTerm), target: &[f64], step: f32) -> f64 {
    let row: usize = dims[1..].iter().product();
    let part = dims[0] * row;
    let of_channel: usize = dims[2.min(dims.len())..].iter().product();
    let compared = term.channels.map_or(row, |channels| channels as usize * of_channel);
    let of_row = |at: usize| {
        let norm = (0..compared).map(|element| {
            let [above, below] = [1, 2].map(|of| values[of * part + at * row + element]);
            ((above - below) / (2.0 * f64::from(step))).powi(2)
        });
        (norm.sum::<f64>() - target[at]).powi(2)
    };
    (0..dims[0]).map(of_row).sum::<f64>() / dims[0] as f64
}

fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
    let worst = differences.fold(0.0f64, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) });
    assert!(worst <= tolerance * largest, "{what}: {worst} of {largest}\n{found:?}\n{expected:?}");
}

/// Compares loss, terms, and the gradients with respect to all weights, two inner values and the input with the
/// reference.
fn check(losses: &[LossTerm], precision: Precision, tolerance: f64) -> Gradients {
    let (model, inner, whole) = network();
    let folder = tempfile::tempdir().unwrap();
    let analysis = analysed(folder.path(), &model);
    let id = |name: &str| analysis.graph.value(name).unwrap();
    let wanted = (0..analysis.graph.values.len()).filter(|at| analysis.graph.values[*at].name.starts_with("weight"));
    let wanted_values = vec![id(&whole), id(&inner), id("x")];
    let options = GradientOptions {
        wanted: wanted.collect(),
        wanted_values: wanted_values.clone(),
        loss: losses.to_vec(),
        precision,
        ..GradientOptions::default()
    };
    let graph = GradientGraph::build(&analysis, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut given = vec![("x".to_owned(), array(ElementType::F32, &[3, 5], &wave(15, 0.3)))];
    for (at, term) in graph.terms.iter().enumerate() {
        let count = term.target_shape.iter().product::<i64>() as usize;
        let target = array(ElementType::F32, &term.target_shape, &wave(count, at as f64));
        let rows = term.target_shape[0];
        let weights = [0.5, 2.0, -1.0][..rows as usize].to_vec();
        let weights = term.sample_weights.clone().map(|name| (name, array(ElementType::F32, &[rows], &weights)));
        for (name, array) in std::iter::once((term.target.clone(), target)).chain(weights) {
            if given.iter().all(|(own, _)| *own != name) {
                given.push((name, array));
            }
        }
    }
    let mut pass = GradientPass::new(runtime(), &graph, &analysis.model, None).unwrap();
    let found = pass.run(&analysis.model, &given).unwrap_or_else(|error| panic!("{error}"));
    let added: [(&str, &[i64]); 2] = [(&whole, &[3, 4, 2]), (&inner, &[3, 8])];
    let mut reference = Reference::new(&model, losses, &given, &added);
    let terms = reference.terms();
    close("terms", &found.terms.iter().map(|term| *term as f32).collect::<Vec<_>>(), &terms, tolerance);
    close("loss", &[found.loss as f32], &[terms.iter().sum()], tolerance);
    assert_eq!(found.uses.len(), graph.gradients.len());
    let outputs: Vec<usize> = graph.value_gradients.iter().map(|of| of.value).collect();
    assert!(wanted_values.ends_with(&outputs), "{outputs:?}");
    for (gradient, values) in graph.gradients.iter().zip(&found.uses) {
        let name = &analysis.graph.values[gradient.value].name;
        close(name, values, &reference.gradient(name), tolerance);
    }
    for (gradient, values) in graph.value_gradients.iter().zip(&found.values) {
        let name = analysis.graph.values[gradient.value].name.as_str();
        let input = if name == "x" { "x".to_owned() } else { format!("{name}/added") };
        close(name, values, &reference.gradient(&input), tolerance);
    }
    found
}

fn term(value: &str, distance: Distance, target: &str) -> LossTerm {
    LossTerm { distance, target: target.to_owned(), ..LossTerm::squared(value) }
}

#[test]
fn gradients_of_every_kind_of_term_agree_with_centred_differences() {
    let (_, inner, whole) = network();
    let weights = Some("sample_weights".to_owned());
    // Distances to the targets are up to one, so they lie on both sides of delta.
    let huber = Distance::Huber { delta: 0.4 };
    for distance in [Distance::Squared, huber, Distance::InnerProduct] {
        let plain = term("y", distance, "target");
        check(std::slice::from_ref(&plain), Precision::Float32, 2e-5);
        let some = LossTerm { channels: Some(3), sample_weights: weights.clone(), weight: -0.7, ..plain.clone() };
        check(std::slice::from_ref(&some), Precision::Float32, 2e-5);
        check(&[LossTerm { value: whole.clone(), ..some.clone() }], Precision::Float32, 2e-5);
        check(&[LossTerm { value: inner.clone(), ..some }], Precision::Float32, 2e-5);
    }
}

#[test]
fn terms_compare_the_first_of_several_parts_and_derivatives_between_the_others() {
    let (_, inner, whole) = network();
    let slopes = term("y", Distance::SquaredDirectionalDerivative { step: 0.3 }, "slopes");
    check(std::slice::from_ref(&slopes), Precision::Float32, 2e-5);
    let some = LossTerm { channels: Some(3), weight: -0.7, ..slopes.clone() };
    check(&[some, LossTerm { value: inner.clone(), ..slopes.clone() }], Precision::Float32, 2e-5);
    let weights = Some("sample_weights".to_owned());
    let first =
        LossTerm { parts: 3, channels: Some(2), sample_weights: weights, ..term(&whole, Distance::Squared, "a") };
    let own = LossTerm { parts: 3, ..term("y", Distance::Huber { delta: 0.3 }, "b") };
    check(&[first, own, slopes], Precision::Float32, 2e-5);
}

#[test]
fn terms_on_several_values_are_summed() {
    let (_, inner, whole) = network();
    let weights = Some("sample_weights".to_owned());
    let losses = [
        LossTerm { sample_weights: weights.clone(), ..term("y", Distance::Squared, "a") },
        LossTerm { weight: 3.0, ..term(&inner, Distance::Huber { delta: 0.3 }, "b") },
        LossTerm { weight: 0.5, sample_weights: weights, ..term(&whole, Distance::InnerProduct, "a") },
        LossTerm { channels: Some(1), ..term(&whole, Distance::Squared, "c") },
    ];
    check(&losses, Precision::Float32, 2e-5);
    // Products are rounded to eleven bits on devices that really compute in float16.
    check(&losses, Precision::Float16, 2e-2);
}

#[test]
fn an_inner_product_differentiates_to_a_vector_jacobian_product() {
    // y = x w, so the gradient with respect to x is v w^T, and that with respect to w is x^T v.
    let mut b = Builder::new(1);
    let w = b.floats(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let y = b.op("MatMul", &["x", &w], &[]);
    let folder = tempfile::tempdir().unwrap();
    let analysis = analysed(folder.path(), &b.finish(&[1, 2], &y, &[1, 2]));
    let id = |name: &str| analysis.graph.value(name).unwrap();
    let loss = vec![term("y", Distance::InnerProduct, "v")];
    let options =
        GradientOptions { wanted: vec![id(&w)], wanted_values: vec![id("x")], loss, ..GradientOptions::default() };
    let graph = GradientGraph::build(&analysis, &options).unwrap();
    let mut pass = GradientPass::new(runtime(), &graph, &analysis.model, None).unwrap();
    let given = [("x", [5.0, 7.0]), ("v", [1.0, 10.0])];
    let given = given.map(|(name, values)| (name.to_owned(), array(ElementType::F32, &[1, 2], &values)));
    let found = pass.run(&analysis.model, &given).unwrap();
    assert_eq!((found.loss, &found.terms), (26.0 + 380.0, &vec![406.0]));
    assert_eq!(found.values, [[21.0, 43.0]]);
    assert_eq!(found.uses, [[5.0, 50.0, 7.0, 70.0]]);
}

#[test]
fn kernels_do_not_hide_values_that_the_loss_or_a_gradient_needs() {
    // Every value of a group norm with SiLU, in turn as a value of the loss and as one to differentiate with respect
    // to.
    let mut b = Builder::new(8);
    let y = b.conv("x", 2, 8, 3, 1);
    let y = b.group_norm(&y, 8, 2);
    let y = b.silu(&y);
    let y = b.conv(&y, 8, 4, 3, 1);
    let model = b.finish(&[2, 2, 6, 6], &y, &[2, 4, 6, 6]);
    let folder = tempfile::tempdir().unwrap();
    let analysis = analysed(folder.path(), &model);
    let graph = &analysis.graph;
    let wanted = (0..graph.values.len()).filter(|at| graph.values[*at].name.starts_with("weight")).collect::<Vec<_>>();
    let is_float = |value: &usize| analysis.facts.values[*value].as_ref().is_some_and(|fact| fact.is_float());
    let values = graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten().copied()).filter(is_float);
    let run = |options: &GradientOptions, device: Option<Device>| {
        let built = match device {
            Some(device) => GradientGraph::build_for(&analysis, options, device).unwrap(),
            None => GradientGraph::build(&analysis, options).unwrap(),
        };
        let mut given = vec![("x".to_owned(), array(ElementType::F32, &[2, 2, 6, 6], &wave(144, 0.0)))];
        for term in &built.terms {
            let count = term.target_shape.iter().product::<i64>() as usize;
            given.push((term.target.clone(), array(ElementType::F32, &term.target_shape, &wave(count, 1.0))));
        }
        let mut pass = GradientPass::new(runtime(), &built, &analysis.model, None).unwrap();
        pass.run(&analysis.model, &given).unwrap()
    };
    let mut count = 0;
    for value in values {
        let name = graph.values[value].name.clone();
        let both = vec![term("y", Distance::Squared, "target"), term(&name, Distance::Squared, "other")];
        for (loss, wanted_values) in [(vec![], vec![value]), (both, vec![])] {
            let options = GradientOptions { wanted: wanted.clone(), wanted_values, loss, ..GradientOptions::default() };
            let (standard, kernels) = (run(&options, None), run(&options, Some(Device::Cpu)));
            assert!((standard.loss - kernels.loss).abs() < 1e-5 * standard.loss, "{name}");
            assert_eq!(standard.values.len(), options.wanted_values.len());
            let pairs = standard.uses.iter().zip(&kernels.uses).chain(standard.values.iter().zip(&kernels.values));
            let largest = standard.uses.iter().flatten().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for (expected, found) in pairs {
                assert_eq!(expected.len(), found.len());
                let worst = expected.iter().zip(found).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(worst <= 1e-4 * largest, "{name}: {worst} of {largest}");
            }
            count += 1;
        }
    }
    assert_eq!(count, 20);
}

#[test]
fn an_invalid_loss_is_refused() {
    let (model, inner, _) = network();
    let folder = tempfile::tempdir().unwrap();
    let analysis = analysed(folder.path(), &model);
    let error = |loss: Vec<LossTerm>| {
        let options = GradientOptions { loss, ..GradientOptions::default() };
        GradientGraph::build(&analysis, &options).unwrap_err().to_string()
    };
    let squared = |value: &str, target: &str| term(value, Distance::Squared, target);
    for (loss, expected) in [
        (vec![squared("nothing", "t")], "the value \"nothing\""),
        (vec![squared("y", "x")], "the input \"x\" of the loss has the name of a value"),
        (vec![squared("y", "t"), squared(&inner, "t")], "shape [3, 4, 2] in one term and [3, 8] in another"),
        (vec![term("y", Distance::Huber { delta: 0.0 }, "t")], "delta of a Huber distance"),
        (vec![LossTerm { weight: f64::NAN, ..squared("y", "t") }], "expected a finite weight"),
        (vec![LossTerm { channels: Some(0), ..squared("y", "t") }], "expected at least one channel"),
        (
            vec![LossTerm { parts: 2, ..squared("y", "t") }],
            "value \"y\" to divide into 2 equal parts, found shape [3, 4, 2]",
        ),
        (vec![LossTerm { parts: 0, ..squared("y", "t") }], "0 equal parts"),
        (
            vec![term("y", Distance::SquaredDirectionalDerivative { step: 0.0 }, "t")],
            "step size of a directional derivative",
        ),
    ] {
        let found = error(loss);
        assert!(found.contains(expected), "{found}");
    }
}
