//! Outputs that replace earlier networks, whose data files would be left over.

use serde_json::json;

use super::desk::Desk;
use super::tool::{run, succeed};
use crate::support::external::externalised;
use crate::support::files::listing;
use crate::support::two_convolutions::two_convolutions;

/// Returns a workspace whose input has external data, with an older network at the path of the output.
fn desk() -> Desk {
    let desk = Desk::new();
    let (model, data) = externalised(&two_convolutions(), "model.onnx_data");
    std::fs::write(desk.path("model.onnx"), &model).unwrap();
    std::fs::write(desk.path("model.onnx_data"), &data).unwrap();
    std::fs::write(desk.out("model.onnx"), model).unwrap();
    std::fs::write(desk.out("model.onnx_data"), data).unwrap();
    desk
}

fn prune(desk: &Desk, more: &[&str]) -> super::tool::Ran {
    let (input, output) = (desk.text("model.onnx"), desk.out("model.onnx"));
    run(&[&[input.as_str(), &output, "--ratio", "0.5", "--criterion", "magnitude"], more].concat())
}

#[test]
fn the_data_file_of_a_replaced_network_is_removed() {
    let desk = desk();
    let ran = prune(&desk, &["--no-verify"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let removed = desk.out("model.onnx_data");
    assert!(ran.out.contains(&format!("removed {removed}")), "{}", ran.out);
    assert_eq!(desk.written(), ["model.onnx", "model.onnx.data", "model.plan.json"]);
    assert_eq!(listing(desk.folder.path()), ["in.onnx", "model.onnx", "model.onnx_data"]);
    // In a second run, the data file is replaced and nothing is left over.
    let again = prune(&desk, &["--format", "json"]).json();
    assert_eq!(again["removed"], json!([]));
    assert_eq!(desk.written(), ["model.onnx", "model.onnx.data", "model.plan.json"]);
    succeed(&["verify", &desk.text("model.onnx"), &desk.out("model.onnx")]);
    // A network without a data file.
    let plain = run(&[
        &desk.text("in.onnx"),
        &desk.out("model.onnx"),
        "--ratio",
        "0.5",
        "--criterion",
        "magnitude",
        "--format",
        "json",
    ]);
    assert_eq!(plain.json()["removed"], json!([desk.out("model.onnx.data")]));
    assert_eq!(desk.written(), ["model.onnx", "model.plan.json"]);
}

#[test]
fn apply_removes_the_data_file_of_a_replaced_network_too() {
    let desk = desk();
    assert_eq!(prune(&desk, &["--no-verify"]).code, 0);
    let plan = desk.text("plan.json");
    std::fs::rename(desk.out("model.plan.json"), &plan).unwrap();
    std::fs::copy(desk.path("model.onnx"), desk.out("model.onnx")).unwrap();
    std::fs::copy(desk.path("model.onnx_data"), desk.out("model.onnx_data")).unwrap();
    let ran = run(&["apply", &desk.text("model.onnx"), &plan, &desk.out("model.onnx"), "--format", "json"]);
    assert_eq!(ran.json()["removed"], json!([desk.out("model.onnx_data")]));
    assert_eq!(desk.written(), ["model.onnx", "model.onnx.data"]);
}

#[test]
fn a_data_file_that_may_be_needed_elsewhere_is_kept() {
    let stays = |prepare: &dyn Fn(&Desk)| {
        let desk = desk();
        prepare(&desk);
        let ran = prune(&desk, &["--no-verify", "--format", "json"]);
        assert_eq!((ran.code, &ran.json()["removed"]), (0, &json!([])), "{}", ran.err);
        assert!(desk.output.path().join("model.onnx_data").exists());
    };
    // Another network uses it as well, or may use it.
    stays(&|desk| assert!(std::fs::copy(desk.out("model.onnx"), desk.out("other.onnx")).is_ok()));
    stays(&|desk| std::fs::write(desk.out("other.onnx"), "cut off").unwrap());
    // The file at the path of the output was not a network.
    stays(&|desk| std::fs::write(desk.out("model.onnx"), "not a network").unwrap());
    #[cfg(unix)]
    stays(&|desk| {
        std::fs::remove_file(desk.out("model.onnx_data")).unwrap();
        std::os::unix::fs::symlink(desk.path("model.onnx_data"), desk.out("model.onnx_data")).unwrap();
    });
    // The input uses the file under another name.
    stays(&|desk| {
        std::fs::remove_file(desk.out("model.onnx_data")).unwrap();
        std::fs::hard_link(desk.path("model.onnx_data"), desk.out("model.onnx_data")).unwrap();
    });
}

#[test]
fn the_data_file_of_the_input_is_kept() {
    let desk = desk();
    let (input, output) = (desk.text("model.onnx"), desk.text("pruned.onnx"));
    succeed(&[&input, &output, "--ratio", "0.5", "--criterion", "magnitude", "--no-verify"]);
    succeed(&[&input, &output, "--ratio", "0.3", "--criterion", "magnitude", "--no-verify"]);
    let files = ["in.onnx", "model.onnx", "model.onnx_data", "pruned.onnx", "pruned.onnx.data", "pruned.plan.json"];
    assert_eq!(listing(desk.folder.path()), files);
    // A failed run removes nothing.
    let failing = prune(&desk, &["--target-params", "0.001"]);
    assert_eq!(failing.code, 2, "{}{}", failing.out, failing.err);
    assert_eq!(desk.written(), ["model.onnx", "model.onnx_data"]);
}
