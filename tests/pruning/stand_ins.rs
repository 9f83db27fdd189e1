//! Nodes without a CPU kernel: verification names them, because their kernels did not run.

use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::verify::StandIn;

use crate::support::builder::Builder;
use crate::support::cuts::prune_model;

#[test]
fn the_result_names_nodes_that_ran_as_standard_operators() {
    let mut b = Builder::new(5);
    let y = b.linear("x", 320, 32);
    let y = b.silu(&y);
    let y = b.linear(&y, 32, 320);
    let bias = b.bias(320);
    let y = b.fused("BiasAdd", &[&y, &bias, "x"], &[], 1).remove(0);
    let node = b.graph.node.last().unwrap().name.clone();
    let model = b.finish(&[1, 4, 320], &y, &[1, 4, 320]);
    let pruned = prune_model(&model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    let report = pruned.report();
    assert!(report.passed, "{report:?}");
    assert_eq!(report.stand_ins, [StandIn { node, op: "com.microsoft.BiasAdd".to_owned() }]);
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json["stand_ins"][0]["op"], "com.microsoft.BiasAdd");
}

#[test]
fn nodes_with_kernels_are_not_replaced_for_verification() {
    let mut b = Builder::new(5);
    let y = b.linear("x", 16, 32);
    let y = b.fused("QuickGelu", &[&y], &[], 1).remove(0);
    let y = b.linear(&y, 32, 16);
    let pruned = prune_model(&b.finish(&[1, 4, 16], &y, &[1, 4, 16]), &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    assert!(pruned.report().passed && pruned.report().stand_ins.is_empty(), "{:?}", pruned.report());
}
