//! `deploy --io`: inputs and outputs as programs that load networks expect them.

use std::path::Path;

use onnx_diffprune::onnx::DataType;
use onnx_protobuf::tensor_shape_proto::dimension::Value as Size;
use onnx_protobuf::{ModelProto, ValueInfoProto};

use crate::support::files::decoded;
use crate::support::fixtures::fixture;
use crate::tool::{run, succeed};

/// Describes an input or output: name, element type, sizes.
fn described(value: &ValueInfoProto) -> String {
    let tensor = value.type_.tensor_type();
    let size = |dim: &onnx_protobuf::tensor_shape_proto::Dimension| match &dim.value {
        Some(Size::DimValue(size)) => size.to_string(),
        Some(Size::DimParam(name)) => name.clone(),
        _ => "?".to_owned(),
    };
    let sizes: Vec<String> = tensor.shape.dim.iter().map(size).collect();
    format!("{} {} [{}]", value.name, tensor.elem_type, sizes.join(","))
}

fn interface(model: &ModelProto) -> (Vec<String>, Vec<String>) {
    (model.graph.input.iter().map(described).collect(), model.graph.output.iter().map(described).collect())
}

/// Returns the inputs and outputs of the bundle that `--io` makes of a model.
fn deployed(model: &Path, more: &[&str]) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let arguments = ["deploy", model.to_str().unwrap(), bundle.to_str().unwrap(), "--count", "4", "--timesteps", "2"];
    let ran = succeed(&[&arguments[..], more, &["--format", "json"]].concat());
    let json = ran.json();
    assert!(json["distances"][0]["relative"].as_f64().unwrap() < 2e-2, "{}", json["distances"]);
    let file = json["files"].as_array().unwrap().iter().find_map(|file| file.as_str().filter(|f| f.ends_with(".onnx")));
    interface(&decoded(Path::new(file.unwrap())))
}

fn unet(pipeline: &str) -> std::path::PathBuf {
    fixture("pipelines").join(pipeline).join("unet/model.onnx")
}

const FLOAT: i32 = DataType::Float as i32;
const HALF: i32 = DataType::Float16 as i32;
const INT64: i32 = DataType::Int64 as i32;

#[test]
fn optimum_gets_a_scalar_timestep() {
    let sizes = ["--size", "h=8", "--size", "w=8", "--size", "seq=7"];
    let more = [&["--target", "ort-cuda", "--io", "optimum"], &sizes[..]].concat();
    let (inputs, outputs) = deployed(&fixture("sd15_tiny_fp16.onnx"), &more);
    let expected = [
        format!("sample {FLOAT} [batch,4,h,w]"),
        format!("timestep {INT64} []"),
        format!("encoder_hidden_states {FLOAT} [batch,seq,48]"),
    ];
    assert_eq!(inputs, expected);
    assert_eq!(outputs, [format!("out_sample {FLOAT} [batch,4,h,w]")]);
}

#[test]
fn demodiffusion_gets_the_output_latent_and_one_float16_timestep() {
    let folder = tempfile::tempdir().unwrap();
    let (model, bundle) = (fixture("pipelines").join("sdxl_tiny"), folder.path().join("bundle"));
    let arguments = ["deploy", model.to_str().unwrap(), bundle.to_str().unwrap(), "--target", "tensorrt"];
    let more = ["--io", "demodiffusion", "--count", "2", "--timesteps", "2"];
    succeed(&[&arguments[..], &more].concat());
    assert!(!bundle.join("unet/model.onnx").exists());
    let (inputs, outputs) = interface(&decoded(&bundle.join("unet/model_optimized.onnx")));
    let expected = [
        format!("sample {HALF} [batch_size,4,height,width]"),
        format!("timestep {HALF} [1]"),
        format!("encoder_hidden_states {HALF} [batch_size,sequence_length,24]"),
        format!("text_embeds {HALF} [batch_size,12]"),
        format!("time_ids {HALF} [batch_size,6]"),
    ];
    assert_eq!(inputs, expected);
    assert_eq!(outputs, [format!("latent {HALF} [batch_size,4,height,width]")]);
    let script = std::fs::read_to_string(bundle.join("unet/trtexec_11.sh")).unwrap();
    assert!(script.contains("--onnx=model_optimized.onnx"), "{script}");
    assert!(!script.contains("timestep:"), "{script}");
}

#[test]
fn comfyui_gets_the_embeddings_of_sdxl_as_one_input() {
    let (inputs, outputs) = deployed(&unet("sd_tiny"), &["--target", "tensorrt", "--io", "comfyui"]);
    let expected = [
        format!("x {FLOAT} [batch_size,4,height,width]"),
        format!("timesteps {FLOAT} [batch_size]"),
        format!("context {FLOAT} [batch_size,sequence_length,16]"),
    ];
    assert_eq!(
        (inputs.as_slice(), outputs.as_slice()),
        (&expected[..], &[format!("h {FLOAT} [batch_size,4,height,width]")][..])
    );
    for precision in ["float32", "float16"] {
        let more = ["--target", "tensorrt", "--precision", precision, "--io", "comfyui"];
        let (inputs, _) = deployed(&unet("sdxl_tiny"), &more);
        assert_eq!(inputs.len(), 4, "{inputs:?}");
        assert_eq!(inputs[2], format!("context {FLOAT} [batch_size,sequence_length,24]"));
        assert!(inputs[3].starts_with(&format!("y {FLOAT} [batch_size,")), "{inputs:?}");
    }
    // ComfyUI's timesteps are floats, whatever element type the network has.
    let sizes = ["--size", "h=8", "--size", "w=8", "--size", "seq=7"];
    let more = [&["--target", "tensorrt", "--io", "comfyui"], &sizes[..]].concat();
    let (inputs, _) = deployed(&fixture("sd15_tiny_fp16.onnx"), &more);
    assert_eq!(inputs[1], format!("timesteps {FLOAT} [batch]"));
}

#[test]
fn webnn_fixes_all_sizes() {
    let more = ["--target", "web", "--io", "webnn", "--profile", "batch_size=2,height=16,width=8,sequence_length=77"];
    let (inputs, outputs) = deployed(&unet("sd_tiny"), &more);
    let expected = [
        format!("sample {HALF} [2,4,16,8]"),
        format!("timestep {HALF} [1]"),
        format!("encoder_hidden_states {HALF} [2,77,16]"),
    ];
    assert_eq!(inputs, expected);
    assert_eq!(outputs, [format!("out_sample {HALF} [2,4,16,8]")]);
    // A network without text conditioning, and with an integer timestep for each sample.
    let (inputs, _) =
        deployed(&fixture("ddpm_fashion16.onnx"), &["--target", "web", "--io", "webnn", "--profile", "batch=1"]);
    assert_eq!(inputs, [format!("sample {HALF} [1,1,16,16]"), format!("timestep {INT64} [1]")]);
}

#[test]
fn a_network_without_the_required_inputs_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    for (model, loader, expected) in [
        (fixture("ddpm_fashion16.onnx"), "optimum", "encoder_hidden_states"),
        (fixture("dit_fashion16.onnx"), "comfyui", "context"),
    ] {
        let arguments =
            ["deploy", model.to_str().unwrap(), bundle.to_str().unwrap(), "--target", "ort-cuda", "--io", loader];
        let ran = run(&arguments);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(
            ran.err.contains("text encoder") && ran.err.contains("sample") && ran.err.contains(expected),
            "{}",
            ran.err
        );
        assert!(!bundle.exists());
    }
}
