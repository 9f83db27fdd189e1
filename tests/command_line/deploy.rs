//! The command `deploy` as users run it.

use std::collections::BTreeSet;
use std::path::Path;

use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, attr_int};
use serde_json::Value;

use super::tool::{Ran, run, succeed};
use crate::support::builder::{Builder, model_of, node, value};
use crate::support::files::{decoded, listing, save};
use crate::support::fixtures::fixture;

/// Deploys the trained U-Net with its data and schedule.
fn trained(folder: &Path, more: &[&str]) -> Ran {
    let of = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let (model, data) = (of("ddpm_fashion16.onnx"), of("ddpm_fashion16/train_images.npy"));
    let config = of("ddpm_fashion16/scheduler_config.json");
    let arguments = ["deploy", &model, folder.to_str().unwrap(), "--data", &data, "--scheduler-config", &config];
    run(&[&arguments, more, &["--format", "json"]].concat())
}

fn change_of_loss(json: &Value) -> f64 {
    let loss = json["loss"].as_array().unwrap();
    loss[1].as_f64().unwrap() / loss[0].as_f64().unwrap() - 1.0
}

#[test]
fn a_bundle_for_tensorrt_has_a_float16_network_and_scripts_for_its_tools() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let ran = trained(&bundle, &["--target", "tensorrt", "--profile", "batch=1..4"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let json = ran.json();
    assert_eq!(json["precision"], "float16");
    assert!(change_of_loss(&json).abs() < 1e-3, "{}", json["loss"]);
    assert!(json["distances"][0]["relative"].as_f64().unwrap() < 2e-3, "{}", json["distances"]);
    let kept = json["half"]["kept"].as_array().unwrap();
    let angles = |entry: &&Value| entry["reason"].as_str().unwrap().contains("angles");
    assert!(kept.iter().filter(angles).count() >= 3, "{kept:?}");
    let expected = [
        "README.md",
        "bundle.json",
        "model.onnx",
        "onnxruntime_tensorrt.json",
        "polygraphy.sh",
        "profile.json",
        "trtexec_10.sh",
        "trtexec_11.sh",
    ];
    assert_eq!(listing(&bundle), expected);
    let read = |name: &str| std::fs::read_to_string(bundle.join(name)).unwrap();
    assert!(read("trtexec_10.sh").contains("--stronglyTyped") && !read("trtexec_11.sh").contains("--stronglyTyped"));
    for script in ["trtexec_10.sh", "trtexec_11.sh"] {
        assert!(read(script).contains("--minShapes=sample:1x1x16x16,timestep:1 "), "{}", read(script));
        assert!(read(script).contains("--maxShapes=sample:4x1x16x16,timestep:4"), "{}", read(script));
    }
    let shapes = "--trt-opt-shapes 'sample:[2,1,16,16]' 'timestep:[2]'";
    assert!(read("polygraphy.sh").contains(shapes), "{}", read("polygraphy.sh"));
    let options: Value = serde_json::from_str(&read("onnxruntime_tensorrt.json")).unwrap();
    assert_eq!(options["trt_profile_opt_shapes"], "sample:2x1x16x16,timestep:2");
    let original = load(&fixture("ddpm_fashion16.onnx")).unwrap();
    assert!(read("README.md").contains(&original.digest(Default::default())), "{}", read("README.md"));
    // Names, symbols and element types of inputs and outputs are unchanged.
    let (before, after) = (decoded(&fixture("ddpm_fashion16.onnx")), decoded(&bundle.join("model.onnx")));
    assert_eq!(before.graph.input, after.graph.input);
    assert_eq!(before.graph.output, after.graph.output);
    let halves = after.graph.initializer.iter().filter(|tensor| tensor.data_type == 10).count();
    assert!(halves > 90, "{halves}");
    in_order(&bundle.join("model.onnx"));
}

/// Asserts that every node comes after the nodes that produce its inputs.
fn in_order(path: &Path) {
    let model = decoded(path);
    let graph = &model.graph;
    let mut known: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    known.extend(graph.input.iter().map(|input| input.name.as_str()));
    for node in &graph.node {
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(input.as_str()), "{} of {}", input, node.name);
        }
        known.extend(node.output.iter().map(String::as_str));
    }
}

