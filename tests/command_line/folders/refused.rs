//! Folders and options that are refused before anything is written.

use std::fs;

use super::{WorkFolder, files};
use crate::support::files::listing;
use crate::tool::run;

/// Runs with these arguments, which must be refused with these words, and must leave no files.
fn refused(work: &WorkFolder, arguments: &[&str], words: &[&str]) {
    let before = files(work.folder.path());
    let ran = run(arguments);
    assert!(ran.code == 1 || ran.code == 2, "{arguments:?}: {}", ran.code);
    for word in words {
        assert!(ran.err.contains(word), "{arguments:?}: expected {word:?} in {}", ran.err);
    }
    assert!(!ran.err.contains(".onnx-diffprune"), "{}", ran.err);
    assert!(files(work.folder.path()) == before, "{arguments:?} left something");
}

#[test]
fn output_paths_that_conflict_with_existing_files_are_refused() {
    let work = WorkFolder::with("sd_tiny");
    fs::create_dir_all(work.path("other/kept")).unwrap();
    fs::write(work.path("other/kept/file"), "mine").unwrap();
    fs::write(work.path("file"), "mine").unwrap();
    let sd = work.text("sd");
    let to = |output: &str, words: &[&str]| {
        refused(&work, &[&sd, &work.text(output), "--ratio", "0.3", "--criterion", "magnitude"], words);
    };
    to("sd", &["the output is the input pipeline", "choose another folder"]);
    to("other/../sd", &["the output is the input pipeline"]);
    to("sd/slim", &["the output is inside the input pipeline"]);
    to("", &["the output contains the input pipeline"]);
    to("other", &["found a folder that this tool did not write"]);
    to("file", &["found a file"]);
    to("none/slim", &["there is no folder"]);
    to("out.onnx", &["out.onnx", "expected a folder as the output", "give a folder"]);
    refused(&work, &[&sd, "--ratio", "0.3"], &["no output is given", "give a folder", "--dry-run"]);
    // A file can't become a folder.
    refused(&work, &[&work.text("sd/unet/model.onnx"), &work.text("other"), "--ratio", "0.3"], &["found a folder"]);
}

#[test]
fn missing_components_are_refused_with_those_that_exist() {
    let work = WorkFolder::with("sd_tiny");
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    let with = |options: &[&str], words: &[&str]| {
        refused(&work, &[&[sd.as_str(), &slim, "--ratio", "0.3"], options].concat(), words);
    };
    let names = "text_encoder, unet, vae_decoder, vae_encoder";
    with(&["--components", "transformer"], &["component \"transformer\"", names]);
    with(&["--components", "unet,scheduler"], &["scheduler", ".onnx"]);
    with(&["--component-ratio", "vae=0.2"], &["expected a component \"vae\""]);
    with(&["--components", "unet", "--component-ratio", "vae_decoder=0.2"], &["vae_decoder", "--components unet"]);
    with(&["--components", ""], &["--components", "found none", "text_encoder, unet"]);
    with(&["--components", "unet,vae_decoder", "--size", "nam=3"], &["no symbolic dimension \"nam\"", "batch_size"]);
    with(&["--component-ratio", "unet"], &["expected COMPONENT=R, found \"unet\""]);
    with(&["--component-ratio", "unet=1.5"], &["expected a share of channels in [0, 1), found 1.5"]);
    with(&["--components", "text_encoder"], &["text_encoder", "--criterion magnitude"]);
    with(&["--components", "vae_decoder", "--rounds", "2"], &["denoiser", "rounds"]);
    with(&["--plan", "x.json"], &["--plan", "model.plan.json"]);
    with(&["--size", "heigth=8", "--criterion", "magnitude"], &["no symbolic dimension \"heigth\""]);
    let unet = work.text("sd/unet/model.onnx");
    refused(
        &work,
        &[&unet, &work.text("a.onnx"), "--ratio", "0.3", "--components", "unet"],
        &["--components", "pipeline"],
    );
}

