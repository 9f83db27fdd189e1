//! The files of a bundle next to the network: a README with commands, and files for the tools of the target.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::model::Model;
use super::{DeployOptions, DeployReport};
use crate::deploy::{DeployTarget, Loader};
use crate::error::Error;
use crate::onnx::names::printable;
use crate::onnx::tool_name;
use crate::pipeline::bundle::MANIFEST;

/// The metadata key of a network in a bundle.
const KEY: &str = "onnx_diffprune.deploy";

/// Metadata keys that exporters use for the licence.
const LICENCES: [&str; 4] = ["license", "licence", "license_name", "general.license"];

/// Returns the metadata of the network in the bundle.
pub(super) fn metadata(model: &Model, options: &DeployOptions) -> Vec<(String, String)> {
    let entry = json!({
        "tool": tool_name(),
        "version": env!("CARGO_PKG_VERSION"),
        "source_blake3": model.digest(),
        "target": options.target.name(),
        "precision": options.precision().name(),
    });
    vec![(KEY.to_owned(), entry.to_string())]
}

/// Returns the licence that the model names, or a reference to a licence file next to the model.
fn licence(model: &Model) -> Option<String> {
    let entries = &model.0.proto().metadata_props;
    let named = entries.iter().find(|entry| LICENCES.contains(&entry.key.to_lowercase().as_str()));
    let beside = || {
        let folder = model.0.folder();
        let folders = [Some(folder), folder.parent()];
        let found = folders
            .into_iter()
            .flatten()
            .flat_map(|folder| ["LICENSE", "LICENSE.md", "LICENSE.txt"].map(|name| folder.join(name)));
        let path = found.into_iter().find(|path| path.is_file())?;
        Some(format!("see {} next to the original", path.file_name()?.to_string_lossy()))
    };
    named.map(|entry| entry.value.clone()).or_else(beside)
}

/// Returns the paths and contents of the files next to the network.
pub(super) fn files(
    model: &Model,
    folder: &Path,
    options: &DeployOptions,
    report: &DeployReport,
    written: &[PathBuf],
) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let mut files: Vec<(&str, String)> = Vec::new();
    let profile = &report.profile;
    if options.target.builds_engine() {
        let json = serde_json::to_string_pretty(profile)
            .map_err(|error| Error::usage(format!("the profile can't be converted to JSON: {error}")))?;
        files.push(("profile.json", json + "\n"));
    }
    match options.target {
        DeployTarget::Tensorrt => {
            let engine = "--saveEngine=model.engine".to_owned();
            let cache = "--timingCacheFile=timing.cache".to_owned();
            let common = [vec![format!("--onnx={}", options.name), engine, cache], profile.trtexec()].concat();
            // TensorRT 10 chooses types itself unless the network is strongly typed; 11 always uses the types of the
            // file.
            let typed = [common.as_slice(), &["--stronglyTyped".to_owned()]].concat();
            files.push(("trtexec_10.sh", script("TensorRT 10", "trtexec", &typed)));
            files.push(("trtexec_11.sh", script("TensorRT 11", "trtexec", &common)));
            let arguments = [
                vec![
                    options.name.clone(),
                    "--convert-to trt".to_owned(),
                    "--strongly-typed".to_owned(),
                    "-o model.engine".to_owned(),
                ],
                profile.polygraphy(),
            ];
            files.push(("polygraphy.sh", script("Polygraphy", "polygraphy convert", &arguments.concat())));
            let mut provider = profile.onnx_runtime("trt");
            for (key, value) in [
                ("trt_engine_cache_enable", "1"),
                ("trt_engine_cache_path", "engines"),
                ("trt_timing_cache_enable", "1"),
                ("trt_timing_cache_path", "engines"),
            ] {
                provider.insert(key.to_owned(), value.to_owned());
            }
            // Without this option, the provider does not use float16 kernels for all half-precision types of the file.
            if options.precision().half_type().is_some() {
                provider.insert("trt_fp16_enable".to_owned(), "1".to_owned());
            }
            files.push(("onnxruntime_tensorrt.json", pretty(&json!(provider))));
        }
        DeployTarget::TensorrtRtx => {
            let common = [format!("--onnx={}", options.name), "--saveEngine=model.engine".to_owned()];
            let arguments = [common.as_slice(), &profile.trtexec()].concat();
            files.push((
                "tensorrt_rtx.sh",
                script("TensorRT for RTX, which needs no GPU to build", "tensorrt_rtx", &arguments),
            ));
            let mut provider = profile.onnx_runtime("nv");
            provider.insert("nv_runtime_cache_path".to_owned(), "cache".to_owned());
            files.push(("onnxruntime_tensorrt_rtx.json", pretty(&json!(provider))));
        }
        _ => {}
    }
    let mut files: Vec<(PathBuf, Vec<u8>)> =
        files.into_iter().map(|(name, text)| (folder.join(name), text.into_bytes())).collect();
    files.push((folder.join("README.md"), readme(model, options, report).into_bytes()));
    let names = written.iter().chain(files.iter().map(|(path, _)| path));
    let names: Vec<String> = names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    let manifest = json!({
        "tool": tool_name(),
        "version": env!("CARGO_PKG_VERSION"),
        "source": model.path().file_name().map(|name| name.to_string_lossy()),
        "source_blake3": model.digest(),
        "target": options.target,
        "precision": options.precision(),
        "io": options.loader,
        "profile": report.profile,
        "loss": report.loss,
        "distances": report.distances,
        "engine": report.engine.as_ref().map(|engine| &engine.builder),
        "files": names,
    });
    files.push((folder.join(MANIFEST), pretty(&manifest).into_bytes()));
    Ok(files)
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Returns a shell script that runs one command.
fn script(what: &str, command: &str, arguments: &[String]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    format!(
        "#!/bin/sh\n# Builds the engine with {what}.\ncd \"$(dirname \"$0\")\" || exit\n{command} \\\n  {}\n",
        quoted.join(" \\\n  ")
    )
}