#[test]
fn inputs_and_outputs_are_in_half_precision_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let more = ["--target", "ort-cuda", "--precision", "fp16", "--io-precision", "fp16"];
    let ran = trained(&bundle, &more);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(change_of_loss(&ran.json()).abs() < 1e-3);
    let model = decoded(&bundle.join("model.onnx"));
    let types = |values: &[onnx_protobuf::ValueInfoProto]| -> Vec<i32> {
        values.iter().map(|value| value.type_.tensor_type().elem_type).collect()
    };
    assert_eq!((types(&model.graph.input), types(&model.graph.output)), (vec![10, 7], vec![10]));
}

#[test]
fn int8_stays_within_its_budget() {
    for (target, calibration) in [("cpu", "min-max"), ("tensorrt", "percentile"), ("openvino", "entropy")] {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        let more = ["--target", target, "--precision", "int8", "--calibration", calibration, "--keep", "conv_out"];
        let ran = trained(&bundle, &more);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let json = ran.json();
        assert!(change_of_loss(&json) < 0.02, "{target}: {}", json["loss"]);
        let int8 = &json["int8"];
        assert!(int8["quantized"].as_u64().unwrap() > 30, "{int8}");
        let kept = int8["kept"].as_array().unwrap();
        assert!(kept.iter().any(|entry| entry["reason"].as_str().unwrap().contains("--keep")), "{kept:?}");
        let model = decoded(&bundle.join("model.onnx"));
        let count = |op: &str| model.graph.node.iter().filter(|node| node.op_type == op).count();
        assert!(count("DequantizeLinear") > count("QuantizeLinear") && count("QuantizeLinear") > 20);
        let of =
            |dtype: DataType| model.graph.initializer.iter().filter(|tensor| tensor.data_type == dtype as i32).count();
        assert!(of(DataType::Int8) as u64 >= int8["quantized"].as_u64().unwrap());
        assert_eq!(of(DataType::Uint8) > 0, target != "tensorrt");
        assert_eq!(of(DataType::Int32) > 0, target == "cpu");
        in_order(&bundle.join("model.onnx"));
    }
}

/// Runs `deploy` on a model built by a test. Returns the printed JSON and the bundle's model.
fn built(model: &onnx_diffprune::onnx::ModelProto, more: &[&str]) -> (Value, onnx_protobuf::ModelProto) {
    let folder = tempfile::tempdir().unwrap();
    let (path, bundle) = (save(folder.path(), model), folder.path().join("bundle"));
    let arguments = ["deploy", path.to_str().unwrap(), bundle.to_str().unwrap(), "--format", "json"];
    let json = succeed(&[&arguments, more].concat()).json();
    in_order(&bundle.join("model.onnx"));
    (json, decoded(&bundle.join("model.onnx")))
}

