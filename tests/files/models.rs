//! Reading and writing of model files: unmodified parts survive byte for byte.

use std::collections::BTreeMap;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::load;
use onnx_diffprune::onnx::{DataLocation, DataType, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::write::{InitializerOut, write};
use prost::Message;

use crate::support::builder::{counting, node};
use crate::support::files::{decoded, listing};
use crate::support::fixtures::{FIXTURES, fixture};
use crate::support::two_convolutions::{halved, no_edits, two_convolutions};

/// Gathers the kept elements one index at a time: the slow method that the writer must agree with.
fn gather(data: &[u8], dims: &[usize], element: usize, axes: &[(usize, Vec<usize>)]) -> Vec<u8> {
    let mut result = Vec::new();
    for at in 0..dims.iter().product::<usize>() {
        let mut rest = at;
        let mut position = vec![0; dims.len()];
        for axis in (0..dims.len()).rev() {
            position[axis] = rest % dims[axis];
            rest /= dims[axis];
        }
        if axes.iter().all(|(axis, kept)| kept.contains(&position[*axis])) {
            result.extend_from_slice(&data[at * element..(at + 1) * element]);
        }
    }
    result
}

#[test]
fn edits_that_change_nothing_write_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    for name in FIXTURES {
        let model = load::load(&fixture(name)).unwrap();
        let report = write(&model, &no_edits(&model), &out).unwrap();
        let written = std::fs::read(&out).unwrap();
        assert!(written == std::fs::read(fixture(name)).unwrap(), "{name} changed");
        assert_eq!(report.bytes, written.len() as u64);
        assert_eq!(listing(folder.path()), ["out.onnx"]);
    }
}

#[test]
fn another_protobuf_decoder_reads_a_written_cut() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    for name in FIXTURES {
        let model = load::load(&fixture(name)).unwrap();
        let analysis = analyse(&model).unwrap();
        let cut = cut(
            &analysis,
            &PruneOptions::by_magnitude(Target::Ratio(0.5)),
            onnx_diffprune::runtime::Runtime::open(None).ok(),
        )
        .unwrap();
        write(&model, &cut.rewritten.edits, &out).unwrap();
        let (before, after) = (decoded(&fixture(name)), decoded(&out));
        assert_eq!(before.opset_import, after.opset_import);
        let by_name: BTreeMap<&str, _> = after.graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut sliced = 0;
        for initializer in &cut.rewritten.edits.initializers {
            let (index, new_name, axes) = match initializer {
                InitializerOut::Original(index) => (*index, before.graph.initializer[*index].name.as_str(), &[][..]),
                InitializerOut::Sliced { index, name, axes } => (*index, name.as_str(), axes.as_slice()),
                InitializerOut::New(_) | InitializerOut::Streamed(_) => continue,
            };
            let (old, new) = (&before.graph.initializer[index], by_name[new_name]);
            let mut dims: Vec<i64> = old.dims.clone();
            axes.iter().for_each(|(axis, kept)| dims[*axis] = kept.len() as i64);
            assert_eq!((old.data_type, &dims), (new.data_type, &new.dims), "{name}: {new_name}");
            let sizes: Vec<usize> = old.dims.iter().map(|size| *size as usize).collect();
            let element = old.raw_data.len() / sizes.iter().product::<usize>().max(1);
            assert!(gather(&old.raw_data, &sizes, element, axes) == new.raw_data, "{name}: {new_name}");
            sliced += usize::from(!axes.is_empty());
        }
        assert!(sliced > 20, "{name}: {sliced}");
        let names = |model: &onnx_protobuf::ModelProto| -> Vec<String> {
            model.graph.node.iter().map(|node| node.name.clone()).collect()
        };
        let kept: Vec<String> = names(&before).into_iter().filter(|node| names(&after).contains(node)).collect();
        assert!(kept.len() * 10 > before.graph.node.len() * 9, "{name}");
        assert_eq!(before.graph.input, after.graph.input);
        assert_eq!(before.graph.output, after.graph.output);
    }
}