#[test]
fn unreadable_prompt_files_are_refused_by_name() {
    let work = WorkFolder::with("sd_tiny");
    fs::write(work.path("empty.txt"), "\n \n").unwrap();
    fs::write(work.path("bytes.txt"), b"a photo of a caf\xe9\n").unwrap();
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    for (name, found) in [("empty.txt", "no prompt"), ("bytes.txt", "UTF-8")] {
        let prompts = work.text(name);
        let arguments = [&sd, &slim, "--ratio", "0.3", "--prompts", &prompts];
        refused(&work, &arguments, &[name, found, "--prompts"]);
    }
}

#[test]
fn a_folder_with_files_of_the_user_is_not_replaced() {
    let work = WorkFolder::with("sd_tiny");
    work.prune(&["--no-verify", "--ratio", "0.3", "--criterion", "magnitude"]);
    let again = [&work.text("sd"), &work.text("slim"), "--ratio", "0.4", "--criterion", "magnitude", "--no-verify"];
    let again: Vec<&str> = again.iter().map(|text| text as &str).collect();
    for (name, shown) in [("unet/notes.txt", "unet/notes.txt"), (".git/config", ".git")] {
        let place = work.path(&format!("slim/{name}"));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, "mine").unwrap();
        refused(&work, &again, &[shown, "hint: "]);
        fs::remove_file(&place).unwrap();
    }
    fs::remove_dir(work.path("slim/.git")).unwrap();
    crate::tool::succeed(&again);
}

/// Takes away permissions of a folder until it is dropped. Root does not need any.
#[cfg(unix)]
struct Closed(std::path::PathBuf);

#[cfg(unix)]
impl Closed {
    /// Returns `None` for a user whom permissions do not restrict.
    fn at(path: std::path::PathBuf, mode: u32) -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let closed = Self(path);
        let is_closed = match mode {
            0 => closed.0.read_dir().is_err(),
            _ => fs::write(closed.0.join("probe"), "").is_err(),
        };
        is_closed.then_some(closed)
    }
}

#[cfg(unix)]
impl Drop for Closed {
    fn drop(&mut self) {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755));
        let _ = fs::remove_file(self.0.join("probe"));
    }
}

#[cfg(unix)]
#[test]
fn missing_permissions_are_reported_with_the_path_that_the_user_gave() {
    let work = WorkFolder::with("sd_tiny");
    let (sd, slim) = (work.text("sd"), work.text("shut/slim"));
    let arguments = [&sd, &slim, "--ratio", "0.3", "--criterion", "magnitude"].map(|text| text as &str);
    fs::create_dir(work.path("shut")).unwrap();
    if let Some(_closed) = Closed::at(work.path("shut"), 0o555) {
        let ran = run(&arguments);
        assert!(ran.code == 2 && ran.err.contains("Permission denied"), "{}", ran.err);
        assert!(ran.err.contains("slim") && !ran.err.contains(".onnx-diffprune"), "{}", ran.err);
    }
    if let Some(_closed) = Closed::at(work.path("sd/unet"), 0) {
        let ran = run(&arguments);
        assert!(ran.code == 2 && ran.err.contains("sd/unet: can't be read"), "{}", ran.err);
        assert!(ran.err.contains("check the permissions"), "{}", ran.err);
    }
}

#[test]
fn folders_that_are_not_pipelines_are_refused() {
    let work = WorkFolder::with("sd_tiny");
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    refused(&work, &[&work.text("sd/unet"), &slim, "--ratio", "0.3"], &["unet/model.onnx", "hint: "]);
    fs::rename(work.path("sd/unet"), work.path("unet")).unwrap();
    let found = "found model_index.json, scheduler, text_encoder, tokenizer, vae_decoder, vae_encoder";
    refused(&work, &[&sd, &slim, "--ratio", "0.3"], &["unet/model.onnx or transformer/model.onnx", found]);
    for command in ["inspect", "sample"] {
        let more = if command == "sample" { &["--save-npy", &slim][..] } else { &[] };
        refused(&work, &[&[command, sd.as_str()], more].concat(), &[found]);
    }
    // Prompts need text encoders.
    fs::write(work.path("prompts.txt"), "a cat\n").unwrap();
    let arguments =
        [&work.text("unet/model.onnx"), &work.text("a.onnx"), "--ratio", "0.3", "--prompts", &work.text("prompts.txt")];
    refused(&work, &arguments.map(|text| text as &str), &["prompts", "--pipeline"]);
    assert_eq!(listing(work.folder.path()), ["prompts.txt", "sd", "unet"]);
}
