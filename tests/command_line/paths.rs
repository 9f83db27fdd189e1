//! Paths of a run: no output replaces an input, and no two outputs are the same file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::npz;

use super::tool::{Ran, run};
use super::workspace::Workspace;
use crate::support::external::externalised;
use crate::support::fixtures::fixture;
use crate::support::two_convolutions::two_convolutions;

/// A workspace with one file of every kind that a command reads, and the contents of all its files.
struct WorkFolder {
    workspace: Workspace,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl WorkFolder {
    fn new() -> Self {
        let workspace = Workspace::new();
        let (model, data) = externalised(&two_convolutions(), "in.onnx_data");
        std::fs::write(workspace.path("in.onnx"), model).unwrap();
        std::fs::write(workspace.path("in.onnx_data"), data).unwrap();
        let x = Array { dims: vec![1, 4, 8, 8], data: ArrayData::F32(vec![0.5; 256]) };
        npz::write(&workspace.path("i.npz"), [("x", &x)]).unwrap();
        std::fs::write(workspace.path("options.toml"), "ratio = 0.5\ncriterion = \"magnitude\"\n").unwrap();
        std::fs::write(workspace.path("scheduler.json"), "{\"beta_schedule\": \"linear\"}").unwrap();
        std::fs::create_dir(workspace.path("images")).unwrap();
        let image = image::GrayImage::from_pixel(8, 8, image::Luma([9]));
        image.save(workspace.path("images/a.png")).unwrap();
        let plan = workspace.text("p.json");
        let ran = run(&[
            &workspace.text("in.onnx"),
            &workspace.text("pruned.onnx"),
            "--ratio",
            "0.5",
            "--criterion",
            "magnitude",
            "--no-verify",
            "--plan",
            &plan,
        ]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let mut work = Self { workspace, before: BTreeMap::new() };
        work.before = work.content();
        work
    }

    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let folders = [
            self.workspace.folder.path().to_owned(),
            self.workspace.path("images"),
            self.workspace.output.path().to_owned(),
        ];
        let mut content = BTreeMap::new();
        for folder in folders {
            for entry in folder.read_dir().unwrap() {
                let path = entry.unwrap().path();
                // For a link, its target.
                let bytes = match path.read_link() {
                    Ok(target) => target.into_os_string().into_encoded_bytes(),
                    Err(_) if path.is_dir() => Vec::new(),
                    Err(_) => std::fs::read(&path).unwrap(),
                };
                content.insert(path, bytes);
            }
        }
        content
    }

    /// Expects that a run is refused with both names, and that no file has changed.
    fn refuses(&self, arguments: &[&str], words: [&str; 2]) {
        let ran = run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(
            words.iter().all(|word| ran.err.contains(word)),
            "{arguments:?}: expected {words:?}, found {}",
            ran.err
        );
        assert!(self.content() == self.before, "{arguments:?} changed something: {:?}", self.content().keys());
    }

    fn text(&self, name: &str) -> String {
        self.workspace.text(name)
    }

    fn prune<'a>(&'a self, output: &'a str, more: &[&'a str]) -> Vec<String> {
        let mut arguments = vec![self.text("in.onnx"), output.to_owned(), "--no-verify".to_owned()];
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        if !more.contains(&"--config") {
            arguments.extend(["--ratio", "0.5", "--criterion", "magnitude"].map(str::to_owned));
        }
        arguments
    }

    fn refuses_prune(&self, output: &str, more: &[&str], words: [&str; 2]) {
        let arguments = self.prune(output, more);
        self.refuses(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), words);
    }
}

