//! What verification is worth: every small mistake that a cut could make is caught, on several architectures.

use std::path::Path;

use bytes::Bytes;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, ModelProto, TensorProto};
use onnx_diffprune::operator::reference::KeptAxes;
use onnx_diffprune::write::slice_bytes;
use prost::Message;
use tempfile::NamedTempFile;

use crate::support::cuts::{Pruned, halved, halved_across_groups};
use crate::support::fixtures::{FIXTURES, fixture};

/// Cuts of a U-Net and a transformer by two sets of options each, and of a U-Net in half precision.
fn cuts() -> Vec<(&'static str, &'static Pruned)> {
    let mut cuts = Vec::new();
    for name in FIXTURES {
        cuts.push((name, halved(name)));
        if name.contains("fp16") {
            // Slow: ONNX Runtime's processor kernels convert around every node.
            continue;
        }
        cuts.push((name, halved_across_groups(name)));
    }
    cuts
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(Bytes::from(std::fs::read(path).unwrap())).unwrap()
}

/// Writes a changed copy of the pruned file.
fn mutated(pruned: &Pruned, change: impl FnOnce(&mut ModelProto)) -> NamedTempFile {
    let mut model = decode(&pruned.path);
    change(&mut model);
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, model.encode_to_vec()).unwrap();
    file
}

fn is_weight(tensor: &TensorProto) -> bool {
    tensor.dims.len() >= 2
        && tensor.dims[0] >= 4
        && tensor.dims[1] >= 2
        && matches!(tensor.element_type(), DataType::Float | DataType::Float16)
}

/// A few weights that the cut has sliced, spread over the network.
fn sliced_weights(pruned: &Pruned) -> Vec<String> {
    let model = decode(&pruned.path);
    let names: Vec<String> = model
        .graph
        .unwrap()
        .initializer
        .iter()
        .filter(|tensor| is_weight(tensor))
        .filter(|tensor| {
            pruned.cut.plan.tensors.iter().any(|plan| plan.tensor == tensor.name && plan.dims != tensor.dims)
        })
        .map(|tensor| tensor.name.clone())
        .collect();
    let step = (names.len() / 4).max(1);
    names.into_iter().step_by(step).take(3).collect()
}

fn tensor_mut<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut TensorProto {
    model.graph.as_mut().unwrap().initializer.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

/// Takes rows `order` of a weight's first axis.
fn reorder(tensor: &mut TensorProto, order: Vec<usize>) {
    let dims: Vec<usize> = tensor.dims.iter().map(|size| *size as usize).collect();
    let element = tensor.element_type().byte_size().unwrap();
    tensor.raw_data = slice_bytes(&tensor.raw_data, &dims, element, &[(0, order)]).into();
}

#[test]
fn the_unmutated_cuts_pass() {
    for (name, pruned) in cuts() {
        let report = pruned.report();
        assert!(report.passed, "{name}: {report:?}");
    }
}

#[test]
fn two_swapped_channels_of_one_weight_are_caught() {
    for (name, pruned) in cuts() {
        let weights = sliced_weights(pruned);
        assert!(weights.len() == 3, "{name}: {weights:?}");
        for weight in weights {
            let file = mutated(pruned, |model| {
                let tensor = tensor_mut(model, &weight);
                let mut order: Vec<usize> = (0..tensor.dims[0] as usize).collect();
                let last = order.len() - 1;
                order.swap(0, last);
                reorder(tensor, order);
            });
            let report = pruned.verify(file.path());
            assert!(!report.passed, "{name}: swapped channels of {weight} went unnoticed");
            assert!(report.first_difference.is_some(), "{name}: {weight}");
        }
    }
}

#[test]
fn a_shifted_index_is_caught_in_the_file_and_in_the_plan() {
    for (name, pruned) in cuts() {
        for weight in sliced_weights(pruned) {
            // The file holds a neighbour of the row that the plan keeps.
            let file = mutated(pruned, |model| {
                let tensor = tensor_mut(model, &weight);
                let mut order: Vec<usize> = (0..tensor.dims[0] as usize).collect();
                order[1] = order[2];
                reorder(tensor, order);
            });
            assert!(!pruned.verify(file.path()).passed, "{name}: a shifted row of {weight} went unnoticed");
        }
        // The plan keeps a neighbour of the row that the file holds.
        let report = pruned.verify_with(&pruned.path, |kept| {
            let both = |axes: &KeptAxes| axes.contains_key(&0) && axes.contains_key(&1);
            let reader = *kept.iter().filter(|(_, axes)| both(axes)).map(|(reader, _)| reader).min().unwrap();
            let axes = kept.get_mut(&reader).unwrap();
            let rows = axes.get_mut(&0).unwrap();
            let free = (0..).find(|index| !rows.contains(index)).unwrap();
            rows[0] = free;
            rows.sort_unstable();
        });
        assert!(!report.passed, "{name}: a shifted index of the plan went unnoticed");
    }
}

#[test]
fn a_dropped_bias_entry_is_caught() {
    for (name, pruned) in cuts() {
        let is_bias = |tensor: &TensorProto| {
            tensor.dims.len() == 1
                && tensor.dims[0] >= 4
                && matches!(tensor.element_type(), DataType::Float | DataType::Float16)
                && pruned.cut.plan.tensors.iter().any(|plan| plan.tensor == tensor.name && plan.dims != tensor.dims)
        };
        let biases: Vec<String> = decode(&pruned.path)
            .graph
            .unwrap()
            .initializer
            .iter()
            .filter(|tensor| is_bias(tensor))
            .map(|tensor| tensor.name.clone())
            .collect();
        assert!(biases.len() >= 3, "{name}: {biases:?}");
        for bias in biases.iter().step_by((biases.len() / 3).max(1)) {
            let file = mutated(pruned, |model| {
                let tensor = tensor_mut(model, bias);
                let element = tensor.element_type().byte_size().unwrap();
                tensor.dims[0] -= 1;
                tensor.raw_data = tensor.raw_data.slice(..tensor.raw_data.len() - element);
            });
            // Some files become invalid outright; whatever can still be loaded must not pass.
            if load(file.path()).is_ok() {
                assert!(!pruned.verify(file.path()).passed, "{name}: a short {bias} went unnoticed");
            }
        }
    }
}

#[test]
fn a_size_constant_that_was_left_is_caught() {
    let mut left = 0;
    for (name, pruned) in cuts() {
        let original = decode(&fixture(name)).graph.unwrap();
        let patched: Vec<(String, usize)> = decode(&pruned.path)
            .graph
            .unwrap()
            .node
            .iter()
            .filter(|node| !node.output[0].contains("/pruned_input_"))
            .flat_map(|node| {
                let at = node.input.iter().position(|input| input.contains("/pruned_input_"));
                at.map(|slot| (node.output[0].clone(), slot))
            })
            .collect();
        for (output, slot) in patched.iter().step_by((patched.len() / 3).max(1)) {
            let old = original.node.iter().find(|node| node.output[0] == *output).unwrap().input[*slot].clone();
            let file = mutated(pruned, |model| {
                let node =
                    model.graph.as_mut().unwrap().node.iter_mut().find(|node| node.output[0] == *output).unwrap();
                node.input[*slot] = old;
            });
            if load(file.path()).is_ok() {
                assert!(!pruned.verify(file.path()).passed, "{name}: the old size of {output} went unnoticed");
            }
            left += 1;
        }
    }
    assert!(left >= 4, "only {left} constants to leave");
}
