//! Outputs that replace earlier networks, whose data files would be left over.

use serde_json::json;

use super::tool::{run, succeed};
use super::workspace::Workspace;
use crate::support::external::externalised;
use crate::support::files::listing;
use crate::support::two_convolutions::two_convolutions;

/// Returns a workspace whose input has external data, with an older network at the path of the output.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let (model, data) = externalised(&two_convolutions(), "model.onnx_data");
    std::fs::write(workspace.path("model.onnx"), &model).unwrap();
    std::fs::write(workspace.path("model.onnx_data"), &data).unwrap();
    std::fs::write(workspace.out("model.onnx"), model).unwrap();
    std::fs::write(workspace.out("model.onnx_data"), data).unwrap();
    workspace
}

fn prune(workspace: &Workspace, more: &[&str]) -> super::tool::Ran {
    let (input, output) = (workspace.text("model.onnx"), workspace.out("model.onnx"));
    run(&[&[input.as_str(), &output, "--ratio", "0.5", "--criterion", "magnitude"], more].concat())
}

#[test]
fn the_data_file_of_a_replaced_network_is_removed() {
    let workspace = workspace();
    let ran = prune(&workspace, &["--no-verify"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let removed = workspace.out("model.onnx_data");
    assert!(ran.out.contains(&format!("removed {removed}")), "{}", ran.out);
    assert_eq!(workspace.written(), ["model.onnx", "model.onnx.data", "model.plan.json"]);
    assert_eq!(listing(workspace.folder.path()), ["in.onnx", "model.onnx", "model.onnx_data"]);
    // In a second run, the data file is replaced and nothing is left over.
    let again = prune(&workspace, &["--format", "json"]).json();
    assert_eq!(again["removed"], json!([]));
    assert_eq!(workspace.written(), ["model.onnx", "model.onnx.data", "model.plan.json"]);
    succeed(&["verify", &workspace.text("model.onnx"), &workspace.out("model.onnx")]);
    // A network without a data file.
    let plain = run(&[
        &workspace.text("in.onnx"),
        &workspace.out("model.onnx"),
        "--ratio",
        "0.5",
        "--criterion",
        "magnitude",
        "--format",
        "json",
    ]);
    assert_eq!(plain.json()["removed"], json!([workspace.out("model.onnx.data")]));
    assert_eq!(workspace.written(), ["model.onnx", "model.plan.json"]);
}

#[test]
fn apply_removes_the_data_file_of_a_replaced_network_too() {
    let workspace = workspace();
    assert_eq!(prune(&workspace, &["--no-verify"]).code, 0);
    let plan = workspace.text("plan.json");
    std::fs::rename(workspace.out("model.plan.json"), &plan).unwrap();
    std::fs::copy(workspace.path("model.onnx"), workspace.out("model.onnx")).unwrap();
    std::fs::copy(workspace.path("model.onnx_data"), workspace.out("model.onnx_data")).unwrap();
    let ran = run(&["apply", &workspace.text("model.onnx"), &plan, &workspace.out("model.onnx"), "--format", "json"]);
    assert_eq!(ran.json()["removed"], json!([workspace.out("model.onnx_data")]));
    assert_eq!(workspace.written(), ["model.onnx", "model.onnx.data"]);
}

#[test]
fn a_data_file_that_may_be_needed_elsewhere_is_kept() {
    let stays = |prepare: &dyn Fn(&Workspace)| {
        let workspace = workspace();
        prepare(&workspace);
        let ran = prune(&workspace, &["--no-verify", "--format", "json"]);
        assert_eq!((ran.code, &ran.json()["removed"]), (0, &json!([])), "{}", ran.err);
        assert!(workspace.output.path().join("model.onnx_data").exists());
    };
    // Another network uses it as well, or may use it.
    stays(&|workspace| assert!(std::fs::copy(workspace.out("model.onnx"), workspace.out("other.onnx")).is_ok()));
    stays(&|workspace| std::fs::write(workspace.out("other.onnx"), "cut off").unwrap());
    // The file at the path of the output was not a network.
    stays(&|workspace| std::fs::write(workspace.out("model.onnx"), "not a network").unwrap());
    #[cfg(unix)]
    stays(&|workspace| {
        std::fs::remove_file(workspace.out("model.onnx_data")).unwrap();
        std::os::unix::fs::symlink(workspace.path("model.onnx_data"), workspace.out("model.onnx_data")).unwrap();
    });
    // The input uses the file under another name.
    stays(&|workspace| {
        std::fs::remove_file(workspace.out("model.onnx_data")).unwrap();
        std::fs::hard_link(workspace.path("model.onnx_data"), workspace.out("model.onnx_data")).unwrap();
    });
}

#[test]
fn the_data_file_of_the_input_is_kept() {
    let workspace = workspace();
    let (input, output) = (workspace.text("model.onnx"), workspace.text("pruned.onnx"));
    succeed(&[&input, &output, "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"]);
    succeed(&[&input, &output, "--ratio", "0.3", "--criterion", "magnitude", "--no-verify"]);
    let files = ["in.onnx", "model.onnx", "model.onnx_data", "pruned.onnx", "pruned.onnx.data", "pruned.plan.json"];
    assert_eq!(listing(workspace.folder.path()), files);
    // A failed run removes nothing.
    let failing = prune(&workspace, &["--target-params", "0.001"]);
    assert_eq!(failing.code, 2, "{}{}", failing.out, failing.err);
    assert_eq!(workspace.written(), ["model.onnx", "model.onnx_data"]);
}