#[test]
fn no_output_of_pruning_replaces_an_input() {
    let work = WorkFolder::new();
    let out = work.workspace.out("out.onnx");
    let [input, data, inputs, config, scheduler, image] =
        ["in.onnx", "in.onnx_data", "i.npz", "options.toml", "scheduler.json", "images/a.png"]
            .map(|name| work.text(name));
    let given = ["--inputs", &inputs, "--config", &config, "--scheduler-config", &scheduler];
    let images = work.text("images");
    let with = |more: &[&str]| {
        [&given[..], &["--data", images.as_str()], more]
            .concat()
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    for (file, name) in [
        (&input, "IN.onnx"),
        (&data, "the external data of IN.onnx"),
        (&inputs, "--inputs"),
        (&config, "--config"),
        (&scheduler, "--scheduler-config"),
        (&image, "a file of --data"),
    ] {
        for option in ["--plan", "--report"] {
            let more = with(&[option, file.as_str()]);
            work.refuses_prune(&out, &more.iter().map(String::as_str).collect::<Vec<_>>(), [option, name]);
        }
        let more = with(&[]);
        work.refuses_prune(file, &more.iter().map(String::as_str).collect::<Vec<_>>(), ["OUT.onnx", name]);
        let dry = with(&["--dry-run", "--report", file]);
        work.refuses_prune(&out, &dry.iter().map(String::as_str).collect::<Vec<_>>(), ["--report", name]);
    }
    // A file of samples, and paths derived from the name of the output.
    work.refuses_prune(&out, &["--data", &inputs, "--report", &inputs], ["--report", "--data"]);
    work.refuses_prune(
        &work.text("p.onnx"),
        &["--inputs", &work.text("p.onnx.data")],
        ["external data of OUT.onnx", "--inputs"],
    );
    work.refuses_prune(
        &work.text("p.onnx"),
        &["--inputs", &work.text("p.plan.json")],
        ["the plan of OUT.onnx", "--inputs"],
    );
}

#[test]
fn no_two_outputs_of_pruning_are_the_same_file() {
    let work = WorkFolder::new();
    let out = work.workspace.out("out.onnx");
    for (option, other) in [("--report", "--plan"), ("--plan", "--report")] {
        let both = work.workspace.out("both");
        work.refuses_prune(&out, &[option, &both, other, &both], ["--plan", "--report"]);
    }
    work.refuses_prune(&out, &["--report", &out], ["OUT.onnx", "--report"]);
    work.refuses_prune(&out, &["--plan", &out], ["OUT.onnx", "--plan"]);
    work.refuses_prune(&out, &["--report", &work.workspace.out("out.plan.json")], ["the plan of OUT.onnx", "--report"]);
    work.refuses_prune(
        &out,
        &["--report", &work.workspace.out("out.onnx.data")],
        ["external data of OUT.onnx", "--report"],
    );
    // The default criterion computes gradients, whose checkpoint is written beside the output.
    let (input, report) = (work.text("in.onnx"), work.workspace.out("out.gradients.npz"));
    work.refuses(&[&input, &out, "--ratio", "0.5", "--report", &report], ["the checkpoint of OUT.onnx", "--report"]);
    let report = work.workspace.out("out.refit.npz");
    work.refuses(
        &[&input, &out, "--ratio", "0.5", "--report", &report],
        ["the checkpoint of the refit of OUT.onnx", "--report"],
    );
    // An output that equals the path of its plan.
    let plan = work.workspace.out("x.plan.json");
    work.refuses_prune(&plan, &["--plan", &plan], ["OUT.onnx", "--plan"]);
}

#[cfg(unix)]
#[test]
fn detours_links_and_hard_links_are_resolved() {
    use std::os::unix::fs::symlink;
    let mut work = WorkFolder::new();
    let workspace = &work.workspace;
    std::fs::hard_link(workspace.path("i.npz"), workspace.path("hard")).unwrap();
    symlink("i.npz", workspace.path("soft")).unwrap();
    symlink("soft", workspace.path("softer")).unwrap();
    symlink(workspace.folder.path(), workspace.path("again")).unwrap();
    symlink("out.json", workspace.output.path().join("nowhere-yet")).unwrap();
    symlink(workspace.output.path(), workspace.path("outputs")).unwrap();
    work.before = work.content();
    let (out, inputs) = (work.workspace.out("out.onnx"), work.text("i.npz"));
    let folder = work.workspace.folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    for path in [
        "hard",
        "soft",
        "softer",
        "again/i.npz",
        "again/again/soft",
        "./i.npz",
        &format!("../{folder}/i.npz"),
        "images/../i.npz",
        "images//..//i.npz",
    ] {
        work.refuses_prune(&out, &["--inputs", &inputs, "--report", &work.text(path)], ["--report", "--inputs"]);
        // The reverse case: the path of the input has the detour.
        work.refuses_prune(&out, &["--inputs", &work.text(path), "--plan", &inputs], ["--plan", "--inputs"]);
    }
    // Files that do not exist yet are compared by their paths.
    let place = work.workspace.out("out.json");
    for path in [work.text("outputs/out.json"), work.workspace.out("./out.json"), work.workspace.out("nowhere-yet")] {
        work.refuses_prune(&out, &["--plan", &place, "--report", &path], ["--plan", "--report"]);
    }
}

#[test]
fn relative_and_absolute_paths_are_compared() {
    let work = WorkFolder::new();
    let input = work.text("in.onnx");
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"))
        .current_dir(work.workspace.folder.path())
        .args([
            input.as_str(),
            "./new.onnx",
            "--ratio",
            "0.5",
            "--criterion",
            "magnitude",
            "--no-verify",
            "--plan",
            "in.onnx",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(2) && text.contains("--plan would replace IN.onnx"), "{text}");
    assert!(work.content() == work.before);
}

#[test]
fn other_commands_also_refuse_conflicting_paths() {
    let work = WorkFolder::new();
    let [input, plan, data] = ["in.onnx", "p.json", "in.onnx_data"].map(|name| work.text(name));
    work.refuses(&["apply", &input, &plan, &plan], ["OUT.onnx", "PLAN.json"]);
    work.refuses(&["apply", &input, &plan, &input], ["OUT.onnx", "IN.onnx"]);
    work.refuses(&["apply", &input, &plan, &data, "--no-verify"], ["OUT.onnx", "the external data of IN.onnx"]);

    let model = work.text("network.onnx");
    std::fs::copy(fixture("dit_tiny.onnx"), &model).unwrap();
    let mut work = work;
    work.before = work.content();
    let (scheduler, npz) = (work.text("scheduler.json"), work.text("i.npz"));
    work.refuses(&["sample", &model, "-o", &model], ["--output", "MODEL.onnx"]);
    work.refuses(&["sample", &model, "--save-npy", &model], ["--save-npy", "MODEL.onnx"]);
    let both = work.workspace.out("both.png");
    work.refuses(&["sample", &model, "-o", &both, "--save-npy", &both], ["--output", "--save-npy"]);
    work.refuses(&["sample", &model, "-o", &npz, "--inputs", &npz], ["--output", "--inputs"]);
    let arguments = ["sample", &model, "--save-npy", &scheduler, "--scheduler-config", &scheduler];
    work.refuses(&arguments, ["--save-npy", "--scheduler-config"]);

    // An artifact whose path equals that of the model.
    std::fs::create_dir(work.text("train")).unwrap();
    let inside = work.text("train/training_model.onnx");
    std::fs::copy(&model, &inside).unwrap();
    let before = std::fs::read(&inside).unwrap();
    work.before = work.content();
    work.refuses(&["artifacts", &inside, &work.text("train")], ["OUT_DIR", "IN.onnx"]);
    assert!(std::fs::read(&inside).unwrap() == before);
    work.refuses(&["artifacts", &model, &model], ["expected a folder", "network.onnx"]);
}

#[test]
fn an_output_that_replaces_the_runtime_library_is_refused() {
    let work = WorkFolder::new();
    let library = work.text("libonnxruntime.so");
    std::fs::write(&library, "not really").unwrap();
    let mut work = work;
    work.before = work.content();
    let out = work.workspace.out("out.onnx");
    work.refuses_prune(&out, &["--onnxruntime", &library, "--report", &library], ["--report", "--onnxruntime"]);
}

#[test]
fn output_paths_are_checked_before_the_run_starts() {
    let work = WorkFolder::new();
    let out = work.workspace.out("out.onnx");
    let folder = work.workspace.output.path().to_str().unwrap();
    for place in ["no/such/folder/x", "../no-such-folder-beside/x", "in.onnx/x"] {
        let place = work.text(place);
        for option in ["--plan", "--report"] {
            work.refuses_prune(&out, &[option, &place], ["can't be written", "there is no folder"]);
        }
        work.refuses_prune(&place, &[], ["can't be written", "there is no folder"]);
    }
    for (place, word) in
        [(folder, "found a folder"), (&format!("{folder}/x/"), "found a folder"), ("/dev/null", "found a device")]
    {
        for option in ["--plan", "--report"] {
            work.refuses_prune(&out, &[option, place], [word, "expected a path for a file"]);
        }
    }
    let long = work.workspace.out(&"x".repeat(300));
    work.refuses_prune(&out, &["--report", &long], ["can't be written", "too long"]);
    // The name of the plan is longer than that of the output.
    let long = work.workspace.out(&format!("{}.onnx", "x".repeat(249)));
    work.refuses_prune(&long, &[], ["can't be written", "too long"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_unwritable_folder_is_reported_before_the_run_starts() {
    let work = WorkFolder::new();
    let out = work.workspace.out("out.onnx");
    // No user can create a file here. The gradients would take minutes.
    for place in ["/proc/x.html", "/sys/x.html"] {
        let started = std::time::Instant::now();
        work.refuses_prune(&out, &["--report", place], [place, "can't be written"]);
        work.refuses_prune(&out, &["--plan", place], [place, "can't be written"]);
        let model = fixture("dit_tiny.onnx");
        let ran = run(&[model.to_str().unwrap(), &out, "--ratio", "0.5", "--report", place]);
        assert!(ran.code == 2 && ran.err.contains("can't be written") && !ran.err.contains("process:"), "{}", ran.err);
        let ran = run(&["sample", model.to_str().unwrap(), "-o", place]);
        assert!(ran.code == 2 && ran.err.contains("can't be written") && !ran.err.contains("process:"), "{}", ran.err);
        let ran = run(&["artifacts", model.to_str().unwrap(), place]);
        assert!(ran.code == 2 && ran.err.contains("can't be written"), "{}", ran.err);
        assert!(started.elapsed().as_secs() < 60);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn device_names_of_standard_output_are_refused_as_output() {
    let work = WorkFolder::new();
    let to = std::fs::File::create(work.workspace.output.path().join("redirected")).unwrap();
    let input = work.text("in.onnx");
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"))
        .args([&input, "/dev/stdout", "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"])
        .stdout(to)
        .output()
        .unwrap();
    let text = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{text}");
    assert!(Path::new("/dev/stdout").is_symlink(), "{text}");
}

/// Samples that can't be written as images are refused before they are generated.
#[test]
fn an_image_grid_that_is_too_large_is_refused_before_sampling() {
    let workspace = Workspace::new();
    let model = fixture("dit_tiny.onnx");
    let Ran { code, err, .. } =
        run(&["sample", model.to_str().unwrap(), "-o", &workspace.out("grid.png"), "--count", "100000000000"]);
    assert!(code != 0 && err.contains("too large") && !err.contains("process:"), "{err}");
    assert!(workspace.written().is_empty());
}
