//! The command that prunes, as users run it: exit codes, messages, output streams, written files.

use std::path::Path;
use std::process::{Command, Output};

use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{GraphProto, TensorProto};
use onnx_diffprune::plan::Plan;
use prost::Message;
use serde_json::Value;

use super::tool::run;
use super::workspace::Workspace;
use crate::support::builder::{counting, model_of, node, value};
use crate::support::files::listing;
use crate::support::fixtures::fixture;
use crate::support::two_convolutions::two_convolutions;

#[test]
fn invalid_usage_exits_with_code_2() {
    let workspace = Workspace::new();
    workspace.refuses(&run(&[]), 2, "--ratio");
    for (arguments, message) in [
        (vec!["--no-such-flag"], "--no-such-flag"),
        (vec!["--ratio", "-1"], "--option=-1"),
        (vec!["--ratio", "0.5", "extra.onnx"], "extra.onnx"),
        (vec![], "no pruning target"),
        (vec!["--ratio", "1.0"], "[0, 1)"),
        (vec!["--ratio=-0.1"], "[0, 1)"),
        (vec!["--ratio", "nan"], "[0, 1)"),
        (vec!["--ratio", "half"], "half"),
        (vec!["--ratio", "0.5", "--target-macs", "0.5"], "cannot be used with"),
        (vec!["--target-macs", "0"], "(0, 1]"),
        (vec!["--target-params", "1.5"], "(0, 1]"),
        (vec!["--ratio", "0.5", "--round-to", "0"], "--round-to"),
        (vec!["--ratio", "0.5", "--max-ratio", "1.5"], "--max-ratio"),
        (vec!["--ratio", "0.5", "--keep", "("], "--keep"),
        (vec!["--ratio-for", "first"], "REGEX=R"),
        (vec!["--ratio", "0.5", "--size", "n=0"], "NAME=N"),
        (vec!["--ratio", "0.5", "--size", "batch=2"], "no symbolic dimension"),
        (vec!["--ratio", "0.5", "--inputs", "/nowhere.npz"], "/nowhere.npz"),
        (vec!["--config", "/nowhere.toml"], "/nowhere.toml"),
        (vec!["--ratio", "0.5", "--onnxruntime", "/dev/null"], "hint: "),
    ] {
        workspace.refuses(&workspace.prune(&arguments), 2, message);
    }
}