fn move_outside(tensor: &mut TensorProto, keys: &[(&str, &str)]) -> Vec<u8> {
    tensor.data_location = DataLocation::External as i32;
    for (key, value) in keys {
        tensor.external_data.push(StringStringEntryProto { key: (*key).to_owned(), value: (*value).to_owned() });
    }
    std::mem::take(&mut tensor.raw_data).to_vec()
}

#[test]
fn external_data_in_two_files_is_merged_into_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.onnx");
    let mut proto = two_convolutions();
    let tensors = &mut proto.graph.as_mut().unwrap().initializer;
    // One file with two tensors at odd offsets, and another with a single tensor and neither offset nor length.
    let bias = move_outside(&mut tensors[1], &[("location", "first.bin"), ("offset", "5"), ("length", "64")]);
    let weight = move_outside(&mut tensors[0], &[("location", "first.bin"), ("offset", "100")]);
    let mut first = [vec![7; 5], bias].concat();
    first.resize(100, 9);
    first.extend(weight);
    std::fs::write(folder.path().join("first.bin"), first).unwrap();
    let second = move_outside(&mut tensors[2], &[("location", "./second.bin")]);
    std::fs::write(folder.path().join("second.bin"), second).unwrap();
    std::fs::write(&path, proto.encode_to_vec()).unwrap();

    let model = load::load(&path).unwrap();
    let plain = two_convolutions().graph.unwrap().initializer;
    for (outside, inside) in model.graph().initializer.iter().zip(&plain) {
        assert_eq!(model.tensor_bytes(outside).unwrap().as_ref(), inside.raw_data.as_ref(), "{}", inside.name);
    }
    assert_eq!(model.external_files().len(), 2);

    let apart = tempfile::tempdir().unwrap();
    let out = apart.path().join("out.onnx");
    let edits = halved(&model);
    let report = write(&model, &edits, &out).unwrap();
    assert_eq!(listing(apart.path()), ["out.onnx", "out.onnx.data"]);
    let data = std::fs::read(apart.path().join("out.onnx.data")).unwrap();
    assert_eq!(report.external, Some(apart.path().join("out.onnx.data")));
    assert_eq!(report.bytes, (data.len() + std::fs::read(&out).unwrap().len()) as u64);
    let mut moved = 0;
    for ((tensor, edit), old) in decoded(&out).graph.initializer.iter().zip(&edits.initializers).zip(&plain) {
        let axes = if let InitializerOut::Sliced { axes, .. } = edit { axes.as_slice() } else { &[] };
        let dims: Vec<usize> = old.dims.iter().map(|size| *size as usize).collect();
        let expected = gather(&old.raw_data, &dims, 4, axes);
        if tensor.external_data.is_empty() {
            assert_eq!(tensor.raw_data, expected, "{}", old.name);
            continue;
        }
        let key = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value.clone();
        let (offset, length): (usize, usize) = (key("offset").parse().unwrap(), key("length").parse().unwrap());
        assert_eq!((key("location").as_str(), offset % 4096), ("out.onnx.data", 0));
        assert_eq!(&data[offset..offset + length], expected, "{}", old.name);
        moved += 1;
    }
    // The biases are too small to be stored in pages of external data.
    assert_eq!(moved, 2);
    assert!(analyse(&load::load(&out).unwrap()).is_ok());
}

