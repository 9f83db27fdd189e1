//! The coupling of all axes of every operator, as text ([`onnx_diffprune::couple::text`]), against what the operator's
//! specification implies. Every axis of a network's inputs is free here, including batch and positions. If a rule ties
//! too many axes, the text has too few letters; if it ties too few, too many letters.

mod elementwise;
mod fused;
mod indexing;
mod layers;
mod norms;
mod reducing;
mod shaping;

use std::collections::BTreeSet;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::AttributeProto;

use super::support::builder::{Builder, model_of, value_of};
use super::support::files::save;

/// An input of the node.
#[derive(Clone, Copy)]
enum In<'a> {
    /// An input of the network.
    X(&'a [i64]),
    /// A boolean input of the network.
    Truth(&'a [i64]),
    /// An input of the network that contains indices.
    Indices(&'a [i64]),
    /// A weight.
    W(&'a [i64]),
    /// A constant vector of integers.
    Ints(&'a [i64]),
    /// A constant integer.
    Int(i64),
    /// Constant integers of a shape.
    IntsOf(&'a [i64], &'a [i64]),
    /// A constant vector of floats.
    Floats(&'a [f32]),
    /// An omitted input.
    Omitted,
}

/// An operator with its expected text.
struct Case {
    /// The name in `docs/operators.md`: `Conv`, `m:GroupNorm`.
    op: String,
    opset: i64,
    build: Box<dyn Fn(&mut Builder)>,
    text: String,
}

/// Creates a case of one node for every operator in `op`, a list separated by blanks.
fn case(op: &str, inputs: &[In<'_>], attributes: &[AttributeProto], text: &str) -> Vec<Case> {
    op.split(' ').map(|op| node(op, 21, inputs, attributes, 1, text)).collect()
}

/// Creates such cases in another version of the standard operators.
fn in_opset(opset: i64, op: &str, inputs: &[In<'_>], attributes: &[AttributeProto], text: &str) -> Vec<Case> {
    op.split(' ').map(|op| node(op, opset, inputs, attributes, 1, text)).collect()
}

/// Creates such cases of nodes with several outputs.
fn outputs(count: usize, op: &str, inputs: &[In<'_>], attributes: &[AttributeProto], text: &str) -> Vec<Case> {
    op.split(' ').map(|op| node(op, 21, inputs, attributes, count, text)).collect()
}

/// Creates a case of a network. The text is that of its last node, which has the operator `op`.
fn network(op: &str, text: &str, build: impl Fn(&mut Builder) + 'static) -> Vec<Case> {
    vec![Case { op: op.to_owned(), opset: 21, build: Box::new(build), text: text.to_owned() }]
}

fn node(op: &str, opset: i64, inputs: &[In<'_>], attributes: &[AttributeProto], count: usize, text: &str) -> Case {
    let mut net = Builder::with_opset(opset, 1);
    let inputs: Vec<String> = inputs.iter().map(|input| add(&mut net, *input)).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    match op.strip_prefix("m:") {
        Some(op) => net.fused(op, &inputs, attributes, count),
        None => net.ops(op, &inputs, attributes, count),
    };
    let graph = net.graph;
    let build = Box::new(move |net: &mut Builder| net.graph = graph.clone());
    Case { op: op.to_owned(), opset, build, text: text.to_owned() }
}

/// Adds an input of a node. Returns its name.
fn add(net: &mut Builder, input: In<'_>) -> String {
    let mut declared = |elem_type: i32, dims: &[i64]| {
        let name = format!("x{}", net.graph.input.len());
        let sizes: Vec<String> = dims.iter().map(i64::to_string).collect();
        let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
        net.graph.input.push(value_of(&name, elem_type, Some(&sizes)));
        name
    };
    match input {
        In::X(dims) => declared(1, dims),
        In::Truth(dims) => declared(9, dims),
        In::Indices(dims) => declared(7, dims),
        In::W(dims) => net.weight(dims),
        In::Ints(values) => net.ints(values),
        In::Int(value) => net.ints_of(&[value], &[]),
        In::IntsOf(values, dims) => net.ints_of(values, dims),
        In::Floats(values) => net.floats(values, &[values.len() as i64]),
        In::Omitted => String::new(),
    }
}

/// Returns a description of the difference between expected and actual text, if there is one.
fn mistake(case: &Case) -> Option<String> {
    let mut net = Builder::with_opset(case.opset, 1);
    (case.build)(&mut net);
    let last = net.graph.node.last().unwrap();
    let read = last.output.iter().filter(|output| !output.is_empty());
    net.graph.output = read.map(|output| value_of(output, 1, None)).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), &model_of(case.opset, net.graph));
    let what = format!("{} in opset {}", case.op, case.opset);
    let analysis = match load(&path).and_then(|model| analyse(&model)) {
        Ok(analysis) => analysis,
        Err(error) => return Some(format!("{what}: {error}")),
    };
    let texts = analysis.free_coupling_texts();
    let found = texts.last().unwrap().as_deref().unwrap_or("computed ahead of time");
    (found != case.text).then(|| format!("{what}:\n  expected {}\n  found    {found}", case.text))
}

fn check(cases: Vec<Vec<Case>>) {
    let mistakes: Vec<String> = cases.iter().flatten().filter_map(mistake).collect();
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn every_operator_has_an_expected_text() {
    let all = [
        elementwise::cases(),
        fused::cases(),
        indexing::cases(),
        layers::cases(),
        norms::cases(),
        reducing::cases(),
        shaping::cases(),
    ];
    let covered: BTreeSet<&str> = all.iter().flatten().flatten().map(|case| case.op.as_str()).collect();
    let only_shapes = crate::shapes::covered();
    let registered = onnx_diffprune::ops::all().flat_map(|registration| registration.op_types());
    let missing: Vec<String> = registered
        .map(|op| if op.domain.is_empty() { op.name.to_owned() } else { format!("m:{}", op.name) })
        .filter(|op| !covered.contains(op.as_str()) && !only_shapes.contains(op.as_str()))
        .filter(|op| !crate::sequences::OPERATORS.contains(&op.as_str()))
        .collect();
    assert!(missing.is_empty(), "no case has an expected text for {}", missing.join(", "));
}
