//! Damaged or edited plans: `apply` and `verify` report the error and write nothing.

use serde_json::{Value, json};

use super::tool::run;
use super::workspace::Workspace;

/// A change of a plan, and text that the error message must contain.
type Damage = (fn(&mut Value), &'static str);

/// Returns the first tensor of a plan.
fn first(plan: &mut Value) -> &mut Value {
    &mut plan["tensors"][0]
}

/// Returns the kept indices of the first listed axis of the first tensor.
fn indices(plan: &mut Value) -> &mut Vec<Value> {
    let keep = first(plan)["keep"].as_object_mut().unwrap();
    keep.values_mut().next().unwrap().as_array_mut().unwrap()
}

const DAMAGES: &[Damage] = &[
    (|plan| first(plan)["dims"].as_array_mut().unwrap().truncate(1), "shape [16]"),
    (|plan| first(plan)["dims"].as_array_mut().unwrap().push(json!(1)), "shape [16, 4, 3, 3, 1]"),
    (|plan| first(plan)["dims"][0] = json!(17), "shape [17, 4, 3, 3]"),
    (|plan| first(plan)["dims"][0] = json!(-16), "shape [-16, 4, 3, 3]"),
    (|plan| first(plan)["dims"] = json!([]), "shape []"),
    (|plan| first(plan)["keep"] = json!({"7": [0]}), "axis 7 of \"w1\""),
    (|plan| first(plan)["keep"] = json!({"18446744073709551615": [0]}), "axis 18446744073709551615"),
    (|plan| first(plan)["keep"] = json!({}), "\"w1\" without an axis"),
    (|plan| first(plan)["readers"] = json!([]), "\"w1\" without a reader"),
    (|plan| indices(plan).clear(), "no index of axis 0 of \"w1\""),
    (|plan| *indices(plan) = (0..16).map(Value::from).collect(), "removes no index"),
    (|plan| *indices(plan) = vec![json!(2), json!(2), json!(3)], "lists index 2 of axis 0 of \"w1\" twice"),
    (|plan| indices(plan).reverse(), "out of order"),
    (|plan| indices(plan).push(json!(16)), "index 16 of axis 0 of \"w1\""),
    (|plan| indices(plan).push(json!(u64::MAX)), "index 18446744073709551615"),
    (|plan| first(plan)["tensor"] = json!("gone"), "constant \"gone\""),
    (|plan| first(plan)["tensor"] = json!(""), "constant \"\""),
    (|plan| first(plan)["tensor"] = json!("x"), "shape"),
    (|plan| first(plan)["readers"][0][0] = json!("nobody"), "node \"nobody\""),
    (|plan| first(plan)["readers"][0][1] = json!(9), "input 9 of node"),
    (|plan| first(plan)["readers"][0][1] = json!(0), "input 0 of node"),
    (
        |plan| {
            let tensor = first(plan).clone();
            plan["tensors"].as_array_mut().unwrap().push(tensor);
        },
        "twice",
    ),
    (
        |plan| {
            let readers = first(plan)["readers"].as_array_mut().unwrap();
            readers.push(readers[0].clone());
        },
        "twice",
    ),
    (|plan| plan["groups"][0]["kept"] = json!([3, 1]), "group"),
    (|plan| plan["groups"][0]["kept"] = json!([99]), "group"),
    (|plan| plan["groups"][0]["scores"] = json!([1.0]), "expected one for each of its 16 channels"),
    (|plan| plan["schema"] = json!(77), "schema"),
    (|plan| plan["attention"] = json!("feet"), "not a plan file"),
    (|plan| first(plan)["keep"] = json!({"-1": [0]}), "not a plan file"),
    (|plan| indices(plan).push(json!(1.5)), "not a plan file"),
    (|plan| *plan = json!([]), "not a plan file"),
];

#[test]
fn a_damaged_plan_is_refused_with_its_error_and_nothing_is_written() {
    let workspace = Workspace::new();
    assert_eq!(workspace.prune(&["--ratio", "0.5", "--no-verify"]).code, 0);
    let (input, output, damaged) =
        (workspace.text("in.onnx"), workspace.out("out.onnx"), workspace.text("damaged.json"));
    let plan: Value = serde_json::from_slice(&std::fs::read(workspace.out("out.plan.json")).unwrap()).unwrap();
    let again = workspace.out("again.onnx");
    let before = workspace.written();
    for (damage, message) in DAMAGES {
        let mut plan = plan.clone();
        damage(&mut plan);
        std::fs::write(&damaged, plan.to_string()).unwrap();
        let applied = run(&["apply", &input, &damaged, &again, "--no-verify"]);
        let verified = run(&["verify", &input, &output, "--plan", &damaged]);
        for (command, ran) in [("apply", applied), ("verify", verified)] {
            assert_eq!(ran.code, 2, "{command}, {message}: {}", ran.err);
            assert!(ran.err.contains(message) && ran.err.contains("damaged.json"), "{command}, {message}: {}", ran.err);
        }
        assert_eq!(workspace.written(), before, "{message}");
    }
}

#[test]
fn a_plan_that_removes_part_of_a_channel_is_refused() {
    let workspace = Workspace::new();
    assert_eq!(workspace.prune(&["--ratio", "0.5", "--no-verify"]).code, 0);
    let mut plan: Value = serde_json::from_slice(&std::fs::read(workspace.out("out.plan.json")).unwrap()).unwrap();
    // Removes one more channel from the first weight alone.
    indices(&mut plan).pop();
    std::fs::write(workspace.text("edited.json"), plan.to_string()).unwrap();
    let ran = run(&[
        "apply",
        &workspace.text("in.onnx"),
        &workspace.text("edited.json"),
        &workspace.out("again.onnx"),
        "--no-verify",
    ]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.err.contains("channels that it keeps") && workspace.written() == ["out.onnx", "out.plan.json"],
        "{}",
        ran.err
    );
}
