//! Gradients of the networks in the operators' tests, with respect to every weight, against centred differences of the
//! loss.

use std::cell::RefCell;
use std::collections::BTreeSet;

use onnx_diffprune::analysis::Analysis;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions};
use onnx_diffprune::graph::sizes::Sizes;

use crate::support::derivatives::Derivatives;

/// Networks without a gradient, by the name in their test, and the cause.
const WITHOUT: &[(&str, &str)] = &[
    ("one scale", "derivative of rounding to integers"),
    ("a scale per channel", "derivative of rounding to integers"),
    ("Det", "the operator has no gradient"),
    ("SequenceAt at a computed position", "the operator has no gradient"),
    ("SequenceAt twice", "the operator has no gradient"),
    ("SequenceInsert with two consumers", "the operator has no gradient"),
    ("GridSample of com.microsoft at learned positions", "positions depend on a weight"),
    ("MaxRoiPool", "the operator has no gradient"),
];

/// Networks whose loss does not depend on some weights: the weights (empty for all), and the reason.
const FLAT: &[(&str, &[&str], &str)] = &[
    ("nearest GridSample at learned positions", &["weight_3"], "the position only selects a pixel"),
    ("ReduceProd", &["weight_3", "weight_4"], "the products are so large that the last bias is negligible"),
    ("Sub of the same value", &[], "the difference is always zero"),
    ("Div of the same value", &[], "the quotient is always one"),
    ("Softmax of pixels", &["weight_1"], "a bias is constant along the axis, so Softmax cancels it"),
    ("LogSoftmax of pixels", &["weight_1"], "a bias is constant along the axis, so Softmax cancels it"),
    ("InstanceNormalization", &["weight_1"], "the norm subtracts the bias"),
    ("MeanVarianceNormalization", &["weight_1"], "the norm subtracts the bias"),
    ("GroupNorm of one channel a group", &["weight_1"], "the norm subtracts the bias"),
];

/// Operators that gradients do not pass through, and why.
const NEEDLESS: &[(&str, &str)] = &[
    ("Equal", "its outputs are boolean"),
    ("Greater", "its outputs are boolean"),
    ("GreaterOrEqual", "its outputs are boolean"),
    ("Less", "its outputs are boolean"),
    ("LessOrEqual", "its outputs are boolean"),
    ("And", "its outputs are boolean"),
    ("Or", "its outputs are boolean"),
    ("Xor", "its outputs are boolean"),
    ("Not", "its outputs are boolean"),
    ("IsInf", "its outputs are boolean"),
    ("IsNaN", "its outputs are boolean"),
    ("If", "it is replaced by its branch, or is a barrier"),
    ("BitShift", "gives integers"),
    ("BitwiseAnd", "gives integers"),
    ("BitwiseOr", "gives integers"),
    ("BitwiseXor", "gives integers"),
    ("BitwiseNot", "gives integers"),
    ("ArgMax", "gives integers"),
    ("ArgMin", "gives integers"),
    ("NonZero", "gives integers"),
    ("Shape", "gives integers"),
    ("Size", "gives integers"),
    ("Constant", "its inputs do not depend on weights"),
    ("ConstantOfShape", "its inputs do not depend on weights"),
    ("OneHot", "its inputs do not depend on weights"),
    ("EyeLike", "its inputs do not depend on weights"),
    ("Range", "its inputs do not depend on weights"),
    ("RandomNormal", "its inputs do not depend on weights"),
    ("RandomUniform", "its inputs do not depend on weights"),
    ("RandomNormalLike", "its inputs do not depend on weights"),
    ("RandomUniformLike", "its inputs do not depend on weights"),
    ("Bernoulli", "its inputs do not depend on weights"),
    ("Multinomial", "its inputs do not depend on weights"),
    ("SplitToSequence", "it is replaced by tensors, or is a barrier"),
    ("SequenceConstruct", "it is replaced by tensors, or is a barrier"),
    ("SequenceEmpty", "it is replaced by tensors, or is a barrier"),
    ("SequenceInsert", "it is replaced by tensors, or is a barrier"),
    ("SequenceErase", "it is replaced by tensors, or is a barrier"),
    ("SequenceLength", "it is replaced by tensors, or is a barrier"),
    ("ConcatFromSequence", "it is replaced by tensors, or is a barrier"),
    ("QuantizeLinear", "the DequantizeLinear that follows has no gradient"),
    ("SwiGLU", "ONNX Runtime 1.31 does not implement it"),
    ("STFT", "its gradient is not implemented yet"),
    ("com.microsoft.QuantizeLinear", "as the standard operator"),
    ("com.microsoft.DequantizeLinear", "as the standard operator"),
    ("com.microsoft.SimplifiedLayerNormalization", "ONNX Runtime implements it in the standard domain only"),
];