fn reasons(json: &Value) -> Vec<(String, String)> {
    let of = |entry: &Value| (entry["op"].as_str().unwrap().to_owned(), entry["reason"].as_str().unwrap().to_owned());
    json["half"]["kept"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn nodes_beyond_the_range_of_float16_are_kept_in_float32() {
    let mut net = Builder::new(1);
    let y = net.conv("x", 4, 8, 3, 1);
    // Squares of numbers around a thousand exceed the range of float16.
    let large = net.float(1000.0);
    let y = net.op("Mul", &[&y, &large], &[]);
    let squares = net.op("Mul", &[&y, &y], &[]);
    let mean = net.op("GlobalAveragePool", &[&squares], &[]);
    let least = net.float(1e-6);
    let mean = net.op("Add", &[&mean, &least], &[]);
    let root = net.op("Sqrt", &[&mean], &[]);
    let y = net.op("Div", &[&y, &root], &[]);
    // The scales of a Resize are float32 in every operator set.
    let scales = net.floats(&[1.0, 1.0, 2.0, 2.0], &[4]);
    let y = net.op("Resize", &[&y, "", &scales], &[]);
    let y = net.conv(&y, 8, 4, 3, 1);
    let (json, model) = built(&net.finish(&[2, 4, 8, 8], &y, &[2, 4, 16, 16]), &["--target", "ort-cuda"]);
    let kept = reasons(&json);
    let has = |op: &str, text: &str| kept.iter().any(|(own, reason)| own == op && reason.contains(text));
    assert!(has("Mul", "elements up to") && has("GlobalAveragePool", "reads elements up to"), "{kept:?}");
    assert!(has("Add", "reads") && has("Sqrt", "reads elements up to"), "{kept:?}");
    assert!(!kept.iter().any(|(op, _)| op == "Conv" || op == "Resize"), "{kept:?}");
    assert!(json["distances"][0]["relative"].as_f64().unwrap() < 5e-3, "{}", json["distances"]);
    let scales = model.graph.initializer.iter().find(|tensor| tensor.name.as_str() == scales).unwrap();
    assert_eq!(scales.data_type, 1);
}

#[test]
fn bodies_take_float32_and_bfloat16_needs_an_operator_set_that_has_it() {
    let graph = |opset: i64| {
        let mut net = Builder::with_opset(opset, 2);
        let y = net.conv("x", 4, 8, 3, 1);
        let sum = net.op("ReduceSum", &[&y], &[attr_int("keepdims", 0)]);
        let zero = net.float(0.0);
        let is_positive = net.op("Greater", &[&sum, &zero], &[]);
        let branch = |name: &str, op: &str| onnx_diffprune::onnx::GraphProto {
            name: name.to_owned(),
            node: vec![node(name, op, &[&y], &[&format!("{name}_out")])],
            output: vec![value(&format!("{name}_out"), &[2, 8, 8, 8])],
            ..Default::default()
        };
        let attributes = [
            onnx_diffprune::onnx::attr_graph("then_branch", branch("then", "Relu")),
            onnx_diffprune::onnx::attr_graph("else_branch", branch("else", "Tanh")),
        ];
        let y = net.op("If", &[&is_positive], &attributes);
        let y = net.conv(&y, 8, 4, 3, 1);
        net.finish(&[2, 4, 8, 8], &y, &[2, 4, 8, 8])
    };
    let (json, _) = built(&graph(17), &["--target", "ort-cuda"]);
    let kept = reasons(&json);
    assert!(kept.iter().any(|(op, _)| op == "If"), "{kept:?}");
    assert!(json["distances"][0]["relative"].as_f64().unwrap() < 5e-3);
    let (json, _) = built(&graph(17), &["--target", "ort-cuda", "--precision", "bf16"]);
    let kept = reasons(&json);
    assert!(kept.iter().any(|(op, reason)| op == "Conv" && reason.contains("bfloat16")), "{kept:?}");
}

#[test]
fn angles_are_computed_in_float32_wherever_they_come_from() {
    let mut net = Builder::new(3);
    net.graph.input = vec![value("x", &[2, 8]), value("timestep", &[2])];
    net.graph.output = vec![value("y", &[2, 8])];
    let axes = net.ints(&[1]);
    let t = net.op("Unsqueeze", &["timestep", &axes], &[]);
    // Times a thousand, the timestep exceeds float16: the nodes that lead to the angle are kept in float32.
    let factor = net.float(1000.0);
    let t = net.op("Mul", &[&t, &factor], &[]);
    let frequencies = net.floats(&[1.0, 0.3, 0.1, 0.03], &[1, 4]);
    let angle = net.op("Mul", &[&t, &frequencies], &[]);
    let (sin, cos) = (net.op("Sin", &[&angle], &[]), net.op("Cos", &[&angle], &[]));
    let both = net.op("Concat", &[&sin, &cos], &[attr_int("axis", 1)]);
    let y = net.linear(&both, 8, 8);
    let y = net.op("Add", &["x", &y], &[]);
    net.graph.node.push(node("last", "Identity", &[&y], &["y"]));
    let (json, _) = built(&model_of(17, net.graph), &["--target", "ort-cuda"]);
    assert!(json["distances"][0]["relative"].as_f64().unwrap() < 2e-3, "{} {:?}", json["distances"], reasons(&json));
}

#[test]
fn invalid_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    for (more, text) in [
        (&["--target", "tensorrt", "--profile", "depth=2"][..], "no symbolic dimension \"depth\""),
        (&["--target", "tensorrt", "--profile", "batch=4..1"], "--profile"),
        (&["--target", "cpu", "--precision", "int8", "--budget", "-1"], "--budget"),
        (&["--target", "cpu", "--keep", "("], "--keep"),
    ] {
        let ran = trained(&bundle, more);
        assert_eq!(ran.code, 2, "{more:?}");
        assert!(ran.err.contains(text), "{more:?}: {}", ran.err);
        assert!(!bundle.exists());
    }
    let mut net = Builder::with_opset(11, 4);
    let y = net.conv("x", 4, 4, 3, 1);
    let path = save(folder.path(), &net.finish(&[1, 4, 8, 8], &y, &[1, 4, 8, 8]));
    let arguments =
        ["deploy", path.to_str().unwrap(), bundle.to_str().unwrap(), "--target", "cpu", "--precision", "int8"];
    let ran = run(&arguments);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("opset 13") && !bundle.exists(), "{}", ran.err);
}