#[test]
fn typed_data_fields_are_sliced_like_raw_data() {
    let typed = |name: &str, data_type: DataType| TensorProto {
        name: name.to_owned(),
        dims: vec![2, 3],
        data_type: data_type as i32,
        ..Default::default()
    };
    let floats = TensorProto { float_data: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], ..typed("float", DataType::Float) };
    let halves = [0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0xc500];
    let half = TensorProto { int32_data: halves.to_vec(), ..typed("half", DataType::Float16) };
    let bytes = TensorProto { int32_data: vec![-1, 2, -3, 4, -5, 6], ..typed("int8", DataType::Int8) };
    let ints = TensorProto { int32_data: vec![-1, 2, -3, 4, -5, 6], ..typed("int32", DataType::Int32) };
    let longs = TensorProto { int64_data: vec![-1, 2, -3, 4, -5, 1 << 40], ..typed("int64", DataType::Int64) };
    let doubles = TensorProto { double_data: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.5], ..typed("double", DataType::Double) };
    let words = TensorProto { uint64_data: vec![1, 2, 3, 4, 5, 0xffff_ffff], ..typed("uint32", DataType::Uint32) };
    // The last column of each tensor.
    let expected: [Vec<u8>; 7] = [
        [2.0f32, 5.0].iter().flat_map(|v| v.to_le_bytes()).collect(),
        [0x4000u16, 0xc500].iter().flat_map(|v| v.to_le_bytes()).collect(),
        [-3i8, 6].iter().flat_map(|v| v.to_le_bytes()).collect(),
        [-3i32, 6].iter().flat_map(|v| v.to_le_bytes()).collect(),
        [-3i64, 1 << 40].iter().flat_map(|v| v.to_le_bytes()).collect(),
        [2.0f64, 5.5].iter().flat_map(|v| v.to_le_bytes()).collect(),
        [3u32, 0xffff_ffff].iter().flat_map(|v| v.to_le_bytes()).collect(),
    ];
    let mut proto = two_convolutions();
    let graph = proto.graph.as_mut().unwrap();
    let first = graph.initializer.len();
    graph.initializer.extend([floats, half, bytes, ints, longs, doubles, words]);
    let folder = tempfile::tempdir().unwrap();
    let model = load::from_bytes(&folder.path().join("in.onnx"), proto.encode_to_vec().into()).unwrap();
    let mut edits = no_edits(&model);
    for (index, tensor) in model.graph().initializer.iter().enumerate().skip(first) {
        edits.initializers[index] =
            InitializerOut::Sliced { index, name: tensor.name.clone(), axes: vec![(1, vec![2])] };
    }
    let out = folder.path().join("out.onnx");
    write(&model, &edits, &out).unwrap();
    for (tensor, expected) in decoded(&out).graph.initializer[first..].iter().zip(expected) {
        assert_eq!(
            (tensor.dims.as_slice(), tensor.raw_data.as_slice()),
            (&[2, 1][..], expected.as_slice()),
            "{}",
            tensor.name
        );
        assert_eq!(tensor.float_data.len() + tensor.int32_data.len() + tensor.int64_data.len(), 0);
        assert_eq!(tensor.double_data.len() + tensor.uint64_data.len(), 0);
    }
}

#[test]
fn a_failed_write_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.onnx");
    std::fs::write(&path, two_convolutions().encode_to_vec()).unwrap();
    let model = load::load(&path).unwrap();
    let mut edits = no_edits(&model);
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("file"), b"x").unwrap();
    std::fs::hard_link(&path, folder.path().join("same.onnx")).unwrap();
    let before = listing(folder.path());
    // A parent that is a file, a parent that does not exist, an existing folder, the input itself.
    for out in ["file/out.onnx", "absent/out.onnx", "folder", "in.onnx", "./in.onnx", "same.onnx"] {
        let error = write(&model, &edits, &folder.path().join(out)).expect_err(out);
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(out.trim_start_matches("./")), "{error}");
        assert_eq!(listing(folder.path()), before, "{out}");
    }
    // An index outside of the axis.
    edits.initializers[0] = InitializerOut::Sliced { index: 0, name: "w1".to_owned(), axes: vec![(0, vec![16])] };
    let error = write(&model, &edits, &folder.path().join("out.onnx")).unwrap_err();
    assert!(error.to_string().contains("\"w1\""), "{error}");
    assert_eq!(listing(folder.path()), before);
    assert_eq!(std::fs::read(&path).unwrap(), two_convolutions().encode_to_vec());
}

