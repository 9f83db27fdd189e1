//! Small files that claim or compute large values: the result is an error or an ordinary cut in little time and memory,
//! never an abort.

use std::time::{Duration, Instant};

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::graph::fact::{KNOWN_TOTAL, Known};
use onnx_diffprune::load::from_bytes;
use onnx_diffprune::onnx::{AttributeProto, GraphProto, ModelProto, TensorProto, attr_graph, attr_int, attr_tensor};
use onnx_diffprune::operator::couple::space::MOST_INDICES;
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;

use crate::support::builder::{Builder, model_of, node, value_of};

/// Far more time than any of these files takes in a debug build on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(60);

/// Builds two convolutions of an input with symbolic sizes, and the nodes of `build`, whose returned values are
/// outputs.
fn network(build: impl FnOnce(&mut Builder) -> Vec<String>) -> ModelProto {
    let mut n = Builder::with_opset(18, 1);
    let h = n.conv("x", 4, 8, 1, 1);
    let y = n.conv(&h, 8, 4, 1, 1);
    let outputs = [vec![y], build(&mut n)].concat();
    n.graph.input = vec![value_of("x", 1, Some(&["1", "4", "h", "w"]))];
    n.graph.output = outputs.iter().map(|name| value_of(name, 1, None)).collect();
    model_of(18, n.graph)
}

/// Analyses a small file and attempts a cut. Returns the analysis.
fn survives(what: &str, model: &ModelProto) -> Option<Analysis> {
    let bytes = model.encode_to_vec();
    assert!(bytes.len() < 16_384, "{what} takes {} bytes", bytes.len());
    let start = Instant::now();
    let analysis = from_bytes("bomb.onnx".as_ref(), bytes.into()).and_then(|model| analyse(&model)).ok();
    if let Some(analysis) = &analysis {
        let _ = cut(analysis, &PruneOptions::by_magnitude(Target::Ratio(0.5)), None);
        let known = analysis.facts.values.iter().flatten().filter_map(|fact| fact.known.as_ref());
        assert!(known.map(Known::len).sum::<usize>() <= KNOWN_TOTAL + 64 * analysis.facts.values.len(), "{what}");
        assert!(analysis.coupling.spaces.element_count() <= 2 * MOST_INDICES, "{what}");
    }
    assert!(start.elapsed() < MOST_TIME, "{what} took {:?}", start.elapsed());
    analysis
}

/// Applies `step` repeatedly, each time to the last output. Returns the final value.
fn repeated(n: &mut Builder, first: &str, times: usize, step: impl Fn(&mut Builder, &str) -> String) -> Vec<String> {
    vec![(0..times).fold(first.to_owned(), |last, _| step(n, &last))]
}

#[test]
fn values_that_double_in_every_node_are_bounded() {
    let doubled = |axis: i64| move |n: &mut Builder, v: &str| n.op("Concat", &[v, v], &[attr_int("axis", axis)]);
    let constants = network(|n| {
        let first = n.ints(&[1, 2, 3, 4]);
        repeated(n, &first, 45, doubled(0))
    });
    survives("Concat of constants", &constants).unwrap();
    let activations = network(|n| repeated(n, "Conv_0_0", 45, doubled(1)));
    survives("Concat of activations", &activations).unwrap();
    let tiled = network(|n| {
        let by = n.ints(&[1, 1 << 16, 1, 1]);
        repeated(n, "Conv_0_0", 6, |n, v| n.op("Tile", &[v, &by], &[]))
    });
    survives("Tile", &tiled).unwrap();
    let padded = network(|n| {
        let pads = n.ints(&[0, 1 << 40, 0, 0, 0, 0, 0, 0]);
        repeated(n, "Conv_0_0", 6, |n, v| n.op("Pad", &[v, &pads], &[]))
    });
    survives("Pad", &padded).unwrap();
    let enlarged = network(|n| {
        let by = n.floats(&[1.0, 1e6, 1e6, 1e6], &[4]);
        repeated(n, "Conv_0_0", 6, |n, v| n.op("Resize", &[v, "", &by], &[]))
    });
    survives("Resize", &enlarged).unwrap();
}

