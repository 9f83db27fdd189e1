//! The rows of every operator's linear map, multiplied by its weight, equal the output of ONNX Runtime.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use prost::Message;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::Rows;
use crate::array::{Array, ArrayData};
use crate::gradient::value_info;
use crate::graph::Graph;
use crate::infer::infer;
use crate::load::from_bytes;
use crate::onnx::{
    AttributeProto, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attr_float, attr_int,
    attr_ints, attr_string,
};
use crate::ops;
use crate::refit::network::Network;
use crate::refit::stored::elements;
use crate::runtime::{Runtime, SessionOptions};

/// One node between the input `x` and the output `y`.
struct Case {
    op: &'static str,
    /// The inputs in order.
    inputs: &'static [&'static str],
    attributes: Vec<AttributeProto>,
    x: Vec<i64>,
    /// Constants by name.
    constants: Vec<(&'static str, Vec<i64>)>,
}

fn floats(random: &mut Pcg64Mcg, dims: &[i64]) -> Vec<f32> {
    (0..dims.iter().product::<i64>()).map(|_| random.random_range(-1.0..1.0)).collect()
}

impl Case {
    fn model(&self, random: &mut Pcg64Mcg) -> ModelProto {
        let node = NodeProto {
            name: "node".to_owned(),
            op_type: self.op.to_owned(),
            input: self.inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec!["y".to_owned()],
            attribute: self.attributes.clone(),
            ..NodeProto::default()
        };
        let tensor = |(name, dims): &(&str, Vec<i64>)| TensorProto::of_floats(name, &floats(random, dims), dims);
        let mut output = value_info("y", DataType::Float, &[]);
        output.r#type = None;
        let graph = GraphProto {
            name: "net".to_owned(),
            node: vec![node],
            initializer: self.constants.iter().map(tensor).collect(),
            input: vec![value_info("x", DataType::Float, &self.x)],
            output: vec![output],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 21 }];
        ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }
    }

    /// Compares the rows with ONNX Runtime, and returns the number of groups.
    fn check(&self, what: &str, random: &mut Pcg64Mcg) -> usize {
        let proto = self.model(random);
        let bytes = proto.encode_to_vec();
        let model = from_bytes(Path::new("net.onnx"), bytes.clone().into()).unwrap();
        let graph = Graph::new(&model).unwrap();
        let operators = ops::parse(&graph);
        let facts = infer(&model, &graph, &operators).unwrap();
        let network = Network::new(&model, &graph, &operators, &facts).unwrap();
        let node = &network.graph().nodes[0];
        let linear = network.linear(node).unwrap_or_else(|| panic!("{what}: no linear map"));
        let shape = |slot: usize| network.shape(node.input(slot).unwrap()).unwrap();
        let y_shape = network.shape(node.output(0).unwrap()).unwrap();
        let rows = Rows::new(&linear, &shape(linear.input), &shape(linear.weight), &y_shape);
        let rows = rows.unwrap_or_else(|| panic!("{what}: no rows"));
        let x = floats(random, &self.x);
        let array = Array { dims: self.x.iter().map(|size| *size as usize).collect(), data: ArrayData::F32(x.clone()) };
        let mut session = Runtime::open(None).unwrap().session_from_bytes(&bytes, &SessionOptions::default()).unwrap();
        let (_, found) = session.run(&[("x".to_owned(), array)]).unwrap().remove(0);
        assert_eq!(found.dims, y_shape, "{what}");
        let ArrayData::F32(y) = found.data else { panic!("{what}") };
        let constant = |slot: usize| {
            let name = &node.proto.input[slot];
            elements(proto.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name == *name).unwrap())
                .unwrap()
        };
        let weight = constant(linear.weight);
        let bias = linear.bias.filter(|bias| node.input(bias.slot).is_some());
        let bias = bias.map(|bias| (bias.scale as f32, constant(bias.slot)));
        let all: Vec<usize> = (0..rows.count()).collect();
        let (columns, outputs) = (rows.columns(), rows.outputs());
        assert_eq!(rows.count() * outputs * rows.groups(), y.len(), "{what}: every element is in one equation");
        for group in 0..rows.groups() {
            // Columns of another layer come before and after.
            let stride = columns + 3;
            let mut gathered = vec![9.0; all.len() * stride];
            rows.gather(&x, group, &all, (&mut gathered, stride, 2));
            let mut targets = vec![0.0; all.len() * outputs];
            rows.targets(&y, group, &all, &mut targets);
            let matrix: Vec<f32> = rows.places(group).map(|place| weight[place]).collect();
            for (row, targets) in gathered.chunks(stride).zip(targets.chunks(outputs)) {
                assert_eq!((row[0], row[1], row[stride - 1]), (9.0, 9.0, 9.0), "{what}");
                for (output, target) in targets.iter().enumerate() {
                    let x = &row[2..2 + columns];
                    let mut sum: f32 = x.iter().enumerate().map(|(at, x)| x * matrix[at * outputs + output]).sum();
                    sum *= linear.scale as f32;
                    if let Some((scale, bias)) = &bias {
                        sum += scale * bias[group * outputs + output];
                    }
                    assert!((sum - target).abs() < 1e-4 * (1.0 + columns as f32), "{what}: {sum}, expected {target}");
                }
            }
        }
        rows.groups()
    }
}