#[test]
fn a_float16_network_is_unchanged_but_sorted_topologically() {
    let folder = tempfile::tempdir().unwrap();
    let (model, bundle) = (fixture("sd15_tiny_fp16.onnx"), folder.path().join("bundle"));
    let arguments = ["deploy", model.to_str().unwrap(), bundle.to_str().unwrap(), "--target", "web", "--count", "2"];
    let ran = succeed(&[&arguments[..], &["--timesteps", "2", "--size", "h=8", "--size", "w=8"]].concat());
    assert!(ran.err.contains("in half precision already"), "{}", ran.err);
    in_order(&bundle.join("model.onnx"));
    assert_eq!(listing(&bundle), ["README.md", "bundle.json", "model.onnx"]);
}

#[test]
fn a_pipeline_is_copied_and_its_denoiser_converted_to_float16() {
    let folder = tempfile::tempdir().unwrap();
    let (pipeline, bundle) = (fixture("pipelines").join("sd_tiny"), folder.path().join("bundle"));
    let arguments = ["deploy", pipeline.to_str().unwrap(), bundle.to_str().unwrap(), "--target", "tensorrt"];
    let ran = succeed(&[&arguments[..], &["--count", "2", "--timesteps", "2", "--format", "json"]].concat());
    let json = ran.json();
    assert!(ran.err.contains("scheduler:"), "{}", ran.err);
    assert!(json["distances"][0]["relative"].as_f64().unwrap() < 1e-2, "{}", json["distances"]);
    for name in json["files"].as_array().unwrap() {
        let path = Path::new(name.as_str().unwrap());
        assert!(path.starts_with(&bundle) && path.is_file(), "{name}");
    }
    let same = |name: &str| std::fs::read(pipeline.join(name)).unwrap() == std::fs::read(bundle.join(name)).unwrap();
    assert!(same("scheduler/scheduler_config.json") && same("unet/config.json"));
    let halves = decoded(&bundle.join("unet/model.onnx"))
        .graph
        .initializer
        .iter()
        .filter(|tensor| tensor.data_type == 10)
        .count();
    assert!(halves > 20, "{halves}");
    let script = std::fs::read_to_string(bundle.join("unet/trtexec_11.sh")).unwrap();
    // The sizes of the pipeline's configuration, and a batch of two for guidance.
    let config: Value = serde_json::from_slice(&std::fs::read(pipeline.join("unet/config.json")).unwrap()).unwrap();
    let size = config["sample_size"].as_i64().unwrap();
    assert!(script.contains(&format!("--optShapes=sample:2x4x{size}x{size},")), "{script}");
}