/// The operators and networks that the tests exercise.
#[derive(Default)]
struct Survey {
    /// Domain and type of the operators that a gradient passes through.
    passed: BTreeSet<(String, String)>,
    /// Names of networks, with and without their opset.
    names: BTreeSet<String>,
    /// Number of surveyed networks.
    count: usize,
    /// The errors of the networks without gradients.
    refusals: Vec<String>,
}

thread_local! {
    /// `Some` while the networks are only surveyed.
    static SURVEY: RefCell<Option<Survey>> = const { RefCell::new(None) };
}

fn wanted(analysis: &Analysis) -> Vec<usize> {
    let is_weight = |name: &str| name == "first" || name.starts_with("weight_");
    (0..analysis.graph.values.len()).filter(|at| is_weight(&analysis.graph.values[*at].name)).collect()
}

fn sizes() -> Sizes {
    [("N", 2), ("H", 4), ("W", 6), ("L", 5)].map(|(name, size)| (name.to_owned(), size)).into()
}

/// Records the operators of a network that a gradient passes through, if networks are being surveyed. Returns whether
/// they are.
pub(crate) fn survey(name: &str, what: &str, analysis: &Analysis) -> bool {
    SURVEY.with_borrow_mut(|survey| {
        let Some(survey) = survey else { return false };
        survey.count += 1;
        survey.names.extend([name.to_owned(), what.to_owned()]);
        let options = GradientOptions { sizes: sizes(), wanted: wanted(analysis), ..GradientOptions::default() };
        if let Err(error) = GradientGraph::build(analysis, &options) {
            survey.refusals.push(error.to_string());
            return true;
        }
        let graph = &analysis.graph;
        let mut depends: BTreeSet<usize> = options.wanted.iter().copied().collect();
        for node in &graph.nodes {
            if node.inputs.iter().flatten().any(|value| depends.contains(value)) {
                let is_float =
                    |value: &usize| analysis.facts.values[*value].as_ref().is_none_or(|fact| fact.is_float());
                depends.extend(node.outputs.iter().flatten().copied().filter(is_float));
            }
        }
        let mut reached: BTreeSet<usize> = graph.outputs.iter().copied().collect();
        for node in graph.nodes.iter().rev() {
            let inputs: Vec<usize> =
                node.inputs.iter().flatten().copied().filter(|value| depends.contains(value)).collect();
            if !inputs.is_empty() && node.outputs.iter().flatten().any(|value| reached.contains(value)) {
                survey.passed.insert((node.proto.domain.clone(), node.proto.op_type.clone()));
                reached.extend(inputs);
            }
        }
        true
    })
}

