//! Shape inference with symbolic sizes and constant propagation through shape arithmetic.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, is_float};
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::tensor::elements;
use crate::graph::{Graph, Node};
use crate::onnx::{DataType, TensorProto, TypeProto, tensor_shape_proto, type_proto};
use crate::operator::infer::InferCx;
use crate::operator::{Operator, Operators, RuleError};

/// Float constants with more elements than this are weights, not parameters of shape arithmetic.
const FLOATS_LIMIT: i64 = 64;

impl Facts {
    /// The facts of everything that no node computes: graph inputs, initializers, outer names.
    ///
    /// # Errors
    /// An initializer whose data can't be read.
    pub fn of_sources(model: &Model, graph: &Graph) -> Result<Self, Error> {
        let mut facts = Facts { values: vec![None; graph.values.len()], gaps: Vec::new(), fresh: 0 };
        for tensor in &model.graph().initializer {
            if let Some(value) = graph.value(&tensor.name) {
                facts.values[value] = Some(of_tensor(model, tensor)?);
            }
        }
        for input in &model.graph().input {
            if let Some(value) = graph.value(&input.name).filter(|v| facts.values[*v].is_none()) {
                facts.values[value] = input.r#type.as_ref().and_then(|t| of_type(t, &mut facts.fresh));
            }
        }
        Ok(facts)
    }

    /// Infers the outputs of one node from the facts of its inputs.
    ///
    /// # Errors
    /// The node contradicts its operator's specification.
    pub fn infer_node(&mut self, model: &Model, node: &Node, operators: &Operators) -> Result<(), Error> {
        self.infer_patched(model, node, operators.of(node.id), &BTreeMap::new())
    }

    /// As [`Facts::infer_node`], with facts that stand for those of some input slots.
    ///
    /// # Errors
    /// As [`Facts::infer_node`].
    pub fn infer_patched(
        &mut self,
        model: &Model,
        node: &Node,
        operator: Result<&dyn Operator, RuleError>,
        overrides: &BTreeMap<usize, Fact>,
    ) -> Result<(), Error> {
        if node.proto.op_type == "Constant"
            && let (Some(tensor), Some(output)) = (node.proto.tensor("value"), node.output(0))
        {
            self.values[output] = Some(of_tensor(model, tensor)?);
            return Ok(());
        }
        let mut inputs: Vec<Option<&Fact>> =
            node.inputs.iter().map(|v| v.and_then(|v| self.values[v].as_ref())).collect();
        for (slot, fact) in overrides {
            inputs.resize(inputs.len().max(slot + 1), None);
            inputs[*slot] = Some(fact);
        }
        let mut cx = InferCx { node, inputs, outputs: vec![None; node.outputs.len()], fresh: &mut self.fresh };
        let result = operator.and_then(|operator| operator.infer(&mut cx));
        let outputs = cx.outputs;
        match result {
            Ok(()) => {}
            Err(RuleError::Invalid(text)) => {
                let inputs: Vec<String> = node
                    .inputs
                    .iter()
                    .map(|v| v.and_then(|v| self.values[v].as_ref()).map_or("-".to_owned(), Fact::describe))
                    .collect();
                return Err(Error::invalid(model.path(), format!("{text}; inputs: {}", inputs.join(", ")))
                    .at_node(&node.name, node.op()));
            }
            Err(cause) => self.gaps.push((node.id, cause.to_string())),
        }
        for (value, fact) in node.outputs.iter().zip(outputs) {
            if let Some(value) = value {
                self.values[*value] = fact;
            }
        }
        Ok(())
    }

    /// Takes what the file itself says of a value where inference found less.
    fn complete(&mut self, graph: &Graph, declared: &[(usize, TypeProto)], node: &Node) {
        for value in node.outputs.iter().flatten() {
            let known = self.values[*value].as_ref();
            if known.is_some_and(|fact| fact.shape.is_some()) {
                continue;
            }
            if let Ok(at) = declared.binary_search_by_key(value, |(value, _)| *value)
                && let Some(fact) = of_type(&declared[at].1, &mut self.fresh)
            {
                self.values[*value] = Some(fact);
            }
        }
        debug_assert!(graph.nodes.len() > node.id);
    }
}

