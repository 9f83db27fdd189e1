#![allow(clippy::unwrap_used)]

use super::*;
use crate::onnx::attribute_proto::AttributeType;
use crate::onnx::{ValueInfoProto, attr_float, attr_int};

fn node(name: &str, op: (&str, &str), inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: name.to_owned(),
        domain: op.0.to_owned(),
        op_type: op.1.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        ..NodeProto::default()
    }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: name.to_owned(),
        domain: "local".to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        node: nodes,
        opset_import: vec![import("", 17)],
        ..FunctionProto::default()
    }
}

fn import(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.to_owned(), version }
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() }
}

fn model(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    ModelProto {
        opset_import: vec![import("", 17), import("local", 1)],
        graph: Some(GraphProto {
            node: nodes,
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        functions,
        ..ModelProto::default()
    }
}

fn inlined(mut model: ModelProto) -> Result<ModelProto, String> {
    inline_functions(&mut model).map(|()| model)
}

/// Formats every node as `name: op(inputs) -> outputs`.
fn lines(nodes: &[NodeProto]) -> Vec<String> {
    let line = |node: &NodeProto| {
        format!("{}: {}({}) -> {}", node.name, node.op_type, node.input.join(", "), node.output.join(", "))
    };
    nodes.iter().map(line).collect()
}

fn body(model: &ModelProto) -> &[NodeProto] {
    &model.graph.as_ref().unwrap().node
}

fn reference(name: &str, to: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ref_attr_name: to.to_owned(),
        r#type: AttributeType::Float as i32,
        ..AttributeProto::default()
    }
}

#[test]
fn nested_calls_get_unique_names() {
    let silu = function(
        "silu",
        &["a"],
        &["b"],
        vec![node("sig", ("", "Sigmoid"), &["a"], &["s"]), node("", ("", "Mul"), &["a", "s"], &["b"])],
    );
    let twice = function(
        "twice",
        &["a"],
        &["b"],
        vec![node("one", ("local", "silu"), &["a"], &["t"]), node("two", ("local", "silu"), &["t"], &["b"])],
    );
    let unused = function("unused", &[], &[], vec![node("", ("local", "unused"), &[], &[])]);
    let calls = vec![node("call", ("local", "twice"), &["x"], &["m"]), node("", ("local", "silu"), &["m"], &["y"])];
    let model = inlined(model(calls, vec![twice, silu, unused])).unwrap();
    assert!(model.functions.is_empty());
    assert_eq!(
        lines(body(&model)),
        [
            "call/one/sig: Sigmoid(x) -> call/one/s",
            "call/one/Mul_1: Mul(x, call/one/s) -> call/t",
            "call/two/sig: Sigmoid(call/t) -> call/two/s",
            "call/two/Mul_1: Mul(call/t, call/two/s) -> m",
            "y/sig: Sigmoid(m) -> y/s",
            "y/Mul_1: Mul(m, y/s) -> y",
        ]
    );
}

#[test]
fn names_that_are_in_use_get_a_number() {
    let f = function(
        "f",
        &["a"],
        &["b"],
        vec![node("n", ("", "Relu"), &["a"], &["t"]), node("m", ("", "Relu"), &["t"], &["b"])],
    );
    let nodes = vec![
        node("c/n", ("", "Abs"), &["x"], &["c/t"]),
        node("c", ("local", "f"), &["c/t"], &["q"]),
        node("c", ("local", "f"), &["q"], &["y"]),
    ];
    let model = inlined(model(nodes, vec![f])).unwrap();
    let outputs: Vec<&str> = body(&model).iter().map(|node| node.output[0].as_str()).collect();
    assert_eq!(outputs, ["c/t", "c/t_1", "q", "c_1/t", "y"]);
    let names: HashSet<&str> = body(&model).iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names.len(), 5);
}

#[test]
fn attributes_come_from_the_call_or_the_default_or_are_absent() {
    let mut relu = node("r", ("", "LeakyRelu"), &["a"], &["b"]);
    relu.attribute = vec![reference("alpha", "slope"), reference("beta", "other"), attr_int("axis", 2)];
    let mut f = function("f", &["a"], &["b"], vec![relu]);
    f.attribute = vec!["other".to_owned()];
    f.attribute_proto = vec![attr_float("slope", 0.25)];
    let mut first = node("first", ("local", "f"), &["x"], &["m"]);
    first.attribute = vec![attr_float("slope", 0.5), attr_float("other", 1.5)];
    let second = node("second", ("local", "f"), &["m"], &["y"]);
    let model = inlined(model(vec![first, second], vec![f])).unwrap();
    assert_eq!(body(&model)[0].attribute, [attr_float("alpha", 0.5), attr_float("beta", 1.5), attr_int("axis", 2)]);
    assert_eq!(body(&model)[1].attribute, [attr_float("alpha", 0.25), attr_int("axis", 2)]);
}

#[test]
fn omitted_inputs_stay_omitted_and_omitted_outputs_get_inner_names() {
    let f = function(
        "f",
        &["a", "low", "high"],
        &["b", "extra"],
        vec![
            node("clip", ("", "Clip"), &["a", "low", "high"], &["b"]),
            node("abs", ("", "Abs"), &["b"], &["extra"]),
            node("neg", ("", "Neg"), &["extra"], &["unread"]),
        ],
    );
    let model = inlined(model(vec![node("c", ("local", "f"), &["x", "", "high"], &["y", ""])], vec![f])).unwrap();
    assert_eq!(
        lines(body(&model)),
        ["c/clip: Clip(x, , high) -> y", "c/abs: Abs(y) -> c/extra", "c/neg: Neg(c/extra) -> c/unread"]
    );
}

