//! Output of failed requests: with `--format json` always exactly one object.

use serde_json::Value;

use super::tool::{Ran, run};
use super::workspace::Workspace;
use crate::support::fixtures::fixture;

/// Returns the only object on standard output, whose exit code must be that of the run.
fn object(ran: &Ran, code: i32) -> Value {
    let object = ran.json();
    assert!(object.is_object() && ran.code == code && !ran.err.is_empty(), "{}{}", ran.out, ran.err);
    assert_eq!(object["exit_code"].as_i64(), Some(i64::from(code)), "{object}");
    assert!(object["error"].as_str().is_some_and(|error| ran.err.contains(error)), "{object}: {}", ran.err);
    object
}

#[test]
fn a_cut_that_fails_verification_prints_one_object() {
    let workspace = Workspace::new();
    let (input, output) = (fixture("dit_tiny.onnx"), workspace.out("out.onnx"));
    // Rounding differs between the two networks, and no error is allowed.
    let options = ["--ratio", "0.5", "--criterion", "magnitude", "--rtol", "0", "--atol", "0"];
    let prune = |more: &[&str]| run(&[&[input.to_str().unwrap(), &output], &options[..], more].concat());
    let ran = prune(&["--format", "json"]);
    let failed = object(&ran, 1);
    assert_eq!(failed["verification"]["passed"], false);
    assert!(failed["output"].is_null() && failed["plan"].is_null() && failed["groups"].is_array());
    workspace.refuses(&ran, 1, "verification failed");
    // The text shows the cut and why it was not written.
    let ran = prune(&[]);
    assert!(ran.out.contains("verification FAILED") && ran.out.contains("parameters"), "{}", ran.out);
    workspace.refuses(&ran, 1, "verification failed");
    let quiet = prune(&["--quiet"]);
    assert_eq!(quiet.out, "");
}

#[test]
fn every_refusal_prints_one_object() {
    let workspace = Workspace::new();
    let (input, out, missing) = (workspace.text("in.onnx"), workspace.out("out.onnx"), workspace.text("missing.onnx"));
    let prune = ["--ratio", "0.5", "--criterion", "magnitude"];
    for (arguments, code) in [
        (vec!["--no-such-flag"], 2),
        (vec!["--ratio", "half"], 2),
        (vec!["apply"], 2),
        (vec!["no-such-command", "x", "y", "z"], 2),
        (vec![], 2),
        (vec![&input, &out], 2),
        ([&[input.as_str(), &input], &prune[..]].concat(), 2),
        ([&[input.as_str(), &out, "--report", &out], &prune[..]].concat(), 2),
        ([&[missing.as_str(), &out], &prune[..]].concat(), 2),
        (vec![&input, &out, "--target-params", "0.001", "--criterion", "magnitude"], 1),
        (vec!["inspect", &missing], 2),
        (vec!["verify", &input, &out], 2),
        (vec!["apply", &input, &missing, &out], 2),
        (vec!["sample", &input, "-o", &out], 2),
        (vec!["loss", &input], 2),
        (vec!["artifacts", &input, &input], 2),
        (vec!["runtime", "--onnxruntime", "/dev/null"], 2),
    ] {
        for format in [&["--format", "json"][..], &["--format=json"]] {
            let ran = run(&[&arguments, format].concat());
            assert_eq!(ran.code, code, "{arguments:?}: {}{}", ran.out, ran.err);
            let object: Value =
                serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", ran.out));
            assert!(object["error"].is_string(), "{arguments:?}: {object}");
        }
    }
    assert!(workspace.written().is_empty());
}

#[test]
fn an_incomplete_mpi_environment_is_refused() {
    let tool = env!("CARGO_BIN_EXE_onnx-diffprune");
    let model = fixture("dit_tiny.onnx");
    let ran = std::process::Command::new(tool).arg("inspect").arg(model).env("OMPI_COMM_WORLD_SIZE", "2").output();
    let ran = ran.unwrap();
    let message = String::from_utf8(ran.stderr).unwrap();
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(2), 0), "{message}");
    assert!(message.starts_with("error: ") && message.contains("OMPI_COMM_WORLD_SIZE"), "{message}");
}