/// Returns a random convolution over this many axes.
fn convolution(random: &mut Pcg64Mcg, axes: usize, is_transposed: bool) -> Case {
    let mut draw = |low: i64, high: i64| random.random_range(low..=high);
    let group = draw(1, 3);
    // Depthwise convolutions have one channel per group.
    let (inner, outer) = if draw(0, 2) == 0 { (1, draw(1, 2)) } else { (draw(1, 4), draw(1, 3)) };
    let mut each = |low: i64, high: i64| -> Vec<i64> { (0..axes).map(|_| draw(low, high)).collect() };
    let (kernel, mut strides, dilations) = (each(1, 3), each(1, 3), each(1, 2));
    let sizes = each(5, 7);
    let (pads, padding, auto) =
        (each(0, 1).into_iter().chain(each(0, 1)).collect::<Vec<_>>(), each(0, 0), each(0, 4)[0]);
    if is_transposed && auto < 2 {
        // If a stride is larger than the kernel, ONNX Runtime's output is smaller than specified.
        strides.iter_mut().zip(&kernel).for_each(|(stride, kernel)| *stride = (*stride).min(*kernel));
    }
    let mut attributes = vec![attr_ints("strides", &strides), attr_int("group", group)];
    // ONNX Runtime does not support auto_pad with dilations.
    match auto {
        0 => attributes.push(attr_string("auto_pad", "SAME_UPPER")),
        1 => attributes.push(attr_string("auto_pad", "SAME_LOWER")),
        2 => attributes.push(attr_string("auto_pad", "VALID")),
        _ => attributes.extend([attr_ints("pads", &pads), attr_ints("dilations", &dilations)]),
    }
    if is_transposed && auto > 2 {
        // Must be smaller than the stride or the extent of the kernel.
        let padding = padding.iter().zip(&strides).map(|(_, stride)| (stride - 1).min(1)).collect::<Vec<_>>();
        attributes.push(attr_ints("output_padding", &padding));
    }
    let weight = if is_transposed { [group * inner, outer] } else { [group * outer, inner] };
    let constants = vec![("w", weight.into_iter().chain(kernel).collect()), ("b", vec![group * outer])];
    let x = [2, group * inner].into_iter().chain(sizes).collect();
    let op = if is_transposed { "ConvTranspose" } else { "Conv" };
    Case { op, inputs: &["x", "w", "b"], attributes, x, constants }
}

#[test]
fn convolutions() {
    for is_transposed in [false, true] {
        for axes in 1..=3 {
            let mut random = Pcg64Mcg::seed_from_u64(axes as u64);
            let mut groups = 0;
            for number in 0..24 {
                let case = convolution(&mut random, axes, is_transposed);
                let what = format!("{} {number} of {:?}: {:?}", case.op, case.x, case.attributes);
                groups = groups.max(case.check(&what, &mut random));
            }
            assert_eq!(groups, 3);
        }
    }
}

