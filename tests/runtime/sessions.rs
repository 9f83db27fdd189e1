//! ONNX Runtime through the interface of this package: a real network, small models in every element type, external
//! data, and the errors of invalid libraries, models and inputs.
//!
//! The normal search finds the library, for instance in the `.venv` that `make venv` creates.

use std::collections::BTreeMap;
use std::path::Path;

use onnx_diffprune::array::{Array, ArrayData, ElementType};
use onnx_diffprune::onnx::{DataLocation, GraphProto, StringStringEntryProto, TensorProto};
use onnx_diffprune::runtime::random_inputs::{InputSpec, draw};
use onnx_diffprune::runtime::{
    BoundSession, Device, Optimization, Runtime, RuntimeError, RuntimeErrorKind, Session, SessionOptions, Transfer,
    find_library, interleaved_latency,
};
use prost::Message;

use crate::support::builder::{model_of, node, value_of};
use crate::support::fixtures::{fixture, runtime};

/// Opens a session for the trained network in the fixtures.
fn network(optimization: Optimization) -> Session {
    let options = SessionOptions { threads: Some(1), optimization, ..SessionOptions::default() };
    runtime().session_from_file(&fixture("ddpm_fashion16.onnx"), &options).unwrap()
}

/// Returns random inputs for a session.
fn inputs_of(session: &Session) -> Vec<(String, Array)> {
    let specs: Vec<InputSpec> = session.inputs().iter().map(InputSpec::from).collect();
    draw(&specs, &BTreeMap::new(), 3).unwrap()
}

/// Returns the bytes of a model with one node from `x` (and initializers) to `y`, of one axis named `n`.
fn model(operator: &str, element_type: i32, initializers: Vec<TensorProto>) -> Vec<u8> {
    let inputs: Vec<&str> = ["x"].into_iter().chain(initializers.iter().map(|tensor| tensor.name.as_str())).collect();
    let graph = GraphProto {
        name: "g".to_owned(),
        node: vec![node("", operator, &inputs, &["y"])],
        input: vec![value_of("x", element_type, Some(&["n"]))],
        output: vec![value_of("y", element_type, Some(&["n"]))],
        initializer: initializers,
        ..GraphProto::default()
    };
    model_of(17, graph).encode_to_vec()
}

