//! The gradients of a network of the operators' tests, by every weight, against centred differences of the loss.

use std::cell::RefCell;
use std::collections::BTreeSet;

use onnx_diffprune::analysis::Analysis;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions};
use onnx_diffprune::graph::sizes::Sizes;

use crate::support::slopes::Slopes;

/// Networks that have no gradient, by the name that their test gives them, and the cause.
const WITHOUT: &[(&str, &str)] = &[
    ("one scale", "derivative of rounding to integers"),
    ("a scale per channel", "derivative of rounding to integers"),
    ("Det", "the operator has no gradient"),
    ("SequenceAt at a computed position", "the operator has no gradient"),
    ("SequenceAt twice", "the operator has no gradient"),
    ("SequenceInsert read twice", "the operator has no gradient"),
    ("GridSample of com.microsoft at learned places", "positions depend on a weight"),
    ("MaxRoiPool", "the operator has no gradient"),
];

/// Networks of which some weights do not move the loss, the weights (all where there are none), and why.
const FLAT: &[(&str, &[&str], &str)] = &[
    ("GridSample at learned places of which the nearest pixels count", &["weight_3"], "a place only chooses a pixel"),
    ("ReduceProd", &["weight_3", "weight_4"], "the products are so large that the last bias hardly matters"),
    ("Sub of the same value", &[], "the difference is always zero"),
    ("Div of the same value", &[], "the quotient is always one"),
    ("Softmax of pixels", &["weight_1"], "a bias is the same along the axis"),
    ("LogSoftmax of pixels", &["weight_1"], "a bias is the same along the axis"),
    ("InstanceNormalization", &["weight_1"], "a bias is what the norm subtracts"),
    ("MeanVarianceNormalization", &["weight_1"], "a bias is what the norm subtracts"),
    ("GroupNorm of one channel a group", &["weight_1"], "a bias is what the norm subtracts"),
];

/// Operators that no gradient passes, and why.
const NEEDLESS: &[(&str, &str)] = &[
    ("Equal", "gives what is true or false"),
    ("Greater", "gives what is true or false"),
    ("GreaterOrEqual", "gives what is true or false"),
    ("Less", "gives what is true or false"),
    ("LessOrEqual", "gives what is true or false"),
    ("And", "gives what is true or false"),
    ("Or", "gives what is true or false"),
    ("Xor", "gives what is true or false"),
    ("Not", "gives what is true or false"),
    ("IsInf", "gives what is true or false"),
    ("IsNaN", "gives what is true or false"),
    ("If", "is replaced by its branch, or a barrier"),
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
    ("Constant", "reads nothing that depends on a weight"),
    ("ConstantOfShape", "reads nothing that depends on a weight"),
    ("OneHot", "reads nothing that depends on a weight"),
    ("EyeLike", "reads nothing that depends on a weight"),
    ("Range", "reads nothing that depends on a weight"),
    ("RandomNormal", "reads nothing that depends on a weight"),
    ("RandomUniform", "reads nothing that depends on a weight"),
    ("RandomNormalLike", "reads nothing that depends on a weight"),
    ("RandomUniformLike", "reads nothing that depends on a weight"),
    ("Bernoulli", "reads nothing that depends on a weight"),
    ("Multinomial", "reads nothing that depends on a weight"),
    ("SplitToSequence", "is replaced by tensors, or a barrier"),
    ("SequenceConstruct", "is replaced by tensors, or a barrier"),
    ("SequenceEmpty", "is replaced by tensors, or a barrier"),
    ("SequenceInsert", "is replaced by tensors, or a barrier"),
    ("SequenceErase", "is replaced by tensors, or a barrier"),
    ("SequenceLength", "is replaced by tensors, or a barrier"),
    ("ConcatFromSequence", "is replaced by tensors, or a barrier"),
    ("QuantizeLinear", "DequantizeLinear after it passes none"),
    ("SwiGLU", "ONNX Runtime 1.31 does not know it"),
    ("STFT", "its gradient is not written yet"),
    ("com.microsoft.QuantizeLinear", "as the standard operator"),
    ("com.microsoft.DequantizeLinear", "as the standard operator"),
    ("com.microsoft.SimplifiedLayerNormalization", "ONNX Runtime knows it in the standard domain alone"),
];

/// What the networks of the tests exercise.
#[derive(Default)]
struct Survey {
    /// Domain and type of the operators that a gradient passed.
    passed: BTreeSet<(String, String)>,
    /// Names of networks, alone and with their opset.
    names: BTreeSet<String>,
    /// How many networks were looked at.
    count: usize,
    /// The errors of the networks without gradients.
    refusals: Vec<String>,
}

