//! The folder of a bundle: which files are replaced and which are kept, and the engine that is built in it.

use std::path::Path;

use super::tool::{Ran, run, succeed};
use crate::support::files::listing;
use crate::support::fixtures::fixture;

/// Makes a bundle of the small trained U-Net, with few samples.
fn bundle(folder: &Path, more: &[&str]) -> Ran {
    let model = fixture("ddpm_fashion16.onnx");
    let arguments = ["deploy", model.to_str().unwrap(), folder.to_str().unwrap(), "--count", "2", "--timesteps", "2"];
    let data = fixture("ddpm_fashion16/train_images.npy");
    let config = fixture("ddpm_fashion16/scheduler_config.json");
    let samples = ["--data", data.to_str().unwrap(), "--scheduler-config", config.to_str().unwrap()];
    run(&[&arguments[..], &samples, more].concat())
}

#[test]
fn a_bundle_is_replaced_as_a_whole_and_foreign_files_are_kept() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("bundle");
    let ran = bundle(&folder, &["--target", "tensorrt"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(folder.join("trtexec_11.sh").is_file());
    // An engine that was built from the bundle is removed with it. The timing cache is kept for the next engine.
    std::fs::write(folder.join("model.engine"), "old").unwrap();
    std::fs::write(folder.join("timing.cache"), "times").unwrap();
    let ran = bundle(&folder, &["--target", "tensorrt", "--precision", "float32"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(std::fs::read(folder.join("timing.cache")).unwrap(), b"times");
    assert!(!folder.join("model.engine").exists());
    let ran = bundle(&folder, &["--target", "cpu"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(listing(&folder), ["README.md", "bundle.json", "model.onnx"]);
    // A file that is not part of any bundle.
    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    let ran = bundle(&folder, &["--target", "cpu"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("notes.txt"), "{}", ran.err);
    assert_eq!(std::fs::read(folder.join("notes.txt")).unwrap(), b"mine");
    assert_eq!(listing(outer.path()), ["bundle"]);
}

#[test]
fn a_folder_that_is_not_a_bundle_is_refused_before_any_measurement() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("mine");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("README.md"), "mine").unwrap();
    let ran = bundle(&folder, &["--target", "cpu"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("README.md"), "{}", ran.err);
    assert_eq!(std::fs::read(folder.join("README.md")).unwrap(), b"mine");
    // The network is in the folder that would be replaced.
    let own = outer.path().join("own");
    assert_eq!(bundle(&own, &["--target", "cpu"]).code, 0);
    let model = own.join("model.onnx");
    let ran = run(&["deploy", model.to_str().unwrap(), own.to_str().unwrap(), "--target", "web"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(model.is_file());
}

#[test]
fn sizes_that_the_network_cannot_run_at_are_refused_with_valid_ones() {
    let outer = tempfile::tempdir().unwrap();
    let (model, folder) = (fixture("pipelines/sd_tiny/unet/model.onnx"), outer.path().join("bundle"));
    let arguments = ["deploy", model.to_str().unwrap(), folder.to_str().unwrap(), "--target", "tensorrt"];
    for more in [["--profile", "height=15"], ["--profile", "height=16..17"], ["--size", "width=15"]] {
        let ran = run(&[&arguments[..], &more].concat());
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains(more[0]) && ran.err.contains("multiples of 2 work"), "{}", ran.err);
    }
    let ran = run(&["bench", model.to_str().unwrap(), "--size", "height=15"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("--size height=15") && ran.err.contains("14 and 16"), "{}", ran.err);
}

#[test]
fn bfloat16_is_refused_for_targets_that_cannot_compute_in_it() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("bundle");
    let ran = bundle(&folder, &["--target", "web", "--precision", "bf16"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("--precision bfloat16: web"), "{}", ran.err);
    let ran = bundle(&folder, &["--target", "cpu", "--precision", "bf16"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("bfloat16") && ran.err.contains("--keep"), "{}", ran.err);
    assert_eq!(listing(outer.path()), [""; 0]);
}

#[test]
fn int8_calibration_on_samples_of_an_untrained_network_is_warned_about() {
    let outer = tempfile::tempdir().unwrap();
    let (model, folder) = (fixture("pipelines/sd_tiny/unet/model.onnx"), outer.path().join("bundle"));
    let arguments = ["deploy", model.to_str().unwrap(), folder.to_str().unwrap(), "--target", "cpu"];
    let ran = succeed(&[&arguments[..], &["--precision", "int8", "--count", "2", "--timesteps", "2"]].concat());
    assert!(ran.err.contains("always predicts zero"), "{}", ran.err);
    assert!(ran.err.contains("samples that the network generated"), "{}", ran.err);
    let ran = bundle(&outer.path().join("trained"), &["--target", "cpu"]);
    assert!(!ran.err.contains("always predicts zero") && !ran.err.contains("the network generated"), "{}", ran.err);
}

#[cfg(unix)]
mod engines {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// Writes a script in the place of `trtexec`. It prints its version and writes its arguments into the engine file.
    fn program(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    const BUILDS: &str = "#!/bin/sh\n\
        echo '&&&& RUNNING TensorRT.trtexec [TensorRT v101300] [b6]'\n\
        for one in \"$@\"; do case \"$one\" in\n\
        --saveEngine=*) echo \"$@\" > \"${one#--saveEngine=}\";;\n\
        --timingCacheFile=*) echo times > \"${one#--timingCacheFile=}\";;\n\
        esac; done\n";

    fn with_path(path: &Path, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"));
        let output = command.args(arguments).env("PATH", path).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[test]
    fn an_engine_is_named_after_the_network_and_the_trtexec_version() {
        let outer = tempfile::tempdir().unwrap();
        let (model, folder) = (fixture("ddpm_fashion16.onnx"), outer.path().join("bundle"));
        let arguments =
            ["deploy", model.to_str().unwrap(), folder.to_str().unwrap(), "--count", "2", "--timesteps", "2"];
        let more = ["--target", "tensorrt", "--engine", "--format", "json"];
        let all = [&arguments[..], &more].concat();
        // Without trtexec and Python the run prints the command to run elsewhere, and writes nothing.
        let nothing = tempfile::tempdir().unwrap();
        let (code, _, err) = with_path(nothing.path(), &all);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("no trtexec on the PATH") && err.contains("no python3"), "{err}");
        assert!(err.contains("trtexec --onnx=model.onnx") && err.contains("--optShapes=sample:2x1x16x16"), "{err}");
        assert!(!folder.exists());
        let tools = tempfile::tempdir().unwrap();
        program(tools.path(), "trtexec", BUILDS);
        let (code, out, err) = with_path(tools.path(), &all);
        assert_eq!(code, 0, "{err}");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        let engine = Path::new(json["engine"]["file"].as_str().unwrap()).to_owned();
        let name = engine.file_name().unwrap().to_str().unwrap();
        assert!(name.ends_with("_trt10.13.0_gpu.engine") && name.len() > 30, "{name}");
        assert!(engine.starts_with(&folder), "{}", engine.display());
        let built = std::fs::read_to_string(&engine).unwrap();
        assert!(built.contains("--onnx=model.onnx") && built.contains("--stronglyTyped"), "{built}");
        assert!(built.contains("--maxShapes=sample:8x1x16x16"), "{built}");
        assert!(folder.join("timing.cache").is_file());
        let manifest = std::fs::read_to_string(folder.join("bundle.json")).unwrap();
        assert!(manifest.contains(name), "{manifest}");
        // A failed build reports the reason and keeps the earlier bundle.
        program(
            tools.path(),
            "trtexec",
            "#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v101300]'\n[ $1 = --help ] || { echo '[E] no GPU'; exit 1; }\n",
        );
        let (code, _, err) = with_path(tools.path(), &all);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("[E] no GPU"), "{err}");
        assert!(engine.is_file());
    }

    #[test]
    fn an_engine_is_refused_for_targets_without_one() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("bundle");
        let ran = bundle(&folder, &["--target", "cpu", "--engine"]);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains("found cpu"), "{}", ran.err);
        let more = ["--target", "tensorrt", "--engine", "--compute-capability", "8.9"];
        let ran = bundle(&folder, &more);
        assert_eq!(ran.code, 2, "{}", ran.err);
        let more = ["--target", "tensorrt-rtx", "--engine", "--compute-capability", "eight"];
        assert!(bundle(&folder, &more).err.contains("such as 8.9"));
    }
}