#[test]
fn patterns_without_a_match_are_reported() {
    let workspace = Workspace::new();
    let ran = workspace.prune(&["--ratio", "0.5", "--no-verify", "--keep", "misspelt", "--ratio-for", "wrong=0.2"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("--keep \"misspelt\"") && ran.err.contains("--ratio-for \"wrong\""), "{}", ran.err);
    let ran = workspace.prune(&["--ratio", "0.5", "--no-verify", "--ratio-for", ".=0.2"]);
    assert!(ran.code == 0 && !ran.err.contains("--ratio-for"), "{}", ran.err);
}

#[test]
fn a_verification_that_exceeds_memory_is_refused_before_any_work() {
    let workspace = Workspace::new();
    let mut model = two_convolutions();
    let graph = model.graph.as_mut().unwrap();
    let sizes = [1, 4, 4_000_000, 4_000_000];
    (graph.input, graph.output) = (vec![value("x", &sizes)], vec![value("y", &sizes)]);
    graph.value_info.clear();
    std::fs::write(workspace.path("in.onnx"), model.encode_to_vec()).unwrap();
    let ran = workspace.prune(&["--ratio", "0.5"]);
    workspace.refuses(&ran, 1, "GiB of memory");
    assert!(ran.err.contains("x [1, 4, 4000000, 4000000]") && ran.err.contains("--no-verify"), "{}", ran.err);
    let ran = workspace.prune(&["--ratio", "0.5", "--no-verify"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn invalid_paths_exit_with_code_2() {
    let workspace = Workspace::new();
    let (input, output) = (workspace.text("in.onnx"), workspace.out("out.onnx"));
    let folder = workspace.folder.path().to_str().unwrap();
    let missing = workspace.text("missing.onnx");
    for (from, to, message) in [
        (missing.as_str(), output.as_str(), "missing.onnx"),
        (folder, &output, "expected a pipeline with unet/model.onnx or transformer/model.onnx, found in.onnx"),
        (&input, &input, "OUT.onnx would replace IN.onnx"),
        (&input, folder, "found a folder"),
        (&input, &workspace.out("no/such/folder/out.onnx"), "can't be written"),
        (&input, &format!("{input}/out.onnx"), "can't be written"),
        (&input, "/dev/null", "device"),
    ] {
        let before = std::fs::read(&input).unwrap();
        workspace.refuses(&run(&[from, to, "--ratio", "0.5", "--criterion", "magnitude"]), 2, message);
        assert!(std::fs::read(&input).unwrap() == before && listing(workspace.folder.path()) == ["in.onnx"]);
    }
}

#[test]
fn unreachable_targets_exit_with_code_1() {
    let workspace = Workspace::new();
    workspace.refuses(&workspace.prune(&["--target-params", "0.001"]), 1, "can't reach 0.1 % of the parameters");
    let graph = GraphProto {
        node: vec![node("only", "MatMul", &["x", "w"], &["y"])],
        initializer: vec![counting("w", &[4, 4])],
        input: vec![value("x", &[2, 4])],
        output: vec![value("y", &[2, 4])],
        ..GraphProto::default()
    };
    std::fs::write(workspace.path("in.onnx"), model_of(17, graph).encode_to_vec()).unwrap();
    workspace.refuses(&workspace.prune(&["--ratio", "0.5"]), 1, "nothing can be pruned");
    let ran = workspace.prune(&["--ratio", "0.5", "--format", "json"]);
    assert_eq!((ran.json()["exit_code"].as_i64(), ran.code), (Some(1), 1));
}

#[test]
fn pruning_writes_model_and_plan_and_nothing_to_standard_error() {
    let workspace = Workspace::new();
    let ran = workspace.prune(&["--ratio", "0.5"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("verified in ONNX Runtime"), "{}", ran.out);
    assert_eq!(workspace.written(), ["out.onnx", "out.plan.json"]);
    let first = std::fs::read(workspace.out("out.onnx")).unwrap();
    assert_eq!(workspace.prune(&["--ratio", "0.5", "--quiet"]).out, "");
    assert!(std::fs::read(workspace.out("out.onnx")).unwrap() == first, "two runs differ");
}

#[test]
fn a_dry_run_writes_nothing() {
    let workspace = Workspace::new();
    let ran = workspace.prune(&["--ratio", "0.5", "--dry-run"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.ends_with("\n\ndry run: nothing was written\n") && workspace.written().is_empty());
    assert!(!ran.out.contains("\n\n\n") && !ran.out.starts_with('\n'), "stray blank line: {}", ran.out);
}

#[test]
fn every_command_prints_one_json_object() {
    let workspace = Workspace::new();
    let (input, output, plan) = (workspace.text("in.onnx"), workspace.out("out.onnx"), workspace.out("out.plan.json"));
    let dry = workspace.prune(&["--ratio", "0.5", "--dry-run", "--format", "json"]).json();
    assert!(dry["output"].is_null() && dry["after"]["parameters"].as_u64() < dry["before"]["parameters"].as_u64());
    let pruned = workspace.prune(&["--ratio", "0.5", "--format", "json"]).json();
    assert_eq!(pruned["output"], output.as_str());
    assert_eq!(pruned["verification"]["passed"], true);
    let again = workspace.out("again.onnx");
    let applied = run(&["apply", &input, &plan, &again, "--format", "json"]).json();
    assert_eq!(applied["verification"]["passed"], true);
    let verified = run(&["verify", &input, &again, "--plan", &plan, "--format", "json"]).json();
    assert_eq!(verified["passed"], true);
    assert_eq!(run(&["inspect", &input, "--format", "json"]).json()["operators"]["Conv"], 2);
    assert!(run(&["runtime", "--format", "json"]).json()["used"]["version"].is_string());
    let failed = run(&["inspect", "/nowhere.onnx", "--format", "json"]);
    assert_eq!((failed.json()["exit_code"].as_i64(), failed.code), (Some(2), 2));

    // The original is not the pruned network of this plan.
    let wrong = run(&["verify", &input, &input, "--plan", &plan, "--format", "json"]);
    assert_eq!((wrong.json()["passed"].as_bool(), wrong.code), (Some(false), 1));
    let dit = fixture("dit_tiny.onnx");
    let other = run(&["apply", dit.to_str().unwrap(), &plan, &workspace.out("x.onnx")]);
    assert_eq!(other.code, 2);
    assert!(other.err.contains("another file") && !Path::new(&workspace.out("x.onnx")).exists(), "{}", other.err);
}

#[test]
fn a_printed_configuration_can_be_read_back() {
    let workspace = Workspace::new();
    let options = ["--ratio", "0.3", "--scope", "global", "--keep", "a.b", "--ratio-for", "fir=0.6", "--seed", "4"];
    let printed =
        workspace.prune(&[&options[..], &["--attention", "dims", "--rtol", "1e-3", "--print-config"]].concat());
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    std::fs::write(workspace.path("options.toml"), &printed.out).unwrap();
    let again = run(&["--config", &workspace.text("options.toml"), "--print-config"]);
    assert_eq!(again.out, printed.out);
    for part in ["ratio = 0.3", "\"global\"", "a.b", "fir=0.6", "seed = 4", "\"dims\"", "in.onnx"] {
        assert!(printed.out.contains(part), "{part} is not in {}", printed.out);
    }
    let own = run(&["--config", &workspace.text("options.toml"), "--ratio", "0.7", "--print-config"]);
    assert!(own.out.contains("ratio = 0.7"), "{}", own.out);
    assert!(workspace.written().is_empty());
}

#[test]
fn weights_that_are_not_finite_are_warned_about() {
    let workspace = Workspace::new();
    let mut model = two_convolutions();
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let mut elements = vec![1.0; 16 * 4 * 9];
    elements[5] = f32::NAN;
    weights[0] = TensorProto::of_floats("w1", &elements, &[16, 4, 3, 3]);
    std::fs::write(workspace.path("in.onnx"), model.encode_to_vec()).unwrap();
    let ran = workspace.prune(&["--ratio", "0.5"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.lines().count() == 1 && ran.err.starts_with("warning: "), "{}", ran.err);
    assert_eq!(workspace.written(), ["out.onnx", "out.plan.json"]);
}

#[test]
fn apply_repeats_the_pruned_file_byte_for_byte() {
    let workspace = Workspace::new();
    let mut inputs = vec![workspace.text("in.onnx")];
    inputs.extend(["dit_tiny.onnx", "sd15_tiny_fp16.onnx"].map(|name| fixture(name).to_str().unwrap().to_owned()));
    for input in &inputs {
        for options in [
            &["--ratio", "0.3", "--criterion", "magnitude"][..],
            &[
                "--target-macs",
                "0.6",
                "--criterion",
                "magnitude",
                "--attention",
                "both",
                "--seed",
                "3",
                "--keep",
                "no such",
            ],
            &["--ratio", "0.4", "--norm-groups", "drop", "--criterion", "random", "--scope", "global"],
        ] {
            let (output, plan, again) =
                (workspace.out("out.onnx"), workspace.out("out.plan.json"), workspace.out("again.onnx"));
            let ran = run(&[&[input.as_str(), &output, "--no-verify"], options].concat());
            assert_eq!(ran.code, 0, "{input} {options:?}: {}", ran.err);
            let ran = run(&["apply", input, &plan, &again, "--no-verify"]);
            assert_eq!(ran.code, 0, "{input} {options:?}: {}", ran.err);
            let (pruned, applied) = (std::fs::read(&output).unwrap(), std::fs::read(&again).unwrap());
            assert!(pruned == applied, "{input} {options:?}: the files differ");
        }
    }
}

#[test]
fn a_plan_contains_its_options_and_is_the_same_when_read_back() {
    let workspace = Workspace::new();
    assert_eq!(workspace.prune(&["--target-params", "0.37", "--no-verify", "--ratio-for", "x=0.1"]).code, 0);
    let path = workspace.output.path().join("out.plan.json");
    let plan = Plan::read(&path).unwrap();
    assert_eq!(plan.options["target-params"], 0.37);
    assert_eq!(plan.options["ratio-for"], serde_json::json!(["x=0.1"]));
    assert_eq!(plan.options["round-to"], 1);
    let again = workspace.output.path().join("again.plan.json");
    plan.write(&again).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());
    let model = load(&workspace.output.path().join("out.onnx")).unwrap();
    let entry = |key: &str| {
        let entry = model.proto().metadata_props.iter().find(|entry| entry.key == key);
        entry.unwrap_or_else(|| panic!("no {key}")).value.clone()
    };
    assert_eq!(entry("onnx_diffprune.ratio").parse::<f64>().unwrap(), plan.ratio);
    assert_eq!(
        serde_json::from_str::<Value>(&entry("onnx_diffprune.options")).unwrap(),
        serde_json::json!(plan.options)
    );
}

#[test]
fn the_example_plan_in_the_documentation_is_current() {
    let text = include_str!("../../docs/plan.md");
    let example = text.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let workspace = Workspace::new();
    assert_eq!(workspace.prune(&["--ratio", "0.75", "--no-verify"]).code, 0);
    let plan = std::fs::read_to_string(workspace.out("out.plan.json")).unwrap();
    let [mut example, mut plan] = [example, &plan].map(|text| serde_json::from_str::<Value>(text).unwrap());
    // The name and version of the tool change with every release.
    (example["tool"], plan["tool"]) = (Value::Null, Value::Null);
    assert_eq!(example, plan, "docs/plan.md should show this plan:\n{}", serde_json::to_string_pretty(&plan).unwrap());
}

#[test]
fn small_targets_are_not_printed_as_zero() {
    let workspace = Workspace::new();
    let ran = workspace.prune(&["--target-macs", "0.0001"]);
    workspace.refuses(&ran, 1, "can't reach 0.01 % of the MACs");
}

#[test]
fn inspect_shows_blocks_only_for_groups_with_a_norm() {
    let workspace = Workspace::new();
    let plain = run(&["inspect", &workspace.text("in.onnx")]);
    let row = plain.out.lines().find(|line| line.starts_with("w1 ")).unwrap();
    assert_eq!(row.split_whitespace().take(4).collect::<Vec<_>>(), ["w1", "16", "-", "3"], "{}", plain.out);
    let normed = run(&["inspect", fixture("ddpm_fashion16.onnx").to_str().unwrap()]);
    let name = "down_blocks.0.resnets.0.conv1.weight";
    let row = normed.out.lines().find(|line| line.starts_with(name)).unwrap();
    assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), [name, "32", "4"]);
    let (before, after) = normed.out.split_once("operators:\n").unwrap();
    assert!(!before.is_empty() && after.lines().take_while(|line| !line.is_empty()).all(|line| line.len() <= 102));
}

#[test]
fn runtime_names_its_library_once() {
    let used = run(&["runtime", "--format", "json"]).json()["used"]["library"].as_str().unwrap().to_owned();
    let named = run(&["runtime", "--onnxruntime", &used]);
    let (places, _) = named.out.split_once("\nlibraries:").unwrap();
    assert_eq!((named.code, places.matches(&used).count()), (0, 1), "{}", named.out);
}

/// Runs a script in `sh`, with the tool as `$TOOL`, the input as `$IN` and the output's folder as `$OUT`.
#[cfg(unix)]
fn shell(workspace: &Workspace, program: &[&str], script: &str) -> Output {
    Command::new(program[0])
        .args(&program[1..])
        .args(["-c", script])
        .env("TOOL", env!("CARGO_BIN_EXE_onnx-diffprune"))
        .env("IN", fixture("dit_tiny.onnx"))
        .env("OUT", workspace.output.path())
        .output()
        .unwrap()
}

#[cfg(unix)]
#[test]
fn a_file_size_limit_ends_the_run_with_a_message_and_no_files() {
    let workspace = Workspace::new();
    // The pruned network takes about 800 kB; the limit is in KiB.
    let script = r#"ulimit -f 100; "$TOOL" "$IN" "$OUT/out.onnx" --ratio 0.5 --criterion magnitude --no-verify"#;
    let Output { status, stderr, .. } = shell(&workspace, &["bash"], script);
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("out.onnx: can't be written: ") && text.contains("hint: raise the limit"), "{text}");
    assert!(workspace.written().is_empty(), "left behind: {:?}", workspace.written());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_with_a_message_and_no_files() {
    let workspace = Workspace::new();
    // A file system that this process alone sees, so that nothing has to be unmounted.
    let alone = ["unshare", "--mount", "--map-root-user", "sh"];
    let mount = r#"mount -t tmpfs -o size=256k none "$OUT" 2>&1 || exit 99; "#;
    let possible = Command::new("unshare").arg("--version").output().is_ok();
    if !possible || shell(&workspace, &alone, mount).status.code() != Some(0) {
        eprintln!("skipped: no small file system can be mounted here");
        return;
    }
    let prune = r#""$TOOL" "$IN" "$OUT/out.onnx" --ratio 0.5 --criterion magnitude --no-verify; code=$?; ls -A "$OUT"; exit $code"#;
    let Output { status, stderr, stdout } = shell(&workspace, &alone, &format!("{mount}{prune}"));
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("out.onnx: can't be written: ") && text.contains("hint: free some space"), "{text}");
    assert_eq!(String::from_utf8(stdout).unwrap(), "", "left behind");
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder_ends_the_run_with_a_message() {
    let workspace = Workspace::new();
    let alone = ["unshare", "--mount", "--map-root-user", "sh"];
    let mount = r#"mount -t tmpfs -o ro none "$OUT" 2>&1 || exit 99; "#;
    let possible = Command::new("unshare").arg("--version").output().is_ok();
    if !possible || shell(&workspace, &alone, mount).status.code() != Some(0) {
        eprintln!("skipped: no small file system can be mounted here");
        return;
    }
    let prune = r#""$TOOL" "$IN" "$OUT/out.onnx" --ratio 0.5 --criterion magnitude --no-verify"#;
    let Output { status, stderr, .. } = shell(&workspace, &alone, &format!("{mount}{prune}"));
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("can't be written: ") && text.contains("hint: check that the folder"), "{text}");
}

#[test]
fn a_plan_that_cannot_be_written_leaves_no_output() {
    let workspace = Workspace::new();
    let plan = workspace.out("no/such/folder/plan.json");
    workspace.refuses(&workspace.prune(&["--ratio", "0.5", "--no-verify", "--plan", &plan]), 2, "can't be written");
}