thread_local! {
    /// Set while the networks are only looked at.
    static SURVEY: RefCell<Option<Survey>> = const { RefCell::new(None) };
}

fn wanted(analysis: &Analysis) -> Vec<usize> {
    let is_weight = |name: &str| name == "first" || name.starts_with("weight_");
    (0..analysis.graph.values.len()).filter(|at| is_weight(&analysis.graph.values[*at].name)).collect()
}

fn sizes() -> Sizes {
    [("N", 2), ("H", 4), ("W", 6), ("L", 5)].map(|(name, size)| (name.to_owned(), size)).into()
}

/// Takes a note of the operators that a gradient passes if the networks are only looked at; whether they are.
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

/// Looks at the networks of all tests.
///
/// # Panics
/// An operator with a gradient is exercised nowhere, one without stands on no list, or a list is stale.
pub(crate) fn check_coverage(tests: &[fn()]) {
    SURVEY.set(Some(Survey::default()));
    tests.iter().for_each(|test| test());
    let survey = SURVEY.take().unwrap();
    println!("{} networks, {} operators that a gradient passed", survey.count, survey.passed.len());
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
            (true, true) => faults.push(format!("{name} stands on the list of operators without a gradient")),
            _ => {}
        }
    }
    let listed = WITHOUT.iter().map(|(name, _)| *name).chain(FLAT.iter().map(|(name, _, _)| *name));
    faults
        .extend(listed.filter(|name| !survey.names.contains(*name)).map(|name| format!("no network is called {name}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Compares the gradient by each weight of a network with centred differences of the loss in two directions.
///
/// # Panics
/// They differ, a weight does not move the loss at all without a stated reason, or a gradient is missing.
pub(crate) fn compare(name: &str, what: &str, analysis: &Analysis) {
    let expected = WITHOUT.iter().find(|(without, _)| [name, what].contains(without));
    let mut slopes = match (Slopes::new(analysis, &wanted(analysis), &[sizes()]), expected) {
        (Ok(slopes), None) => slopes,
        (Ok(_), Some(_)) => panic!("{what}: has a gradient: take it off the list of networks without"),
        (Err(error), Some((_, cause))) if error.contains(cause) => return,
        (Err(error), _) => panic!("{what}: {error}"),
    };
    assert!(slopes.weights.iter().any(|weight| weight.name == "first"), "{what}: the first layer is not read");
    let mut faults = Vec::new();
    for at in 0..slopes.weights.len() {
        for direction in [slopes.uphill(at, 11), slopes.random(at, 13)] {
            if let Err(fault) = agrees(name, &mut slopes, at, direction) {
                faults.push(format!("by {}{fault}", slopes.weights[at].name));
            }
        }
    }
    assert!(faults.is_empty(), "{what}: loss {:.4e}\n{}", slopes.loss, faults.join("\n"));
}

/// Whether slope and centred difference agree within 1 % of what the slope along such a direction is like, at one of a
/// few steps: the smaller where the loss is curved or has corners near by.
fn agrees(name: &str, slopes: &mut Slopes, at: usize, direction: Vec<f64>) -> Result<(), String> {
    let along = vec![(at, direction)];
    let slope = slopes.slope(&along);
    let scale = slopes.scale(&along).max(slope.abs());
    let loss = slopes.loss.abs();
    let mut line = format!(": slope {slope:.4e} of {scale:.4e}");
    // Below this, rounding of the loss hides the slope at every step.
    let is_flat = scale < 1e-4 * loss;
    let weight = slopes.weights[at].name.as_str();
    let is_listed =
        |(flat, weights, _): &(&str, &[&str], &str)| *flat == name && (weights.is_empty() || weights.contains(&weight));
    if is_flat && !FLAT.iter().any(is_listed) {
        line += ", the loss is flat";
    } else {
        for step in [1e-2, 3e-3, 1e-3, 3e-4] {
            // The prediction is float32, its rounding a part in 1e7.
            let noise = 1e-7 * loss / step;
            if step < 1e-2 && noise > 0.1 * scale {
                break;
            }
            let difference = slopes.difference(&along, step)?;
            line += &format!(", difference {difference:.4e} at {step}");
            if (difference - slope).abs() < 1e-2 * scale + noise {
                return Ok(());
            }
        }
    }
    Err(line)
}
