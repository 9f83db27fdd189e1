//! Malformed files: an error that names the file and the faulty part, exit code 2, no panic, no output.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::error::Error;
use onnx_diffprune::load;
use onnx_diffprune::onnx::{
    AttributeProto, DataLocation, GraphProto, ModelProto, StringStringEntryProto, TensorProto, attr_tensor,
};
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::write::write;
use prost::Message;
use rand::{RngExt, SeedableRng};

use crate::support::builder::{counting, node, value};
use crate::support::files::listing;
use crate::support::fixtures::fixture;
use crate::support::two_convolutions::two_convolutions;

/// Runs all stages up to the output file.
fn prune(path: &Path, out: &Path) -> Result<(), Error> {
    let model = load::load(path)?;
    let analysis = analyse(&model)?;
    let cut = cut(
        &analysis,
        &PruneOptions::by_magnitude(Target::Ratio(0.5)),
        onnx_diffprune::runtime::Runtime::open(None).ok(),
    )?;
    write(&model, &cut.rewritten.edits, out).map(|_| ())
}

/// Prunes the file in its own folder, which must fail. Returns the message.
fn refused_in(folder: &Path, bytes: &[u8], culprit: &str) -> String {
    let path = folder.join("bad.onnx");
    std::fs::write(&path, bytes).unwrap();
    let before = listing(folder);
    let error = prune(&path, &folder.join("out.onnx")).expect_err(culprit);
    let message = error.to_string();
    assert_eq!(error.exit_code(), 2, "{message}");
    assert!(message.contains("bad.onnx"), "{message}");
    assert!(message.contains(culprit), "expected {culprit:?} in: {message}");
    assert_eq!(listing(folder), before, "{message}");
    message
}

fn refused(bytes: &[u8], culprit: &str) -> String {
    refused_in(tempfile::tempdir().unwrap().path(), bytes, culprit)
}

fn refused_model(change: impl FnOnce(&mut ModelProto, &mut GraphProto), culprit: &str) {
    let mut model = two_convolutions();
    let mut graph = model.graph.take().unwrap();
    change(&mut model, &mut graph);
    model.graph = Some(graph);
    refused(&model.encode_to_vec(), culprit);
}

#[test]
fn the_network_that_these_tests_damage_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.onnx");
    std::fs::write(&path, two_convolutions().encode_to_vec()).unwrap();
    prune(&path, &folder.path().join("out.onnx")).unwrap();
    assert_eq!(listing(folder.path()), ["good.onnx", "out.onnx"]);
}

#[test]
fn files_without_a_model_are_refused() {
    refused(b"", "empty file");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not an ONNX model");
    refused(&[0xff; 64], "not an ONNX model");
    let whole = two_convolutions().encode_to_vec();
    refused(&whole[..whole.len() - 7], "truncated");
    refused(&ModelProto { ir_version: 8, ..Default::default() }.encode_to_vec(), "no graph");
    refused_model(|_, graph| graph.node.clear(), "empty");
    refused_model(|_, graph| *graph = GraphProto::default(), "empty");
    // A string that is not UTF-8: the name of the graph's first node.
    let mut text = whole;
    let at = text.windows(5).position(|window| window == b"first").unwrap();
    text[at] = 0xff;
    refused(&text, "UTF-8");
}

