//! Models with external data.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use onnx_diffprune::graph::digest::DigestKind;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{
    DataLocation, DataType, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto,
    attr_tensor,
};
use onnx_diffprune::write::{Edits, InitializerOut, NodeOut, write};
use prost::Message;

use crate::support::builder::{model_of, node};

fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto { key: (*key).into(), value: (*value).into() };
    TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float as i32,
        dims: dims.to_vec(),
        data_location: DataLocation::External as i32,
        external_data: entries.iter().map(entry).collect(),
        ..TensorProto::default()
    }
}

fn model(initializers: Vec<TensorProto>, constant: Option<TensorProto>) -> ModelProto {
    let mut nodes = vec![node("matmul", "MatMul", &["x", "a"], &["t"]), node("add", "Add", &["t", "b"], &["y"])];
    if let Some(tensor) = constant {
        let node = node("c", "Constant", &[], &["unused"]);
        nodes.push(NodeProto { attribute: vec![attr_tensor("value", tensor)], ..node });
    }
    let untyped = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
    let graph = GraphProto {
        node: nodes,
        initializer: initializers,
        input: vec![untyped("x")],
        output: vec![untyped("y")],
        ..GraphProto::default()
    };
    model_of(17, graph)
}

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// Creates a folder with a model: a [64, 32] and a [32] weight in two files, and a constant of a node in one of them.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut first = vec![7; 100];
    first.extend(floats(64 * 32));
    fs::write(folder.path().join("first.bin"), first).unwrap();
    fs::create_dir(folder.path().join("more")).unwrap();
    fs::write(folder.path().join("more/second.bin"), floats(36)).unwrap();
    let a = external("a", &[64, 32], &[("location", "./first.bin"), ("offset", "100"), ("length", "8192")]);
    let b = external("b", &[32], &[("location", "more/second.bin")]);
    let b = TensorProto { dims: vec![36], ..b };
    let c = external("c", &[2], &[("location", "more/second.bin"), ("offset", "8"), ("length", "8")]);
    fs::write(folder.path().join("model.onnx"), model(vec![a, b], Some(c)).encode_to_vec()).unwrap();
    folder
}

fn originals(nodes: usize) -> Vec<NodeOut> {
    (0..nodes).map(NodeOut::Original).collect()
}

#[test]
fn external_data_with_offsets_is_read_without_copies() {
    let folder = folder();
    let model = load(&folder.path().join("model.onnx")).unwrap();
    let bytes = model.tensor_bytes(&model.graph().initializer[0]).unwrap();
    assert!(matches!(bytes, Cow::Borrowed(_)), "external data should not be copied");
    assert_eq!(*bytes, floats(64 * 32));
    let names: Vec<_> = model.external_files().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["first.bin", "second.bin"]);
    let sizes =
        ["model.onnx", "first.bin", "more/second.bin"].map(|name| folder.path().join(name).metadata().unwrap().len());
    assert_eq!(model.total_bytes().unwrap(), sizes.iter().sum::<u64>());
    let before = model.digest(DigestKind::default());
    fs::write(folder.path().join("more/second.bin"), [0; 144]).unwrap();
    assert_ne!(load(model.path()).unwrap().digest(DigestKind::default()), before);
}