#[test]
fn a_trained_network_runs_and_optimization_changes_little() {
    let mut session = network(Optimization::All);
    let input = &session.inputs()[0];
    assert_eq!((input.name.as_str(), input.element_type), ("sample", ElementType::F32));
    assert_eq!(input.dims, [None, Some(1), Some(16), Some(16)]);
    assert_eq!(input.symbols, [Some("batch".to_owned()), None, None, None]);
    assert_eq!(session.inputs()[1].element_type, ElementType::I64);
    let inputs = inputs_of(&session);
    let fast = session.run(&inputs).unwrap();
    assert_eq!(fast.len(), 1);
    assert_eq!((fast[0].0.as_str(), fast[0].1.dims.as_slice()), ("out_sample", [2, 1, 16, 16].as_slice()));
    let plain = network(Optimization::None).run(&inputs).unwrap();
    let difference = fast[0].1.to_f64().iter().zip(plain[0].1.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn sessions_are_measured_in_turns() {
    let (mut one, mut other) = (network(Optimization::All), network(Optimization::None));
    let inputs = inputs_of(&one);
    let measured = interleaved_latency(&mut [&mut one, &mut other], &[&inputs, &inputs], 5, 1, 60.0).unwrap();
    assert_eq!(measured.len(), 2);
    for latency in measured {
        assert_eq!(latency.run_count, 5);
        assert!(latency.min_ms > 0.0 && latency.min_ms <= latency.median_ms);
    }
    let limited = one.median_latency(&inputs, 1_000_000, 1, 0.0).unwrap();
    assert_eq!(limited.run_count, 1, "at least one run is measured, whatever the time limit");
    assert!(interleaved_latency(&mut [&mut one], &[], 1, 0, 1.0).is_err());
}

#[test]
fn every_element_type_can_be_input_and_output() {
    for code in [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16] {
        let element_type = ElementType::from_onnx(code).unwrap();
        let mut session =
            runtime().session_from_bytes(&model("Identity", code, vec![]), &SessionOptions::default()).unwrap();
        assert_eq!(session.inputs()[0].element_type, element_type);
        for values in [vec![0.0, 1.0, 1.0], vec![]] {
            let array = Array::from_f64(element_type, vec![values.len()], &values).unwrap();
            let outputs = session.run(&[("x".to_owned(), array.clone())]).unwrap();
            assert_eq!(outputs, [("y".to_owned(), array)]);
        }
    }
}

#[test]
fn external_data_is_found_in_the_given_folder() {
    let folder = tempfile::tempdir().unwrap();
    let weights: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|weight| weight.to_le_bytes()).collect();
    std::fs::write(folder.path().join("w.bin"), weights).unwrap();
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    let tensor = TensorProto {
        name: "w".to_owned(),
        data_type: 1,
        dims: vec![2],
        data_location: DataLocation::External as i32,
        external_data: vec![entry("location", "w.bin"), entry("offset", "0"), entry("length", "8")],
        ..Default::default()
    };
    let model = model("Add", 1, vec![tensor]);
    let options = SessionOptions { external_data_folder: Some(folder.path().to_owned()), ..Default::default() };
    let mut session = runtime().session_from_bytes(&model, &options).unwrap();
    let ones = Array::new(vec![2], ArrayData::F32(vec![1.0, 1.0])).unwrap();
    let outputs = session.run(&[("x".to_owned(), ones)]).unwrap();
    assert_eq!(outputs[0].1.data, ArrayData::F32(vec![2.5, -1.0]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no other file should be left in the folder");
    let elsewhere = tempfile::tempdir().unwrap();
    let options = SessionOptions { external_data_folder: Some(elsewhere.path().to_owned()), ..Default::default() };
    assert_eq!(runtime().session_from_bytes(&model, &options).unwrap_err().kind(), RuntimeErrorKind::Model);
}

#[test]
fn invalid_models_are_errors() {
    let options = SessionOptions::default();
    for bytes in [b"".as_slice(), b"not a model", &model("NoSuchOperator", 1, vec![]), &model("Relu", 9, vec![])] {
        let error = runtime().session_from_bytes(bytes, &options).unwrap_err();
        assert_eq!(error.kind(), RuntimeErrorKind::Model, "{error}");
    }
    let error = runtime().session_from_file(Path::new("absent.onnx"), &options).unwrap_err();
    assert!(error.to_string().contains("absent.onnx"), "{error}");
    let error = runtime().session_from_bytes(&model("Identity", 8, vec![]), &options).unwrap_err();
    assert!(matches!(error, RuntimeError::UnsupportedType { .. }), "{error}");
}

#[test]
fn errors_of_inputs_name_the_input() {
    let mut session = network(Optimization::Basic);
    let inputs = inputs_of(&session);
    let without = session.run(&inputs[..1]).unwrap_err();
    assert_eq!(without.to_string(), "input \"timestep\" of the model is missing");
    let mut other = inputs.clone();
    other[1].0 = "step".to_owned();
    assert!(session.run(&other).unwrap_err().to_string().contains("\"sample\", \"timestep\""));
    let mut other = inputs.clone();
    other[1].1 = other[1].1.cast(ElementType::F32);
    assert_eq!(session.run(&other).unwrap_err().to_string(), "input \"timestep\" must be int64, found float32");
    let mut other = inputs.clone();
    other[0].1 = Array::from_f64(ElementType::F32, vec![2, 1, 16, 8], &[0.0; 256]).unwrap();
    let error = session.run(&other).unwrap_err();
    assert_eq!(error.to_string(), "input \"sample\" must be [batch, 1, 16, 16], found [2, 1, 16, 8]");
    assert_eq!(error.kind(), RuntimeErrorKind::Input);
    let mut other = inputs;
    other[0].1.dims = vec![3, 1, 16, 16];
    assert!(session.run(&other).is_err(), "too few elements for the dimensions should be an error");
}

#[test]
fn the_library_is_known_and_stays_loaded() {
    let runtime = runtime();
    assert!(runtime.version().starts_with("1."));
    assert!(runtime.execution_providers().contains(&"CPUExecutionProvider".to_owned()));
    let again = Runtime::open(Some(runtime.library())).unwrap();
    assert!(std::ptr::eq(runtime, again));
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("libonnxruntime.so");
    std::fs::write(&wrong, "not a library").unwrap();
    let error = Runtime::open(Some(&wrong)).unwrap_err();
    assert_eq!(error.kind(), RuntimeErrorKind::Library);
    assert!(error.hint().unwrap().contains("pip install onnxruntime"));
    assert_eq!(find_library(Some(runtime.library())).unwrap().version, runtime.version());
}

#[test]
fn tensors_are_copied_by_a_graph_as_in_place() {
    let bound = BoundSession::new(network(Optimization::None)).unwrap();
    for mut transfer in
        [Transfer::new(runtime(), Device::Cpu).unwrap(), Transfer::by_graph(runtime(), Device::Cpu).unwrap()]
    {
        // Tensors of several shapes, one of them a scalar.
        for dims in [vec![2, 3], vec![], vec![5]] {
            let values: Vec<f32> = (0..dims.iter().product()).map(|at: usize| at as f32 - 1.5).collect();
            let (mut first, mut second) = (bound.device_tensor(&dims).unwrap(), bound.device_tensor(&dims).unwrap());
            transfer.write(&values, &mut first).unwrap();
            transfer.copy(&first, &mut second).unwrap();
            transfer.write(&vec![7.0; values.len()], &mut first).unwrap();
            assert_eq!(transfer.read(&second).unwrap(), values);
            assert_eq!(transfer.read(&first).unwrap(), vec![7.0; values.len()]);
            let error = transfer.write(&[0.0; 9], &mut first).unwrap_err();
            assert!(error.to_string().contains("9 elements"), "{error}");
        }
    }
}