#[test]
fn paths_that_are_not_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("absent.onnx"), "/dev/null".into()] {
        let error = load::load(&path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn invalid_operator_sets_are_refused() {
    refused_model(|model, _| model.opset_import[0].version = 8, "found 8");
    refused_model(|model, _| model.opset_import.clear(), "ai.onnx");
    refused_model(|model, _| model.opset_import[0].domain = "com.microsoft".to_owned(), "ai.onnx");
}

#[test]
fn invalid_names_are_refused() {
    refused_model(|_, graph| graph.node[2].input[0] = "nowhere".to_owned(), "\"nowhere\"");
    refused_model(|_, graph| graph.output[0].name = "nowhere".to_owned(), "\"nowhere\"");
    refused_model(|_, graph| graph.initializer.push(counting("w1", &[1])), "\"w1\"");
    refused_model(|_, graph| graph.input.push(value("x", &[1])), "\"x\"");
    refused_model(|_, graph| graph.node[1].output[0] = "x".to_owned(), "\"x\"");
    refused_model(|_, graph| graph.node[2].output[0] = "h".to_owned(), "\"h\"");
    refused_model(|_, graph| graph.node[1].output[0] = "w2".to_owned(), "\"w2\"");
    let inner = GraphProto {
        node: vec![node("in", "Relu", &["lost"], &["t"])],
        output: vec![value("t", &[])],
        ..Default::default()
    };
    let branch = AttributeProto { name: "then_branch".to_owned(), r#type: 5, g: Some(inner), ..Default::default() };
    refused_model(|_, graph| graph.node[1].attribute.push(branch), "\"lost\"");
}

#[test]
fn cycles_are_refused_with_the_name_of_a_node_on_them() {
    let knot = |graph: &mut GraphProto, named: bool| {
        let names = if named { ["one", "two"] } else { ["", ""] };
        graph.node.push(node(names[0], "Add", &["y", "q"], &["p"]));
        graph.node.push(node(names[1], "Relu", &["p"], &["q"]));
    };
    for (named, culprits) in [(true, ["\"one\"", "\"two\""]), (false, ["producing p", "producing q"])] {
        let mut model = two_convolutions();
        knot(model.graph.as_mut().unwrap(), named);
        let message = refused(&model.encode_to_vec(), "cycle");
        assert!(culprits.iter().any(|culprit| message.contains(culprit)), "{message}");
    }
    refused_model(|_, graph| graph.node[1].input[0] = "a".to_owned(), "\"act\"");
}

#[test]
fn tensors_that_contradict_their_shape_are_refused() {
    refused_model(|_, graph| graph.initializer[0].dims = vec![16, -4, 3, 3], "-4");
    refused_model(|_, graph| graph.initializer[0].dims = vec![16, 4, 3], "\"w1\"");
    refused_model(|_, graph| graph.initializer[0].dims = vec![1 << 40, 1 << 40, 3, 3], "\"w1\"");
    refused_model(|_, graph| graph.initializer[0].dims = vec![i64::MAX, 2, 0], "\"w1\"");
    refused_model(
        |_, graph| {
            graph.initializer[0] =
                TensorProto { dims: vec![1 << 40, 0], raw_data: vec![].into(), ..counting("w1", &[1]) }
        },
        "\"w1\"",
    );
    refused_model(|_, graph| graph.initializer[0].data_type = 10, "\"w1\"");
    // Types without a size in whole bytes: strings, and an unknown type.
    for data_type in [8, 99] {
        let tensor = TensorProto { dims: vec![503_184_377], data_type, ..Default::default() };
        refused_model(|_, graph| graph.initializer[0] = TensorProto { name: "w1".to_owned(), ..tensor }, "\"w1\"");
    }
    let constant = TensorProto { dims: vec![-1], ..counting("inner", &[1]) };
    refused_model(
        |_, graph| {
            let mut node = node("constant", "Constant", &[], &["c"]);
            node.attribute = vec![attr_tensor("value", constant)];
            graph.node.push(node);
        },
        "\"inner\"",
    );
}

#[test]
fn weights_of_the_wrong_rank_or_size_are_refused() {
    refused_model(|_, graph| graph.initializer[0] = counting("w1", &[16, 36]), "\"first\"");
    refused_model(|_, graph| graph.initializer[0] = counting("w1", &[16, 5, 3, 3]), "\"first\"");
    refused_model(|_, graph| graph.initializer[1] = counting("b1", &[]), "\"first\"");
    refused_model(|_, graph| graph.node[0].input.truncate(1), "\"first\"");
    refused_model(|_, graph| graph.node[0].input[1] = String::new(), "\"first\"");
}

#[test]
fn split_sizes_that_do_not_sum_to_the_axis_are_refused() {
    for sizes in [[8, 393_216], [8, 7], [-1, 17], [i64::MAX, i64::MAX]] {
        refused_model(
            |_, graph| {
                let mut split = node("split", "Split", &["h", "sizes"], &["left", "right"]);
                split.attribute = vec![onnx_diffprune::onnx::attr_int("axis", 1)];
                graph.node.insert(1, split);
                graph.initializer.push(TensorProto::of_ints("sizes", &sizes, &[2]));
            },
            "\"split\"",
        );
    }
}

#[test]
fn huge_sizes_do_not_overflow_the_element_count() {
    let mut model = two_convolutions();
    model.graph.as_mut().unwrap().input[0] = value("x", &[i64::MAX, 4, 1 << 40, 1 << 40]);
    model.graph.as_mut().unwrap().value_info.clear();
    model.graph.as_mut().unwrap().output[0].r#type = None;
    let model = load::from_bytes("huge.onnx".as_ref(), model.encode_to_vec().into()).unwrap();
    let analysis = analyse(&model).unwrap();
    let cut = cut(
        &analysis,
        &PruneOptions::by_magnitude(Target::Ratio(0.5)),
        onnx_diffprune::runtime::Runtime::open(None).ok(),
    )
    .unwrap();
    assert_eq!(cut.before.activation_bytes, u64::MAX);
}

fn outside(location: &str, offset: &str) -> Vec<u8> {
    let mut model = two_convolutions();
    let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
    tensor.raw_data = vec![].into();
    tensor.data_location = DataLocation::External as i32;
    for (key, value) in [("location", location), ("offset", offset), ("length", "2304")] {
        tensor.external_data.push(StringStringEntryProto { key: key.to_owned(), value: value.to_owned() });
    }
    model.encode_to_vec()
}

#[test]
fn invalid_external_data_is_refused() {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("folder");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(above.path().join("secret"), vec![0; 4096]).unwrap();
    std::fs::write(folder.join("short"), vec![0; 2304]).unwrap();
    let absolute = above.path().join("secret");
    for (location, offset, culprit) in [
        ("absent.data", "0", "absent.data"),
        ("short", "1", "short"),
        ("short", "18446744073709551615", "short"),
        ("short", "-1", "offset"),
        ("short", "much", "much"),
        ("../secret", "0", "../secret"),
        ("sub/../../secret", "0", "sub/../../secret"),
        (absolute.to_str().unwrap(), "0", "inside the folder"),
        ("", "0", "w1"),
        ("sub", "0", "sub"),
    ] {
        let message = refused_in(&folder, &outside(location, offset), culprit);
        assert!(message.contains("\"w1\""), "{message}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&absolute, folder.join("link")).unwrap();
        refused_in(&folder, &outside("link", "0"), "link");
    }
}

/// Returns the positions outside of weights: the structure of the file, which damage has to reach.
fn structure(bytes: &bytes::Bytes) -> Vec<usize> {
    let model = ModelProto::decode(bytes.clone()).unwrap();
    let mut is_weight = vec![false; bytes.len()];
    for tensor in &model.graph.unwrap().initializer {
        // Raw data borrows from the bytes of the file.
        if tensor.raw_data.len() > 16 {
            let start = tensor.raw_data.as_ptr() as usize - bytes.as_ptr() as usize;
            is_weight[start..start + tensor.raw_data.len()].fill(true);
        }
    }
    (0..bytes.len()).filter(|at| !is_weight[*at]).collect()
}

fn survives(path: &Path, bytes: Vec<u8>) -> Result<(), String> {
    let attempt = || {
        let Ok(model) = load::from_bytes(path, bytes.into()) else {
            return;
        };
        let _ = analyse(&model);
    };
    catch_unwind(AssertUnwindSafe(attempt)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[test]
fn damaged_models_never_panic() {
    let mut panics = Vec::new();
    for (seed, name) in [(1, "dit_tiny.onnx"), (2, "sd15_tiny_fp16.onnx"), (3, "ddpm_fashion16.onnx")] {
        let path = fixture(name);
        let bytes = bytes::Bytes::from(std::fs::read(&path).unwrap());
        let places = structure(&bytes);
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
        for _ in 0..250 {
            let at = places[random.random_range(0..places.len())];
            let bit = random.random_range(0..8);
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << bit;
            if let Err(panic) = survives(&path, flipped) {
                panics.push(format!("{name}: bit {bit} of byte {at} flipped: {panic}"));
            }
            let end = random.random_range(0..bytes.len());
            if let Err(panic) = survives(&path, bytes[..end].to_vec()) {
                panics.push(format!("{name}: cut off at byte {end}: {panic}"));
            }
        }
    }
    assert!(panics.is_empty(), "{}", panics.join("\n"));
}
