//! Runs that end early: by a signal, by a report that can't be written, by a failed verification.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::tool::{run, succeed};
use super::workspace::Workspace;
use crate::support::files::listing;
use crate::support::fixtures::fixture;

const TOOL: &str = env!("CARGO_BIN_EXE_onnx-diffprune");

/// Starts the program with its own folder for temporary files.
fn start(program: &[&str], arguments: &[&str], temporary: &Path) -> Child {
    Command::new(program[0])
        .args(&program[1..])
        .args(arguments)
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn kill(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until an entry of a folder satisfies `is_it`. Returns whether that happened before the program ended.
fn appears(child: &mut Child, folder: &Path, is_it: impl Fn(&Path) -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(120) {
        let entries = folder.read_dir().unwrap().flatten().map(|entry| entry.path());
        if entries.into_iter().any(|path| is_it(&path)) {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no such entry appeared in {} within 120 s", folder.display());
}

fn is_hidden_folder(path: &Path) -> bool {
    path.is_dir() && path.file_name().unwrap().to_str().unwrap().starts_with(".onnx-diffprune-")
}

/// Returns what this program left in a folder for temporary files. ONNX Runtime leaves a `.ses` there.
fn ours(temporary: &Path) -> Vec<String> {
    listing(temporary).into_iter().filter(|name| name.contains("diffprune")).collect()
}

/// Sends a signal to a run during its verification. Returns its exit status, the files left in both folders, and
/// standard error.
fn ended_by(signal: &str, program: &[&str]) -> (std::process::ExitStatus, Vec<String>, String) {
    let model = fixture("ddpm_fashion16.onnx");
    for _ in 0..20 {
        let (workspace, temporary) = (Workspace::new(), tempfile::tempdir().unwrap());
        let output = workspace.out("out.onnx");
        let arguments = [model.to_str().unwrap(), &output, "--ratio", "0.5", "--criterion", "magnitude"];
        let mut child = start(program, &arguments, temporary.path());
        let has_begun =
            appears(&mut child, workspace.output.path(), |path| is_hidden_folder(path) && !listing(path).is_empty());
        if has_begun {
            kill(&child, signal);
        }
        let ended = child.wait_with_output().unwrap();
        // The run ended before the signal arrived: repeat.
        if !has_begun || ended.status.success() {
            continue;
        }
        let left = [workspace.written(), ours(temporary.path())].concat();
        return (ended.status, left, String::from_utf8(ended.stderr).unwrap());
    }
    panic!("in 20 attempts, the run always ended before the signal");
}

#[test]
fn a_signal_ends_a_run_with_that_signal_and_no_files_are_left() {
    for (signal, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1), ("-QUIT", 3)] {
        let (status, left, err) = ended_by(signal, &[TOOL]);
        assert_eq!(status.signal(), Some(number), "{err}");
        assert!(left.is_empty(), "{signal} leaves {left:?}");
        assert_eq!(err, "", "an interrupted run should print no errors");
        // The status that a shell reports.
        let (status, left, _) = ended_by(signal, &["sh", "-c", r#"trap "" USR1; exec "$0" "$@""#, TOOL]);
        assert!(status.signal() == Some(number) && left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_signal_during_the_gradients_ends_the_run_soon_and_leaves_no_files() {
    let (workspace, temporary) = (Workspace::new(), tempfile::tempdir().unwrap());
    let model = fixture("dit_tiny.onnx");
    let output = workspace.out("out.onnx");
    let arguments = [model.to_str().unwrap(), &output, "--ratio", "0.5", "--draw-steps", "2"];
    let child = start(&[TOOL], &arguments, temporary.path());
    std::thread::sleep(Duration::from_secs(3));
    let asked = Instant::now();
    kill(&child, "-TERM");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.signal(), Some(15));
    assert!(asked.elapsed() < Duration::from_secs(5), "still running {:?} after the signal", asked.elapsed());
    assert!(workspace.written().is_empty() && ours(temporary.path()).is_empty(), "left: {:?}", workspace.written());
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let model = fixture("dit_tiny.onnx");
    let (workspace, temporary) = (Workspace::new(), tempfile::tempdir().unwrap());
    let output = workspace.out("out.onnx");
    let arguments = [model.to_str().unwrap(), &output, "--ratio", "0.5", "--criterion", "magnitude"];
    let program = ["sh", "-c", r#"trap "" HUP; exec "$0" "$@""#, TOOL];
    let mut child = start(&program, &arguments, temporary.path());
    appears(&mut child, workspace.output.path(), is_hidden_folder);
    kill(&child, "-HUP");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8(ended.stderr).unwrap());
    assert_eq!(workspace.written(), ["out.onnx", "out.plan.json"]);
}

/// Returns the paths below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_report_that_fails_at_the_end_leaves_neither_model_nor_plan() {
    let model = fixture("dit_tiny.onnx");
    for _ in 0..10 {
        let (workspace, temporary) = (Workspace::new(), tempfile::tempdir().unwrap());
        let output = workspace.out("out.onnx");
        std::fs::write(workspace.out("out.plan.json"), "an older plan").unwrap();
        let reports = workspace.path("reports");
        std::fs::create_dir(&reports).unwrap();
        let report = reports.join("report.html");
        let arguments = [
            model.to_str().unwrap(),
            &output,
            "--ratio",
            "0.5",
            "--criterion",
            "magnitude",
            "--report",
            report.to_str().unwrap(),
        ];
        let mut child = start(&[TOOL], &arguments, temporary.path());
        let has_begun = appears(&mut child, workspace.output.path(), is_hidden_folder);
        // The folder of the report is removed while the cut is verified.
        std::fs::remove_dir_all(&reports).unwrap();
        let ended = child.wait_with_output().unwrap();
        if !has_begun || ended.status.success() {
            continue;
        }
        let err = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(2) && err.contains("report.html: can't be written"), "{err}");
        assert_eq!(below(workspace.output.path()), [workspace.output.path().join("out.plan.json")]);
        assert_eq!(std::fs::read_to_string(workspace.out("out.plan.json")).unwrap(), "an older plan");
        return;
    }
    panic!("the run always ended before the folder was removed");
}

#[test]
fn resume_without_a_usable_checkpoint_is_reported() {
    let workspace = Workspace::new();
    let model = fixture("dit_tiny.onnx");
    let (model, output) = (model.to_str().unwrap(), workspace.out("out.onnx"));
    let quick = ["--ratio", "0.5", "--timesteps", "2", "--draw-steps", "2", "--no-verify"];
    let resumed = succeed(&[&[model, &output, "--resume"], &quick[..]].concat());
    let checkpoint = workspace.out("out.gradients.npz");
    let warning = resumed.err.lines().find(|line| line.starts_with("warning: --resume")).unwrap_or_default();
    assert!(warning.contains(&checkpoint), "{}", resumed.err);
    assert!(resumed.out.contains("wrote"), "{}", resumed.out);
    // The warning comes before the gradients, not after them.
    let (before, _) = resumed.err.split_once(warning).unwrap();
    assert!(!before.contains("gradients of"), "{before}");

    let dry = succeed(&[&[model, "--resume", "--dry-run"], &quick[..]].concat());
    assert!(dry.err.contains("--resume has no effect"), "{}", dry.err);
    let magnitude = workspace.prune(&["--ratio", "0.5", "--no-verify", "--resume"]);
    assert!(magnitude.code == 0 && magnitude.err.contains("--resume has no effect"), "{}", magnitude.err);

    // An existing checkpoint that the run does not use is reported.
    std::fs::write(&checkpoint, "of an earlier run").unwrap();
    let anew = succeed(&[&[model, &output], &quick[..]].concat());
    assert!(anew.err.contains(&checkpoint) && anew.err.contains("--resume"), "{}", anew.err);
    // A file that is not a checkpoint is refused.
    std::fs::write(&checkpoint, "not a checkpoint").unwrap();
    let broken = run(&[&[model, &output, "--resume"], &quick[..]].concat());
    assert!(broken.code == 2 && broken.err.contains("out.gradients.npz"), "{}", broken.err);
    assert_eq!(std::fs::read_to_string(&checkpoint).unwrap(), "not a checkpoint");
}

#[test]
fn the_next_run_removes_files_of_a_killed_run_but_not_of_a_live_one() {
    let model = fixture("dit_tiny.onnx");
    let (workspace, temporary) = (Workspace::new(), tempfile::tempdir().unwrap());
    let (output, other) = (workspace.out("out.onnx"), workspace.out("other.onnx"));
    let options = ["--ratio", "0.5", "--criterion", "magnitude"];
    let arguments = [&[model.to_str().unwrap(), &output], &options[..]].concat();
    let has_lock = |path: &Path| is_hidden_folder(path) && listing(path).iter().any(|name| name.ends_with(".lock"));
    let mut killed = start(&[TOOL], &arguments, temporary.path());
    while !appears(&mut killed, workspace.output.path(), has_lock) {
        killed = start(&[TOOL], &arguments, temporary.path());
    }
    kill(&killed, "-KILL");
    killed.wait().unwrap();
    assert_eq!(workspace.written().len(), 1, "{:?}", workspace.written());

    // A folder with such a name but of unknown origin.
    let unknown = workspace.output.path().join(".onnx-diffprune-unknown");
    std::fs::create_dir(&unknown).unwrap();
    let mut living = start(&[TOOL], &arguments, temporary.path());
    appears(&mut living, workspace.output.path(), |path| has_lock(path) && path != unknown);
    succeed(&[&workspace.text("in.onnx"), &other, "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"]);
    let ended = living.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8(ended.stderr).unwrap());
    let written = [".onnx-diffprune-unknown", "other.onnx", "other.plan.json", "out.onnx", "out.plan.json"];
    assert_eq!(workspace.written(), written);
}