/// Quotes an argument, or an option with its values, for a shell: names of inputs come from a file.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=:,./ ".contains(c);
    let words = argument.split(' ').map(|word| match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns the README.
fn readme(model: &Model, options: &DeployOptions, report: &DeployReport) -> String {
    let name = model.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (before, after) = report.bytes;
    let mut text = format!(
        "# {} for {}\n\nCreated by {} from `{}` (BLAKE3 of model and data `{}`).\n\n",
        printable(&name),
        options.target.name(),
        tool_name(),
        printable(&name),
        model.digest()
    );
    match licence(model) {
        Some(licence) => text += &format!("Licence of the original: {}.\n\n", printable(&licence)),
        None => text += "The original names no licence. The terms of the original apply to this network too.\n\n",
    }
    text += "| | before | after |\n|---|---|---|\n";
    text += &format!("| precision | as exported | {} |\n", report.precision.name());
    text += &format!("| bytes | {before} | {after} |\n");
    if let Some((before, after)) = report.loss {
        text += &format!("| denoising loss | {before:.6} | {after:.6} ({:+.2} %) |\n", 100.0 * (after / before - 1.0));
    }
    text += "\n";
    for distance in &report.distances {
        text += &format!(
            "Output `{}`: relative error {:.2e} (root mean square), {:.2e} at worst.\n",
            printable(&distance.output),
            distance.relative,
            distance.worst
        );
    }
    if report.distances.is_empty() {
        text += "The error of this precision was not measured: ONNX Runtime can't run it on the CPU.\n\n";
    }
    text += &format!("Measured in ONNX Runtime on the CPU, on {}.\n\n", printable(&report.samples));
    if let Some(half) = &report.half {
        text += &format!(
            "{} nodes compute in {}, {} remain in float32 for these reasons, with {} casts in between:\n\n",
            half.half,
            report.precision.name(),
            half.kept.len(),
            half.casts
        );
        for kept in &half.kept {
            text += &format!("- `{}` ({}): {}\n", printable(&kept.node), printable(&kept.op), printable(&kept.reason));
        }
        text += "\n";
    }
    if let Some(int8) = &report.int8 {
        text += &format!(
            "{} layers compute in int8, {} remain in float32. With every layer in int8 that allows it, the mean squared error of \
             the output would be {:.2e}; it is {:.2e}.\n\n",
            int8.quantized,
            int8.kept.len(),
            int8.difference_of_all,
            int8.difference
        );
        for kept in &int8.kept {
            text += &format!("- `{}` ({}): {}\n", printable(&kept.node), printable(&kept.op), printable(&kept.reason));
        }
        text += "\n";
    }
    if !report.profile.symbols.is_empty() {
        text += "| dimension | minimum | usual | maximum |\n|---|---|---|---|\n";
        for (name, extent) in &report.profile.symbols {
            text += &format!("| `{}` | {} | {} | {} |\n", printable(name), extent.min, extent.opt, extent.max);
        }
        text += "\n";
    }
    if let Some(loader) = report.loader {
        text += &format!("Names, ranks and types of inputs and outputs are those that {} expects.\n\n", loader.name());
    }
    if let Some(engine) = &report.engine {
        let name = engine.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        text += &format!("`{}` was built from this network by {}.\n\n", printable(&name), printable(&engine.builder));
    }
    text + &commands(options, report)
}

/// Returns the section with the commands of the target.
fn commands(options: &DeployOptions, report: &DeployReport) -> String {
    let (target, name) = (options.target, printable(&options.name));
    let overrides: Vec<(String, i64)> =
        report.profile.symbols.iter().map(|(name, extent)| (name.clone(), extent.opt)).collect();
    let block = |language: &str, text: &str| format!("```{language}\n{text}\n```\n\n");
    let python = |provider: &str| {
        block(
            "python",
            &format!("import onnxruntime as ort\n\nsession = ort.InferenceSession(\"{name}\", providers=[{provider}])"),
        )
    };
    match target {
        DeployTarget::Tensorrt => {
            let provider =
                "import json\nimport onnxruntime as ort\n\noptions = json.load(open(\"onnxruntime_tensorrt.json\"))\n\
                providers = [(\"TensorrtExecutionProvider\", options), \"CUDAExecutionProvider\"]\n\
                session = ort.InferenceSession(\"NAME\", providers=providers)"
                    .replace("NAME", &name);
            format!(
                "## Commands\n\nAn engine only works with the GPU and the TensorRT version that it was built for. Run one of:\n\n{}\
                 ONNX Runtime builds the engine when it first runs, and keeps it in `engines`:\n\n{}\
                 Measure its latency: `trtexec --loadEngine=model.engine --useCudaGraph`.\n",
                block("sh", "sh trtexec_10.sh    # TensorRT 10\nsh trtexec_11.sh    # TensorRT 11\nsh polygraphy.sh"),
                block("python", &provider)
            )
        }
        DeployTarget::TensorrtRtx => {
            let provider = "import json\nimport onnxruntime as ort\n\noptions = json.load(open(\"onnxruntime_tensorrt_rtx.json\"))\n\
                session = ort.InferenceSession(\"NAME\", providers=[(\"NvTensorRTRTXExecutionProvider\", options)])"
                .replace("NAME", &name);
            format!(
                "## Commands\n\nThe engine is built without a GPU and runs on RTX cards of compute capability 8.0 and later:\n\n{}\
                 ONNX Runtime can also build it in memory:\n\n{}",
                block("sh", "sh tensorrt_rtx.sh"),
                block("python", &provider)
            )
        }
        DeployTarget::OrtCuda => format!("## Commands\n\n{}", python("\"CUDAExecutionProvider\"")),
        DeployTarget::Directml => {
            let mut lines = vec![
                "import onnxruntime as ort".to_owned(),
                String::new(),
                "options = ort.SessionOptions()".to_owned(),
                "options.enable_mem_pattern = False".to_owned(),
                "options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL".to_owned(),
            ];
            for (name, size) in &overrides {
                lines.push(format!("options.add_free_dimension_override_by_name({name:?}, {size})"));
            }
            lines.push(format!(
                "session = ort.InferenceSession(\"{name}\", options, providers=[\"DmlExecutionProvider\"])"
            ));
            format!(
                "## Commands\n\nDirectML is fastest if all sizes are fixed:\n\n{}",
                block("python", &lines.join("\n"))
            )
        }
        DeployTarget::Openvino => {
            let text = format!(
                "import openvino as ov\n\nnetwork = ov.Core().compile_model(\"{name}\", \"CPU\")  # or \"GPU\", \"NPU\""
            );
            format!(
                "## Commands\n\n{}{}",
                block("python", &text),
                block(
                    "sh",
                    &format!("ovc {name} --output_model model.xml    # converts the network to OpenVINO's format")
                )
            )
        }
        DeployTarget::Web => {
            let sizes: Vec<String> = overrides.iter().map(|(name, size)| format!("{name:?}: {size}")).collect();
            let sizes = match sizes.as_slice() {
                [] => String::new(),
                sizes => format!("\n  freeDimensionOverrides: {{ {} }},", sizes.join(", ")),
            };
            let (provider, note) = match options.loader {
                Some(Loader::Webnn) => ("webnn", ""),
                _ => ("webgpu", "WebGPU computes in float16 only if the adapter has the feature `shader-f16`.\n"),
            };
            let text = format!(
                "const session = await ort.InferenceSession.create(\"{name}\", {{\n  executionProviders: [\"{provider}\"],\
                 {sizes}\n}});"
            );
            format!("## Commands\n\n{}{note}", block("js", &text))
        }
        DeployTarget::Cpu => {
            format!(
                "## Commands\n\n{}Measure its latency: `onnx-diffprune bench {name}`.\n",
                python("\"CPUExecutionProvider\"")
            )
        }
    }
}