/// Surveys the networks of all tests.
///
/// # Panics
/// If no network exercises an operator's gradient, if an operator without a gradient is on no list, or if a list
/// is stale.
pub(crate) fn check_coverage(tests: &[fn()]) {
    SURVEY.set(Some(Survey::default()));
    tests.iter().for_each(|test| test());
    let survey = SURVEY.take().unwrap();
    println!("{} networks, {} operators with a gradient", survey.count, survey.passed.len());
    let mut faults = Vec::new();
    for op in onnx_diffprune::ops::all().flat_map(|op| op.op_types()) {
        let name = if op.domain.is_empty() { op.name.to_owned() } else { format!("{}.{}", op.domain, op.name) };
        let short = name.replace("com.microsoft.", "m:");
        if crate::shapes::covered().contains(short.as_str()) {
            continue;
        }
        let passed = survey.passed.contains(&(op.domain.to_owned(), op.name.to_owned()));
        let is_refused = survey.refusals.iter().any(|text| text.contains(&format!("({name}): can't differentiate")));
        match (passed || is_refused, NEEDLESS.iter().any(|(needless, _)| *needless == name)) {
            (false, false) => faults.push(format!("no network exercises the gradient of {name}")),
            (true, true) => faults.push(format!("{name} has a gradient, but is on the list NEEDLESS")),
            _ => {}
        }
    }
    let listed = WITHOUT.iter().map(|(name, _)| *name).chain(FLAT.iter().map(|(name, _, _)| *name));
    faults
        .extend(listed.filter(|name| !survey.names.contains(*name)).map(|name| format!("no network is named {name}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Compares the gradient with respect to each weight with centred differences of the loss along two directions.
///
/// # Panics
/// If they differ, if the loss does not depend on a weight without a stated reason, or if a gradient is missing.
pub(crate) fn compare(name: &str, what: &str, analysis: &Analysis) {
    let expected = WITHOUT.iter().find(|(without, _)| [name, what].contains(without));
    let mut derivatives = match (Derivatives::new(analysis, &wanted(analysis), &[sizes()]), expected) {
        (Ok(derivatives), None) => derivatives,
        (Ok(_), Some(_)) => panic!("{what}: has a gradient: remove it from the list WITHOUT"),
        (Err(error), Some((_, cause))) if error.contains(cause) => return,
        (Err(error), _) => panic!("{what}: {error}"),
    };
    assert!(
        derivatives.weights.iter().any(|weight| weight.name == "first"),
        "{what}: the weight of the first layer is not among the differentiated weights"
    );
    let mut faults = Vec::new();
    for at in 0..derivatives.weights.len() {
        for direction in [derivatives.uphill(at, 11), derivatives.random(at, 13)] {
            if let Err(fault) = agrees(name, &mut derivatives, at, direction) {
                faults.push(format!("with respect to {}{fault}", derivatives.weights[at].name));
            }
        }
    }
    assert!(faults.is_empty(), "{what}: loss {:.4e}\n{}", derivatives.loss, faults.join("\n"));
}

/// Checks that derivative and centred difference agree within 1 % of the typical derivative along such a direction, at
/// one of a few steps: the smaller ones suit a loss with high curvature or with corners nearby.
fn agrees(name: &str, derivatives: &mut Derivatives, at: usize, direction: Vec<f64>) -> Result<(), String> {
    let along = vec![(at, direction)];
    let derivative = derivatives.along(&along);
    let scale = derivatives.scale(&along).max(derivative.abs());
    let loss = derivatives.loss.abs();
    let mut line = format!(": derivative {derivative:.4e} of {scale:.4e}");
    // Below this limit, rounding of the loss hides the derivative at every step.
    let is_flat = scale < 1e-4 * loss;
    let weight = derivatives.weights[at].name.as_str();
    let is_listed =
        |(flat, weights, _): &(&str, &[&str], &str)| *flat == name && (weights.is_empty() || weights.contains(&weight));
    if is_flat && !FLAT.iter().any(is_listed) {
        line += ", the loss is flat";
    } else {
        for step in [1e-2, 3e-3, 1e-3, 3e-4] {
            // The prediction is float32, with a relative rounding error of 1e-7.
            let noise = 1e-7 * loss / step;
            if step < 1e-2 && noise > 0.1 * scale {
                break;
            }
            let difference = derivatives.difference(&along, step)?;
            line += &format!(", difference {difference:.4e} at {step}");
            if (difference - derivative).abs() < 1e-2 * scale + noise {
                return Ok(());
            }
        }
    }
    Err(line)
}
