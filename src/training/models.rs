//! The three models that a training session runs.

use std::collections::{BTreeSet, HashMap};

use super::Parameter;
use crate::analysis::Analysis;
use crate::error::Error;
use crate::gradient::{GradientGraph, LOSS, value_info};
use crate::graph::model::Model;
use crate::onnx::builder::Builder;
use crate::onnx::names::Names;
use crate::onnx::tool_name;
use crate::onnx::{
    DataLocation, DataType, GraphProto, ModelProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto,
    attr_float, attr_int, type_proto,
};

/// The input that chooses whether gradients overwrite the buffers instead of being added to them.
const RESET: &str = "lazy_reset_grad";

/// The domain of the training operators.
const MICROSOFT: &str = "com.microsoft";

/// The newest IR version of the file format that ONNX Runtime 1.19 reads.
const NEWEST_IR: i64 = 10;

/// Builds the training model: forward pass, loss, gradients and their accumulation. With `outputs_gradients`, the
/// gradient with respect to every use of a weight is an output too.
pub(super) fn training_model(
    analysis: &Analysis,
    backward: &GradientGraph,
    parameters: &[Parameter],
    outputs_gradients: bool,
) -> Result<ModelProto, Error> {
    let mut model = whole(analysis, backward)?;
    let mut by_weight: HashMap<&str, Vec<&str>> = HashMap::new();
    for gradient in &backward.gradients {
        let name = analysis.graph.values[gradient.value].name.as_str();
        by_weight.entry(name).or_default().push(&gradient.output);
    }
    let graph = model.graph.get_or_insert_default();
    if !outputs_gradients {
        graph.output.retain(|output| output.name == LOSS);
    }
    let mut names = Names::of_graph(analysis.model.graph());
    let mut claim = |name: String| match names.claim(&name) {
        true => Ok(name),
        false => Err(Error::unmet(format!("the model has a value {name:?}, a name that training sessions reserve"))
            .in_file(analysis.model.path())
            .hint("rename the value in the model")),
    };
    let mut builder = Builder::default();
    let reset = claim(RESET.to_owned())?;
    for parameter in parameters {
        let name = &parameter.name;
        let gradient = claim(format!("{name}_grad"))?;
        let buffer = claim(format!("{name}_grad.accumulation.buffer"))?;
        let done = claim(format!("{name}_grad.accumulation.out"))?;
        let uses = by_weight.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        // The gradient of a weight that several nodes read is the sum over these uses.
        let sum = if uses.len() == 1 { "Identity" } else { "Sum" };
        builder.push("", sum, uses, vec![gradient.clone()], vec![]);
        let inputs = [buffer.as_str(), &gradient, &reset];
        builder.push(MICROSOFT, "InPlaceAccumulatorV2", &inputs, vec![done.clone()], vec![]);
        graph.input.push(value_info(&buffer, DataType::Float, &parameter.dims));
        graph.output.push(value_info(&done, DataType::Bool, &[1]));
    }
    graph.node.append(&mut builder.nodes);
    graph.input.push(value_info(&reset, DataType::Bool, &[1]));
    graph.drop_dead();
    "training".clone_into(&mut graph.name);
    let uses_domain = model.opset_import.iter().any(|import| import.domain == MICROSOFT);
    if !uses_domain {
        model.opset_import.push(OperatorSetIdProto { domain: MICROSOFT.to_owned(), version: 1 });
    }
    Ok(model)
}

/// Builds the eval model: forward pass and loss.
pub(super) fn eval_model(analysis: &Analysis, forward: &GradientGraph) -> Result<ModelProto, Error> {
    let mut model = whole(analysis, forward)?;
    let graph = model.graph.get_or_insert_default();
    graph.drop_dead();
    "eval".clone_into(&mut graph.name);
    Ok(model)
}

/// Returns the gradient graph as a self-contained model: the trained weights are fed, all other constants are inside
/// it.
fn whole(analysis: &Analysis, gradient: &GradientGraph) -> Result<ModelProto, Error> {
    let mut model = gradient.model.clone();
    let graph = model.graph.get_or_insert_default();
    let initializers = std::mem::take(&mut graph.initializer);
    graph.initializer =
        initializers.into_iter().map(|tensor| inside(&analysis.model, tensor)).collect::<Result<_, _>>()?;
    model.ir_version = model.ir_version.min(NEWEST_IR);
    model.producer_name = tool_name();
    Ok(model)
}

/// Moves the elements of a tensor into the model file. Paths of external data would be wrong: the artifacts are in
/// another folder.
fn inside(model: &Model, tensor: TensorProto) -> Result<TensorProto, Error> {
    if tensor.data_location != DataLocation::External as i32 {
        return Ok(tensor);
    }
    let raw_data = model.tensor_view(&tensor)?;
    Ok(TensorProto { raw_data, external_data: Vec::new(), data_location: DataLocation::Default as i32, ..tensor })
}

/// Builds the optimizer model: one AdamW step on all trained weights, with the constants that ONNX Runtime's tool
/// writes.
pub(super) fn optimizer_model(opset: i64) -> ModelProto {
    const FLAG: &str = "__updated";
    let sequences = ["params", "gradients", "first_order_moments", "second_order_moments"];
    let inputs: Vec<&str> = ["learning_rate", "step"].into_iter().chain(sequences).collect();
    let attributes = vec![
        // Bias correction as in PyTorch's AdamW: weight decay is applied before the step.
        attr_int("adam_mode", 1),
        attr_int("correct_bias", 1),
        attr_float("alpha", 0.9),
        attr_float("beta", 0.999),
        attr_float("epsilon", 1e-6),
        attr_float("weight_decay", 0.0),
    ];
    let mut builder = Builder::default();
    builder.push(MICROSOFT, "AdamWOptimizer", &inputs, vec![FLAG.to_owned()], attributes);
    let scalars =
        [value_info("learning_rate", DataType::Float, &[1]), value_info("step", DataType::Int64, &[1])].into_iter();
    let graph = GraphProto {
        name: "optimizer".to_owned(),
        node: builder.nodes,
        input: scalars.chain(sequences.map(sequence_info)).collect(),
        output: vec![value_info(FLAG, DataType::Bool, &[1])],
        ..GraphProto::default()
    };
    let import = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    ModelProto {
        ir_version: 8,
        producer_name: tool_name(),
        opset_import: vec![import(MICROSOFT, 1), import("", opset)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// Returns the inputs of a training model that every step feeds, in order.
pub(super) fn user_inputs(model: &ModelProto, weights: &BTreeSet<&str>) -> Vec<String> {
    let names = model.graph.iter().flat_map(|graph| &graph.input).map(|input| input.name.as_str());
    let is_buffer = |name: &str| {
        let weight = name.strip_suffix("_grad.accumulation.buffer");
        weight.is_some_and(|weight| weights.contains(weight))
    };
    let is_user = |name: &&str| *name != RESET && !weights.contains(name) && !is_buffer(name);
    names.filter(is_user).map(str::to_owned).collect()
}

/// The declaration of a sequence of float32 tensors of any shape.
fn sequence_info(name: &str) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: None };
    let of = |value| TypeProto { value: Some(value), ..TypeProto::default() };
    let element = of(type_proto::Value::TensorType(tensor));
    let sequence = type_proto::Sequence { elem_type: Some(Box::new(element)) };
    let r#type = Some(of(type_proto::Value::SequenceType(Box::new(sequence))));
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}