#[test]
fn matrix_products() {
    let mut random = Pcg64Mcg::seed_from_u64(3);
    // The shapes of input and weight, whether the weight is on the left, and the number of groups: leading common axes.
    let cases: [(&[i64], &[i64], bool, usize); 9] = [
        (&[4, 5], &[5, 3], false, 1),
        (&[2, 4, 5], &[5, 3], false, 1),
        (&[2, 3, 4, 5], &[5, 6], false, 1),
        (&[2, 4, 5], &[2, 5, 3], false, 2),
        (&[2, 3, 4, 5], &[2, 3, 5, 3], false, 6),
        (&[2, 3, 4, 5], &[3, 5, 3], false, 3),
        (&[5, 4], &[3, 5], true, 1),
        (&[2, 5, 4], &[3, 5], true, 1),
        (&[2, 5, 4], &[2, 3, 5], true, 2),
    ];
    for (x, w, is_left, groups) in cases {
        let inputs: &[&str] = if is_left { &["w", "x"] } else { &["x", "w"] };
        let case = Case { op: "MatMul", inputs, attributes: vec![], x: x.to_vec(), constants: vec![("w", w.to_vec())] };
        assert_eq!(case.check(&format!("{inputs:?} of {x:?} and {w:?}"), &mut random), groups);
    }
}

#[test]
fn gemm_with_all_flags() {
    let mut random = Pcg64Mcg::seed_from_u64(4);
    for flags in 0..16 {
        let (trans_a, trans_b, is_left, has_bias) =
            (flags & 1, flags >> 1 & 1, flags >> 2 & 1 == 1, flags >> 3 & 1 == 1);
        let turned = |dims: [i64; 2], is: i64| if is == 1 { vec![dims[1], dims[0]] } else { dims.to_vec() };
        let (a, b) = (turned([4, 5], trans_a), turned([5, 3], trans_b));
        let attributes = vec![
            attr_int("transA", trans_a),
            attr_int("transB", trans_b),
            attr_float("alpha", 0.5),
            attr_float("beta", 2.0),
        ];
        let (x, w) = if is_left { (b, a) } else { (a, b) };
        // A bias along the columns is along the outputs only if B is the weight.
        let has_bias = has_bias && !is_left;
        let inputs: &[&str] = match (is_left, has_bias) {
            (true, _) => &["w", "x"],
            (false, true) => &["x", "w", "b"],
            (false, false) => &["x", "w"],
        };
        let mut constants = vec![("w", w)];
        constants.extend(has_bias.then(|| ("b", vec![3])));
        let case = Case { op: "Gemm", inputs, attributes, x, constants };
        case.check(&format!("flags {flags}"), &mut random);
    }
}

/// An equation, the shapes of both operands, whether the weight is the first, and the number of groups.
type Product<'a> = (&'a str, &'a [i64], &'a [i64], bool, usize);

#[test]
fn einsum_with_a_constant() {
    let mut random = Pcg64Mcg::seed_from_u64(5);
    let cases: [Product; 6] = [
        ("bij,jk->bik", &[2, 3, 4], &[4, 5], false, 1),
        ("bchw,oc->bohw", &[2, 4, 3, 3], &[5, 4], false, 1),
        ("oc,bcn->bno", &[2, 4, 3], &[5, 4], true, 1),
        ("bhid,hde->bhie", &[2, 3, 4, 5], &[3, 5, 2], false, 3),
        ("bnd,dhk->bhnk", &[2, 3, 4], &[4, 2, 5], false, 1),
        ("bihd,hdo->bio", &[2, 3, 2, 4], &[2, 4, 5], false, 1),
    ];
    for (equation, x, w, is_first, groups) in cases {
        let inputs: &[&str] = if is_first { &["w", "x"] } else { &["x", "w"] };
        let attributes = vec![attr_string("equation", equation)];
        let case = Case { op: "Einsum", inputs, attributes, x: x.to_vec(), constants: vec![("w", w.to_vec())] };
        assert_eq!(case.check(equation, &mut random), groups);
    }
}