#[test]
fn large_weights_go_to_one_aligned_file_and_the_rest_into_the_model() {
    let folder = folder();
    let model = load(&folder.path().join("model.onnx")).unwrap();
    let kept: Vec<usize> = (0..32).filter(|i| i % 3 != 0).collect();
    let new = TensorProto::of_floats("new", &vec![0.5; 512], &[512]);
    let sliced = InitializerOut::Sliced { index: 0, name: "a".into(), axes: vec![(1, kept.clone())] };
    let edits = Edits {
        nodes: originals(3),
        initializers: vec![sliced, InitializerOut::Original(1), InitializerOut::New(new)],
        ..Edits::default()
    };
    // Another folder, without the data files of the input.
    let target = tempfile::tempdir().unwrap();
    let out = target.path().join("out.onnx");
    let report = write(&model, &edits, &out).unwrap();
    assert_eq!(report.external.as_deref(), Some(target.path().join("out.onnx.data").as_path()));
    let written = load(&out).unwrap();
    let [a, b, new] = written.graph().initializer.as_slice() else { panic!("expected three initializers") };
    assert_eq!(a.dims, [64, 21]);
    let expected: Vec<u8> =
        (0..64).flat_map(|row| kept.iter().flat_map(move |i| ((row * 32 + i) as f32).to_le_bytes())).collect();
    assert_eq!(*written.tensor_bytes(a).unwrap(), expected);
    assert_eq!(b.raw_data, floats(36), "small weights should be stored in the model file");
    let entry = |tensor: &TensorProto, key: &str| {
        tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.clone()).unwrap()
    };
    assert_eq!(entry(a, "location"), "out.onnx.data");
    assert_eq!((entry(new, "offset"), entry(new, "length")), ("8192".to_owned(), "2048".to_owned()));
    let constant = written.graph().node[2].tensor("value").unwrap();
    assert_eq!(constant.raw_data, floats(4)[8..], "constants of nodes should be stored in the model file");
    assert_eq!(report.bytes, written.total_bytes().unwrap());
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 2, "no other files should be left behind");
}

#[test]
fn the_data_files_of_the_input_are_never_replaced() {
    let folder = folder();
    let path = folder.path().join("model.onnx");
    fs::rename(folder.path().join("first.bin"), folder.path().join("out.onnx.data")).unwrap();
    let mut proto = ModelProto::decode(fs::read(&path).unwrap().as_slice()).unwrap();
    proto.graph.as_mut().unwrap().initializer[0].external_data[0].value = "out.onnx.data".into();
    fs::write(&path, proto.encode_to_vec()).unwrap();
    let model = load(&path).unwrap();
    let edits = Edits { nodes: originals(3), ..Edits::default() };
    for out in ["model.onnx", "out.onnx", "more/second.bin"] {
        let error = write(&model, &edits, &folder.path().join(out)).unwrap_err();
        assert!(error.to_string().contains("would replace the") && error.exit_code() == 2, "{error}");
    }
}

fn refusal(folder: &Path, tensor: TensorProto) -> String {
    let path = folder.join("bad.onnx");
    fs::write(
        &path,
        model(vec![tensor, external("b", &[36], &[("location", "more/second.bin")])], None).encode_to_vec(),
    )
    .unwrap();
    let error = load(&path).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn every_broken_reference_is_refused_with_file_and_tensor() {
    let folder = folder();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), floats(4)).unwrap();
    let absolute = outside.path().to_str().unwrap().to_owned();
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("offset", "0")], "no `location`"),
        (&[("location", &absolute)], "inside the folder of the model"),
        (&[("location", "../model.onnx")], "inside the folder of the model"),
        (&[("location", "gone.bin")], "can't be found"),
        (&[("location", "first.bin"), ("offset", "8290")], "offset 8290"),
        (
            &[("location", "first.bin"), ("offset", "18446744073709551615"), ("length", "16")],
            "offset 18446744073709551615",
        ),
        (&[("location", "first.bin"), ("length", "12")], "expected 16 bytes for its shape, found a length of 12"),
        (&[("location", "first.bin"), ("length", "many")], "length \"many\""),
    ];
    for (entries, expected) in cases {
        let message = refusal(folder.path(), external("a", &[2, 2], entries));
        assert!(
            message.contains(expected) && message.contains("tensor \"a\"") && message.contains("bad.onnx"),
            "{message}"
        );
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link.bin")).unwrap();
        let message = refusal(folder.path(), external("a", &[2, 2], &[("location", "link.bin")]));
        assert!(message.contains("link.bin") && message.contains("out of the folder"), "{message}");
    }
}