#[cfg(unix)]
#[test]
fn devices_are_not_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let proto = two_convolutions().encode_to_vec();
    let model = load::from_bytes("in.onnx".as_ref(), proto.into()).unwrap();
    for device in ["/dev/null", "/dev/full"] {
        let Ok(data) = std::fs::metadata(device) else {
            continue;
        };
        assert!(data.file_type().is_char_device());
        let error = write(&model, &no_edits(&model), device.as_ref()).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().contains(device)), (2, true), "{error}");
        assert!(onnx_diffprune::files::write_file(device.as_ref(), b"x").is_err());
        assert!(std::fs::metadata(device).unwrap().file_type().is_char_device());
    }
}

#[test]
fn inlined_functions_are_written_as_nodes() {
    let mut proto = two_convolutions();
    proto.opset_import.push(onnx_diffprune::onnx::OperatorSetIdProto { domain: "local".to_owned(), version: 1 });
    let act = &mut proto.graph.as_mut().unwrap().node[1];
    (act.domain, act.op_type) = ("local".to_owned(), "silu".to_owned());
    let inner = |op: &str, inputs: &[&str], output: &str| NodeProto {
        name: op.to_lowercase(),
        ..node(op, op, inputs, &[output])
    };
    proto.functions = vec![onnx_diffprune::onnx::FunctionProto {
        name: "silu".to_owned(),
        domain: "local".to_owned(),
        input: vec!["v".to_owned()],
        output: vec!["r".to_owned()],
        node: vec![inner("Sigmoid", &["v"], "s"), inner("Mul", &["v", "s"], "r")],
        opset_import: vec![
            proto.opset_import[0].clone(),
            onnx_diffprune::onnx::OperatorSetIdProto { domain: "extra".to_owned(), version: 3 },
        ],
        ..Default::default()
    }];
    let folder = tempfile::tempdir().unwrap();
    let model = load::from_bytes(&folder.path().join("in.onnx"), proto.encode_to_vec().into()).unwrap();
    assert!(model.is_inlined());
    let out = folder.path().join("out.onnx");
    for cut_it in [false, true] {
        let edits = if cut_it {
            let analysis = analyse(&model).unwrap();
            cut(
                &analysis,
                &PruneOptions::by_magnitude(Target::Ratio(0.5)),
                onnx_diffprune::runtime::Runtime::open(None).ok(),
            )
            .unwrap()
            .rewritten
            .edits
        } else {
            no_edits(&model)
        };
        write(&model, &edits, &out).unwrap();
        let after = ModelProto::decode(std::fs::read(&out).unwrap().as_slice()).unwrap();
        let graph = after.graph.unwrap();
        let names: Vec<&str> = graph.node.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["first", "act/sigmoid", "act/mul", "second"]);
        assert_eq!(graph.node[1].output, ["act/s"]);
        assert!(after.functions.is_empty());
        let domains: Vec<&str> = after.opset_import.iter().map(|import| import.domain.as_str()).collect();
        assert_eq!(domains, ["", "local", "extra"]);
        assert_eq!(graph.initializer[0].dims[0], if cut_it { 8 } else { 16 });
        assert_eq!(graph.initializer[3], counting("b2", &[4]));
    }
}

#[test]
fn attributes_that_are_zero_are_written() {
    // ONNX Runtime would use the operator's default for an absent field.
    let has = |bytes: Vec<u8>, field: &[u8]| bytes.windows(field.len()).any(|window| window == field);
    assert!(has(onnx_diffprune::onnx::attr_int("axis", 0).encode_to_vec(), &[0x18, 0]));
    assert!(has(onnx_diffprune::onnx::attr_float("alpha", 0.0).encode_to_vec(), &[0x15, 0, 0, 0, 0]));
    assert!(has(onnx_diffprune::onnx::attr_string("mode", "").encode_to_vec(), &[0x22, 0]));
}
