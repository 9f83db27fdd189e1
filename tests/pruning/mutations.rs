//! Mutation tests of verification: every small fault that a cut could have is detected, on several architectures.

use std::path::Path;

use bytes::Bytes;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, ModelProto, NodeProto, TensorProto};
use onnx_diffprune::operator::reference::KeptAxes;
use onnx_diffprune::plan::TensorPlan;
use onnx_diffprune::write::slice_bytes;
use prost::Message;
use tempfile::NamedTempFile;

use crate::support::cuts::{Pruned, halved, halved_across_groups};
use crate::support::fixtures::{FIXTURES, fixture};

/// Returns cuts of a U-Net and a transformer by two sets of options each, and of a U-Net in float16.
fn cuts() -> Vec<(&'static str, &'static Pruned)> {
    let mut cuts = Vec::new();
    for name in FIXTURES {
        cuts.push((name, halved(name)));
        if name.contains("fp16") {
            // Slow: for float16, ONNX Runtime's CPU kernels convert before and after every node.
            continue;
        }
        cuts.push((name, halved_across_groups(name)));
    }
    cuts
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(Bytes::from(std::fs::read(path).unwrap())).unwrap()
}

/// Writes a modified copy of the pruned file.
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

/// Returns a few sliced weights, spread over the network.
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

/// Reorders the rows of a weight's first axis.
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
fn two_swapped_channels_of_one_weight_are_detected() {
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
            assert!(!report.passed, "{name}: swapped channels of {weight} were not detected");
            let failure = report.failure.unwrap();
            assert!(failure.contains(&weight) && failure.contains("element [0"), "{name}: {failure}");
        }
    }
}

#[test]
fn a_shifted_index_is_detected_in_the_file_and_in_the_plan() {
    for (name, pruned) in cuts() {
        for weight in sliced_weights(pruned) {
            // The file contains the row next to the one that the plan keeps.
            let file = mutated(pruned, |model| {
                let tensor = tensor_mut(model, &weight);
                let mut order: Vec<usize> = (0..tensor.dims[0] as usize).collect();
                order[1] = order[2];
                reorder(tensor, order);
            });
            assert!(!pruned.verify(file.path()).passed, "{name}: a shifted row of {weight} was not detected");
        }
        // The plan keeps the row next to the one in the file.
        let report = pruned.verify_with(&pruned.path, |kept| {
            let both = |axes: &KeptAxes| axes.contains_key(&0) && axes.contains_key(&1);
            let reader = *kept.iter().filter(|(_, axes)| both(axes)).map(|(reader, _)| reader).min().unwrap();
            let axes = kept.get_mut(&reader).unwrap();
            let rows = axes.get_mut(&0).unwrap();
            let free = (0..).find(|index| !rows.contains(index)).unwrap();
            rows[0] = free;
            rows.sort_unstable();
        });
        assert!(!report.passed, "{name}: a shifted index of the plan was not detected");
    }
}

#[test]
fn a_dropped_bias_entry_is_detected() {
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
            // Some files become invalid. Those that can still be loaded must not pass.
            if load(file.path()).is_ok() {
                assert!(!pruned.verify(file.path()).passed, "{name}: a short {bias} was not detected");
            }
        }
    }
}

#[test]
fn an_unpatched_size_constant_is_detected() {
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
                assert!(!pruned.verify(file.path()).passed, "{name}: the old size of {output} was not detected");
            }
            left += 1;
        }
    }
    assert!(left >= 4, "only {left} patched size constants found");
}

/// Returns a few nodes of the pruned file with an attribute or input of some kind.
fn some_nodes(pruned: &Pruned, is_it: impl Fn(&NodeProto) -> bool) -> Vec<usize> {
    let nodes = decode(&pruned.path).graph.unwrap().node;
    let found: Vec<usize> = nodes.iter().enumerate().filter(|(_, node)| is_it(node)).map(|(at, _)| at).collect();
    let step = (found.len() / 3).max(1);
    found.into_iter().step_by(step).collect()
}

