//! Outputs of the network that are computed from sizes alone.

use onnx_diffprune::onnx::attr_int;
use onnx_diffprune::prune::{PruneOptions, Target};

use crate::support::builder::{Builder, value_of};
use crate::support::cuts::prune_model;

/// Channels whose number is an output are kept. The rest of the network is pruned.
#[test]
fn channels_whose_number_is_an_output_are_kept() {
    for op in ["Shape", "Size"] {
        let mut b = Builder::new(1);
        let counted = b.conv("x", 3, 8, 3, 1);
        let free = b.conv(&counted, 8, 8, 1, 1);
        let y = b.conv(&free, 8, 3, 1, 1);
        let sizes = b.op(op, &[&counted], &[]);
        let sizes = b.op("Cast", &[&sizes], &[attr_int("to", 1)]);
        let mut model = b.finish(&[2, 3, 8, 8], &y, &[2, 3, 8, 8]);
        model.graph.as_mut().unwrap().output.push(value_of(&sizes, 1, None));
        let pruned = prune_model(&model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
        let loses_rows = |name: &str| {
            let tensor = pruned.cut.plan.tensors.iter().find(|tensor| tensor.tensor == name);
            tensor.is_some_and(|tensor| tensor.keep.contains_key(&0))
        };
        assert!(!loses_rows("weight_0"), "{op} of the first layer's channels is an output, so they should be kept");
        assert!(loses_rows("weight_2"), "{op}: the second layer's channels should be pruned");
        assert!(pruned.report().passed, "{op}: {:?}", pruned.report());
    }
}