#[test]
fn large_constants_from_few_bytes_are_bounded() {
    for size in [60_000, 1 << 40] {
        let one = TensorProto::of_ints("", &[1], &[1]);
        let filled = network(|n| {
            let size = n.ints(&[size]);
            let of = |n: &mut Builder| n.op("ConstantOfShape", &[&size], &[attr_tensor("value", one.clone())]);
            (0..60).map(|_| of(n)).collect()
        });
        survives("ConstantOfShape", &filled).unwrap();
        let counted = network(|n| {
            let (zero, one, end) = (n.ints_of(&[0], &[]), n.ints_of(&[1], &[]), n.ints_of(&[size], &[]));
            (0..60).map(|_| n.op("Range", &[&zero, &end, &one], &[])).collect()
        });
        survives("Range", &counted).unwrap();
        let marked = network(|n| {
            let (places, depth, values) = (n.ints(&[1, 2, 3]), n.ints_of(&[size], &[]), n.ints(&[0, 1]));
            (0..40).map(|_| n.op("OneHot", &[&places, &depth, &values], &[])).collect()
        });
        survives("OneHot", &marked).unwrap();
        let repeats = network(|n| {
            let (one, to) = (n.ints(&[7]), n.ints(&[size]));
            (0..40).map(|_| n.op("Expand", &[&one, &to], &[])).collect()
        });
        survives("Expand", &repeats).unwrap();
    }
    // Combines many elements with many others by broadcasting.
    let outer = network(|n| {
        let (zero, one, end) = (n.ints_of(&[0], &[]), n.ints_of(&[1], &[]), n.ints_of(&[60_000], &[]));
        let row = n.op("Range", &[&zero, &end, &one], &[]);
        let (first, last) = (n.ints(&[0]), n.ints(&[1]));
        let (row, column) = (n.op("Unsqueeze", &[&row, &first], &[]), n.op("Unsqueeze", &[&row, &last], &[]));
        let mut outputs: Vec<String> =
            ["Add", "Mul", "Less", "Equal", "Mod", "Div"].iter().map(|op| n.op(op, &[&row, &column], &[])).collect();
        let nothing = n.op("Mul", &[&column, &zero], &[]);
        outputs.push(n.op("Gather", &[&row, &nothing], &[attr_int("axis", 0)]));
        outputs.push(n.op("Where", &[&outputs[2].clone(), &row, &column], &[]));
        outputs
    });
    survives("outer products", &outer).unwrap();
}

#[test]
fn sizes_that_are_squared_repeatedly_are_bounded() {
    for times in [6, 8, 40] {
        let squared = network(|n| {
            let shape = n.op("Shape", &["x"], &[]);
            let sum = n.op("ReduceSum", &[&shape], &[attr_int("keepdims", 0)]);
            repeated(n, &sum, times, |n, v| n.op("Mul", &[v, v], &[]))
        });
        survives("squares", &squared).unwrap();
        let nested = network(|n| {
            let shape = n.op("Shape", &["x"], &[]);
            let sum = n.op("ReduceSum", &[&shape], &[attr_int("keepdims", 0)]);
            let (one, three) = (n.ints_of(&[1], &[]), n.ints_of(&[3], &[]));
            repeated(n, &sum, times, |n, v| {
                let more = n.op("Add", &[v, &one], &[]);
                let most = n.op("Max", &[v, &more], &[]);
                let part = n.op("Div", &[&most, &three], &[]);
                n.op("Mul", &[&part, &more], &[])
            })
        });
        survives("nested divisions", &nested).unwrap();
    }
    let long = network(|n| {
        let shape = n.op("Shape", &["x"], &[]);
        let vector = repeated(n, &shape, 10, |n, v| n.op("Concat", &[v, v], &[attr_int("axis", 0)])).remove(0);
        ["ReduceSum", "ReduceProd", "ReduceMax"]
            .iter()
            .map(|op| n.op(op, &[&vector], &[attr_int("keepdims", 0)]))
            .collect()
    });
    survives("reductions of many sizes", &long).unwrap();
}

#[test]
fn values_with_too_many_axes_are_refused() {
    let model = network(|n| {
        let (one, many, whole) = (n.ints(&[1]), n.ints(&[60_000]), n.ints(&[0, 1, 2, 3]));
        let shape = n.op("Expand", &[&one, &many], &[]);
        let sum = n.op("ReduceSum", &["Conv_0_0", &whole], &[attr_int("keepdims", 0)]);
        vec![n.op("Reshape", &[&sum, &shape], &[])]
    });
    let model = from_bytes("bomb.onnx".as_ref(), model.encode_to_vec().into()).unwrap();
    let message = analyse(&model).unwrap_err().to_string();
    assert!(message.contains("at most 64 axes, found 60000") && message.contains("Reshape"), "{message}");
}

/// Builds nested graph attributes: every body contains the next one, down to a single node.
fn nested(depth: usize, op: &str, within: &dyn Fn(AttributeProto) -> Vec<AttributeProto>) -> AttributeProto {
    let name = |what: &str| format!("{what}{depth}");
    let mut inner = match depth {
        0 => node("", "Concat", &[&name("v"), &name("v")], &[&name("o")]),
        _ => node("", op, &["count", "", &name("v")], &[&name("o")]),
    };
    inner.attribute = match depth {
        0 => vec![attr_int("axis", 2)],
        _ => within(nested(depth - 1, op, within)),
    };
    let body = GraphProto {
        name: "body".to_owned(),
        node: vec![node("", "Identity", &[&name("c")], &[&name("d")]), inner],
        input: vec![
            value_of(&name("i"), 7, Some(&[])),
            value_of(&name("c"), 9, Some(&[])),
            value_of(&name("v"), 1, None),
        ],
        output: vec![value_of(&name("d"), 9, None), value_of(&name("o"), 1, None)],
        ..GraphProto::default()
    };
    attr_graph("body", body)
}

#[test]
fn nested_loops_are_bounded() {
    let loops = network(|n| {
        n.graph.initializer.push(TensorProto::of_ints("count", &[3], &[]));
        vec![n.op("Loop", &["count", "", "Conv_0_0"], &[nested(25, "Loop", &|body| vec![body])])]
    });
    survives("loops", &loops).unwrap();
}