/// Infers the facts of all values.
///
/// # Errors
/// A node contradicts its operator's specification, or a constant can't be read.
pub fn infer(model: &Model, graph: &Graph, operators: &Operators) -> Result<Facts, Error> {
    let mut facts = Facts::of_sources(model, graph)?;
    let declared = declared_types(model, graph);
    for node in &graph.nodes {
        facts.infer_node(model, node, operators)?;
        facts.complete(graph, &declared, node);
    }
    Ok(facts)
}

impl Facts {
    /// The facts of all values where every symbolic size of the inputs is replaced: `sizes` gives it by name.
    ///
    /// # Errors
    /// A node contradicts its operator's specification at these sizes, or a constant can't be read.
    pub fn at_sizes(
        model: &Model,
        graph: &Graph,
        operators: &Operators,
        sizes: &crate::graph::sizes::Sizes,
    ) -> Result<Self, Error> {
        let mut facts = Facts::of_sources(model, graph)?;
        let mut names = std::collections::BTreeSet::new();
        for input in &graph.inputs {
            let shape = facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref());
            shape.into_iter().flatten().for_each(|dim| dim.symbols(&mut names));
        }
        // Sizes that inference itself could not name are not to be found in the list, whatever it says.
        let sizes = sizes.iter().filter(|(name, _)| names.contains(*name));
        let sizes = sizes.map(|(name, size)| (name.clone(), *size)).collect();
        graph.inputs.iter().for_each(|input| facts.replace_sizes(*input, &sizes));
        let declared = declared_types(model, graph);
        for node in &graph.nodes {
            facts.infer_node(model, node, operators)?;
            facts.complete(graph, &declared, node);
            node.outputs.iter().flatten().for_each(|output| facts.replace_sizes(*output, &sizes));
        }
        Ok(facts)
    }

    fn replace_sizes(&mut self, value: usize, sizes: &crate::graph::sizes::Sizes) {
        let shape = self.values[value].as_mut().and_then(|fact| fact.shape.as_mut());
        for dim in shape.into_iter().flatten() {
            if let Some(size) = dim.eval(sizes) {
                *dim = Dim::from(size);
            }
        }
    }
}

fn declared_types(model: &Model, graph: &Graph) -> Vec<(usize, TypeProto)> {
    let proto = model.graph();
    let mut declared: Vec<(usize, TypeProto)> = proto
        .value_info
        .iter()
        .chain(&proto.output)
        .filter_map(|info| Some((graph.value(&info.name)?, info.r#type.clone()?)))
        .collect();
    declared.sort_by_key(|(value, _)| *value);
    declared.dedup_by_key(|(value, _)| *value);
    declared
}

/// The fact of a constant tensor; small integer tensors and few floats with their elements.
///
/// # Errors
/// The data can't be read.
pub fn of_tensor(model: &Model, tensor: &TensorProto) -> Result<Fact, Error> {
    let dtype = DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined);
    let fact = Fact::new(dtype, tensor.dims.iter().copied().map(Dim::from).collect());
    let count = tensor.dims.iter().fold(1i64, |count, size| count.saturating_mul(*size));
    let limit = if is_float(dtype) { FLOATS_LIMIT } else { crate::graph::fact::KNOWN_LIMIT as i64 };
    if count > limit {
        return Ok(fact);
    }
    let bytes = model.tensor_bytes(tensor)?;
    Ok(fact.with_known(elements(dtype, &bytes)))
}

fn of_type(proto: &TypeProto, fresh: &mut usize) -> Option<Fact> {
    let Some(type_proto::Value::TensorType(tensor)) = &proto.value else {
        return None;
    };
    let dtype = DataType::try_from(tensor.elem_type).unwrap_or(DataType::Undefined);
    let Some(shape) = &tensor.shape else {
        return Some(Fact::unranked(dtype));
    };
    let dims = shape.dim.iter().map(|dim| match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(value)) if *value >= 0 => Dim::from(*value),
        Some(tensor_shape_proto::dimension::Value::DimParam(name)) if !name.is_empty() => Dim::symbol(name),
        _ => {
            *fresh += 1;
            Dim::symbol(&format!("?{fresh}"))
        }
    });
    Some(Fact::new(dtype, dims.collect()))
}