/// Asserts that the change is detected without a run, and that the node is named.
fn check_node(name: &str, pruned: &Pruned, at: usize, change: impl FnOnce(&mut NodeProto)) {
    let mut node = String::new();
    let file = mutated(pruned, |model| {
        let proto = &mut model.graph.as_mut().unwrap().node[at];
        node.clone_from(&proto.name);
        change(proto);
    });
    let report = pruned.verify(file.path());
    let failure = report.failure.unwrap_or_else(|| panic!("{name}: a change of {node} was not detected"));
    assert!(failure.contains(&node) && report.runs.is_empty(), "{name}: {failure}");
}

#[test]
fn changes_too_small_to_affect_an_output_are_detected() {
    for (name, pruned) in cuts() {
        for at in some_nodes(pruned, |node| node.float("epsilon").is_some()) {
            check_node(name, pruned, at, |node| {
                let epsilon = node.attribute.iter_mut().find(|attribute| attribute.name == "epsilon").unwrap();
                epsilon.f = epsilon.f.map(|epsilon| epsilon * 30.0);
            });
        }
        // For example the 0.044715 of a tanh GELU, which the exporter writes as a Constant node.
        let is_number = |node: &NodeProto| {
            node.tensor("value")
                .is_some_and(|tensor| tensor.element_type() == DataType::Float && tensor.dims.is_empty())
        };
        for at in some_nodes(pruned, is_number) {
            check_node(name, pruned, at, |node| {
                let tensor = node.attribute.iter_mut().find_map(|attribute| attribute.t.as_mut()).unwrap();
                let number = f32::from_le_bytes(tensor.raw_data[..].try_into().unwrap());
                tensor.raw_data = (number * 1.05 + 1e-6).to_le_bytes().to_vec().into();
            });
        }
        for at in some_nodes(pruned, |node| ["Sigmoid", "Tanh", "Erf"].contains(&node.op_type.as_str())) {
            check_node(name, pruned, at, |node| node.op_type = "Softsign".to_owned());
        }
        for at in some_nodes(pruned, |node| node.op_type == "Add") {
            check_node(name, pruned, at, |node| node.input[0] = node.input[1].clone());
        }
    }
}

#[test]
fn a_change_of_one_element_of_any_constant_is_detected() {
    for (name, pruned) in cuts() {
        let graph = decode(&pruned.path).graph.unwrap();
        let is_float = |tensor: &&TensorProto| {
            matches!(tensor.element_type(), DataType::Float | DataType::Float16) && tensor.raw_data.len() > 8
        };
        let floats: Vec<&TensorProto> = graph.initializer.iter().filter(is_float).collect();
        for tensor in floats.iter().step_by((floats.len() / 6).max(1)) {
            let file = mutated(pruned, |model| {
                let tensor = tensor_mut(model, &tensor.name);
                let mut raw = tensor.raw_data.to_vec();
                // The lowest bit of the last element.
                let last = raw.len() - tensor.element_type().byte_size().unwrap();
                raw[last] ^= 1;
                tensor.raw_data = raw.into();
            });
            let failure = pruned.verify(file.path()).failure.unwrap();
            assert!(failure.contains(&tensor.name), "{name}: {failure}");
        }
    }
}

#[test]
fn a_wrong_cut_whose_plan_agrees_with_the_file_is_detected_at_its_node() {
    for (name, pruned) in cuts().into_iter().filter(|(name, _)| !name.contains("fp16")) {
        let op = |tensor: &TensorPlan| {
            let graph = &pruned.analysis.graph;
            let output = graph.value(&tensor.readers[0].0).unwrap();
            graph.nodes[graph.values[output].producer.unwrap().0].op()
        };
        let is_consumer = |tensor: &&TensorPlan| {
            tensor.readers.len() == 1
                && (op(tensor) == "Conv" && tensor.keep.contains_key(&1)
                    || op(tensor) == "MatMul" && tensor.keep.contains_key(&0))
        };
        let consumers: Vec<&TensorPlan> = pruned.cut.plan.tensors.iter().filter(is_consumer).collect();
        assert!(consumers.len() > 4, "{name}");
        let tensor = consumers[consumers.len() / 2];
        let axis = if tensor.dims.len() == 4 { 1 } else { 0 };
        let (output, slot) = &tensor.readers[0];
        let report = pruned.verify_misaligned(output, *slot, axis);
        let first = report.first_difference.unwrap_or_else(|| panic!("{name}: {output}: {:?}", report.failure));
        assert_eq!(first.value, *output, "{name}");
    }
}
