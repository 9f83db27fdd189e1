#![allow(clippy::unwrap_used)]
use std::path::Path;

use prost::Message;

use super::sizes::affordable_within;
use super::*;
use crate::analysis::analyse;
use crate::array::ArrayData;
use crate::load::from_bytes;
use crate::onnx::tensor_shape_proto::Dimension;
use crate::onnx::tensor_shape_proto::dimension::Value;
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

fn value(name: &str, sizes: &[&str]) -> ValueInfoProto {
    let dim = |size: &&str| Dimension {
        value: Some(size.parse().map_or_else(|_| Value::DimParam((*size).to_owned()), Value::DimValue)),
        ..Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// `x @ w + c`, where x and c have declared sizes.
fn analysis(x: &[&str], c: &[&str]) -> Analysis {
    let node = |op: &str, inputs: [&str; 2], output: &str| NodeProto {
        op_type: op.to_owned(),
        input: inputs.map(str::to_owned).to_vec(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![node("MatMul", ["x", "w"], "m"), node("Add", ["m", "c"], "y")],
        initializer: vec![TensorProto::of_floats("w", &[0.5; 16], &[4, 4])],
        input: vec![value("x", x), value("c", c)],
        output: vec![ValueInfoProto { name: "y".to_owned(), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() };
    analyse(&from_bytes(Path::new("m.onnx"), model.encode_to_vec().into()).unwrap()).unwrap()
}

fn array(rows: usize, width: usize) -> Array {
    let values = (0..rows * width).map(|at| (at / width) as f32).collect();
    Array::new(vec![rows, width], ArrayData::F32(values)).unwrap()
}

fn options<'a>(inputs: &'a [(String, Array)], sizes: &'a Sizes) -> InputOptions<'a> {
    InputOptions { inputs: Some(inputs), sizes, seed: 0, purpose: Purpose::Verification }
}

#[test]
fn the_number_of_rows_follows_the_sizes() {
    let analysis = analysis(&["batch", "4"], &["batch", "4"]);
    let (all, sizes) = (vec![("c".to_owned(), array(2048, 4)), ("x".to_owned(), array(2048, 4))], Sizes::new());
    for given in [&all[..1], &all[..]] {
        let variants = input_variants(&analysis, &options(given, &sizes)).unwrap();
        let rows = |inputs: &[(String, Array)]| inputs.iter().map(|(_, array)| array.dims[0]).collect::<Vec<_>>();
        assert_eq!(rows(&variants[0].1), [1, 1]);
        assert_eq!(rows(&variants[1].1), [2, 2]);
        // The last variant has all rows, in case the network refuses the others.
        assert_eq!(rows(&variants.last().unwrap().1), [2048, 2048]);
        let c = variants[1].1.iter().find(|(name, _)| name == "c").unwrap();
        assert_eq!(c.1.to_f64().iter().step_by(4).copied().collect::<Vec<_>>(), [512.0, 1536.0]);
    }
    // A size given by the user is used for all variants, and an array with few rows limits the sizes.
    let sizes = Sizes::from([("batch".to_owned(), 5)]);
    let variants = input_variants(&analysis, &options(&all, &sizes)).unwrap();
    assert!(variants.iter().all(|(_, inputs)| inputs[0].1.dims[0] == 5), "{}", variants.len());
    let two = [("c".to_owned(), array(2, 4))];
    let variants = input_variants(&analysis, &options(&two, &Sizes::new())).unwrap();
    assert_eq!(variants.iter().map(|(sizes, _)| sizes["batch"]).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn sizes_that_exceed_memory_are_left_out_or_refused() {
    let sizes = Sizes::new();
    let symbolic = analysis(&["batch", "tokens", "4"], &["4"]);
    let all = affordable_within(None, &symbolic, &options(&[], &sizes)).unwrap();
    let needed = |sizes: &Sizes| {
        let footprint = Footprint::of(&symbolic.model, &symbolic.graph, &symbolic.facts, sizes).unwrap();
        footprint.verification()
    };
    let least = all.iter().map(|(_, sizes)| needed(sizes)).min().unwrap();
    let some = affordable_within(Some(least), &symbolic, &options(&[], &sizes)).unwrap();
    assert!(!some.is_empty() && some.len() < all.len(), "{some:?} of {all:?}");
    let error = affordable_within(Some(least - 1), &symbolic, &options(&[], &sizes)).unwrap_err();
    assert!(error.advice().unwrap().contains("--size"), "{error}");
    let huge = analysis(&["1", "4000000", "1000000", "4"], &["4"]);
    let error = affordable_within(Some(1 << 40), &huge, &options(&[], &sizes)).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let text = error.to_string();
    assert!(text.contains("x [1, 4000000, 1000000, 4]") && text.contains("GiB"), "{text}");
    assert!(error.advice().unwrap().contains("fixes all sizes"), "{error}");
}