#[test]
fn an_input_that_is_an_output_becomes_an_identity() {
    let f = function("f", &["a"], &["a"], vec![]);
    let model = inlined(model(vec![node("c", ("local", "f"), &["x"], &["y"])], vec![f])).unwrap();
    assert_eq!(lines(body(&model)), ["c/Identity: Identity(x) -> y"]);
}

fn branch(nodes: Vec<NodeProto>, output: &str) -> AttributeProto {
    AttributeProto {
        name: "then_branch".to_owned(),
        r#type: AttributeType::Graph as i32,
        g: Some(GraphProto { node: nodes, output: vec![value(output)], ..GraphProto::default() }),
        ..AttributeProto::default()
    }
}

#[test]
fn calls_in_subgraphs_and_subgraphs_in_functions_are_inlined() {
    let relu = function("relu", &["a"], &["b"], vec![node("r", ("", "Relu"), &["a"], &["b"])]);
    let mut choose = node("if", ("", "If"), &["cond"], &["b"]);
    choose.attribute = vec![branch(vec![node("in", ("local", "relu"), &["a"], &["t"])], "t")];
    let f = function("f", &["a"], &["b"], vec![node("c", ("", "IsInf"), &["a"], &["cond"]), choose]);
    let mut outer = node("outer", ("", "If"), &["flag"], &["y"]);
    outer.attribute = vec![branch(vec![node("call", ("local", "f"), &["x"], &["z"])], "z")];
    let model = inlined(model(vec![outer], vec![relu, f])).unwrap();
    let outer = body(&model)[0].attribute[0].g.as_ref().unwrap();
    assert_eq!(lines(&outer.node), ["call/c: IsInf(x) -> call/cond", "call/if: If(call/cond) -> z"]);
    let inner = outer.node[1].attribute[0].g.as_ref().unwrap();
    assert_eq!(lines(&inner.node), ["call/in/r: Relu(x) -> call/t"]);
    assert_eq!(inner.output[0].name, "call/t");
}

#[test]
fn functions_are_found_by_domain_name_and_overload() {
    let mut a = function("f", &["a"], &["b"], vec![node("n", ("", "Relu"), &["a"], &["b"])]);
    let mut b = function("f", &["a"], &["b"], vec![node("n", ("", "Abs"), &["a"], &["b"])]);
    a.overload = "one".to_owned();
    b.overload = "two".to_owned();
    let mut call = node("c", ("local", "f"), &["x"], &["m"]);
    call.overload = "two".to_owned();
    let other = node("d", ("elsewhere", "f"), &["m"], &["y"]);
    let model = inlined(model(vec![call, other], vec![a, b])).unwrap();
    let ops: Vec<&str> = body(&model).iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(ops, ["Abs", "f"]);
}

#[test]
fn operator_sets_must_agree_and_new_domains_are_imported() {
    let mut f = function("f", &["a"], &["b"], vec![node("n", ("com.microsoft", "Gelu"), &["a"], &["b"])]);
    f.opset_import = vec![import("ai.onnx", 17), import("com.microsoft", 1)];
    let calls = || vec![node("c", ("local", "f"), &["x"], &["y"])];
    let good = inlined(model(calls(), vec![f.clone()])).unwrap();
    assert!(good.opset_import.contains(&import("com.microsoft", 1)));
    assert_eq!(good.opset_import.len(), 3);
    f.opset_import[0].version = 18;
    let message = inlined(model(calls(), vec![f])).unwrap_err();
    assert!(message.contains("local::f") && message.contains("18") && message.contains("17"), "{message}");
}

#[test]
fn contradictions_are_errors_that_name_the_function() {
    let own = function("own", &["a"], &["b"], vec![node("n", ("local", "other"), &["a"], &["b"])]);
    let other = function("other", &["a"], &["b"], vec![node("n", ("local", "own"), &["a"], &["b"])]);
    let call = |inputs: &[&str]| vec![node("call", ("local", "own"), inputs, &["y"])];
    let relu = |reads: &str, gives: &str| node("n", ("", "Relu"), &[reads], &[gives]);
    let bad = [
        (call(&["x"]), vec![own, other], "calls itself"),
        (call(&["x", "x"]), vec![function("own", &["a"], &["b"], vec![relu("a", "b")])], "at most 1 inputs"),
        (call(&["x"]), vec![function("own", &["a"], &["b"], vec![relu("q", "b")])], "\"q\""),
        (call(&["x"]), vec![function("own", &["a"], &["b"], vec![relu("a", "c")])], "defines its output \"b\""),
        (call(&["x"]), vec![function("own", &["a"], &["b"], vec![relu("a", "a")])], "defined twice"),
        (call(&["x"]), vec![function("own", &[], &[], vec![]), function("own", &[], &[], vec![])], "defined twice"),
    ];
    for (nodes, functions, culprit) in bad {
        let message = inlined(model(nodes, functions)).unwrap_err();
        assert!(message.contains(culprit) && message.contains("local::own"), "{message}");
    }
}

#[test]
fn functions_that_grow_without_bound_are_errors() {
    let name = |at: usize| format!("f{at}");
    let doubling = |at: usize| {
        let calls = |slot: usize| {
            let (reads, gives) = (["a", "t"][slot], ["t", "b"][slot]);
            node("n", ("local", &name(at + 1)), &[reads], &[gives])
        };
        function(&name(at), &["a"], &["b"], vec![calls(0), calls(1)])
    };
    let mut functions: Vec<FunctionProto> = (0..30).map(doubling).collect();
    functions.push(function(&name(30), &["a"], &["b"], vec![node("n", ("", "Relu"), &["a"], &["b"])]));
    let message = inlined(model(vec![node("c", ("local", "f0"), &["x"], &["y"])], functions)).unwrap_err();
    assert!(message.contains("nodes"), "{message}");
}
