//! Shape inference with symbolic sizes and constant propagation through shape arithmetic.

mod bodies;

mod equations;

use std::collections::BTreeMap;

use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_TOTAL, Known, is_float};
use crate::graph::facts::{Facts, Fixed, Relation};
use crate::graph::model::Model;
use crate::graph::tensor::elements;
use crate::graph::{Graph, Node};
use crate::onnx::{DataType, GraphProto, TensorProto, TypeProto, tensor_shape_proto, type_proto};
use crate::operator::infer::InferCx;
use crate::operator::{Operator, Operators, RuleError};

/// Float constants with more elements than this are treated as weights, not as parameters of shape arithmetic.
const FLOATS_LIMIT: i64 = 64;

/// Maximum number of axes of a value. No runtime supports more, and a file can declare them in a few bytes.
const MOST_AXES: usize = 64;

/// Known values of at most this many elements are always tracked. Larger ones are tracked up to a total of
/// [`KNOWN_TOTAL`].
const SMALL_KNOWN: usize = 64;

/// Maximum number of rounds in which sizes that weights fix may reveal further fixed sizes.
const MOST_ROUNDS: usize = 8;

impl Facts {
    /// Returns the facts of all values that no node computes: graph inputs, initializers, names of outer graphs. Sizes
    /// that weights fix are taken from `fixed`.
    ///
    /// # Errors
    /// The data of an initializer can't be read.
    pub fn of_sources(model: &Model, graph: &Graph, fixed: &BTreeMap<String, Fixed>) -> Result<Self, Error> {
        let mut facts = Facts { fixed: fixed.clone(), ..Facts::unknown(graph.values.len()) };
        for tensor in &model.graph().initializer {
            if let Some(value) = graph.value(&tensor.name) {
                let fact = of_tensor(model, tensor)?;
                facts
                    .check_rank(&fact)
                    .map_err(|text| Error::malformed(model.path(), format!("tensor {:?}: {text}", tensor.name)))?;
                facts.put(value, Some(fact));
            }
        }
        for sparse in &model.graph().sparse_initializer {
            let named = sparse.values.as_ref().and_then(|values| Some((graph.value(&values.name)?, values)));
            if let Some((value, values)) = named {
                let shape = sparse.dims.iter().copied().map(Dim::from).collect();
                facts.values[value] = Some(Fact::new(values.element_type(), shape));
            }
        }
        for input in &model.graph().input {
            if let Some(value) = graph.value(&input.name).filter(|v| facts.values[*v].is_none()) {
                let fact = input.r#type.as_ref().and_then(|t| of_type(t, &mut facts.fresh));
                if let Some(Err(text)) = fact.as_ref().map(|fact| facts.check_rank(fact)) {
                    return Err(Error::malformed(model.path(), format!("graph input {:?}: {text}", input.name)));
                }
                facts.values[value] = fact;
                facts.replace_sizes(value, &facts.fixed_sizes());
            }
        }
        Ok(facts)
    }

    fn check_rank(&self, fact: &Fact) -> Result<(), String> {
        match fact.rank() {
            Some(rank) if rank > MOST_AXES => Err(format!("expected at most {MOST_AXES} axes, found {rank}")),
            _ => Ok(()),
        }
    }

    /// Stores a fact. Discards its elements if there are too many in total.
    fn put(&mut self, value: usize, mut fact: Option<Fact>) {
        let count = fact.as_ref().and_then(|fact| fact.known.as_ref()).map_or(0, Known::len);
        if count > SMALL_KNOWN {
            if self.known_elements.saturating_add(count) > KNOWN_TOTAL {
                if let Some(fact) = &mut fact {
                    fact.known = None;
                }
            } else {
                self.known_elements += count;
            }
        }
        self.values[value] = fact;
    }

    /// Infers the outputs of one node from the facts of its inputs.
    ///
    /// # Errors
    /// The node violates its operator's specification.
    pub fn infer_node(
        &mut self,
        model: &Model,
        graph: &Graph,
        node: &Node,
        operators: &Operators,
    ) -> Result<(), Error> {
        self.infer_patched(model, graph, node, operators.of(node.id), &BTreeMap::new())
    }

    /// Like [`Facts::infer_node`], with facts that replace those of some input slots.
    ///
    /// # Errors
    /// As for [`Facts::infer_node`].
    pub fn infer_patched(
        &mut self,
        model: &Model,
        graph: &Graph,
        node: &Node,
        operator: Result<&dyn Operator, RuleError>,
        overrides: &BTreeMap<usize, Fact>,
    ) -> Result<(), Error> {
        let mut budget = bodies::MOST_NODES;
        self.infer_within(&bodies::Scope::outermost(model, graph), node, operator, overrides, &mut budget)
            .map_err(|text| Error::malformed(model.path(), text).at_node(&node.name, node.op()))
    }

    /// Infers the outputs of a node of a graph or of a body in it. Errors are text.
    fn infer_within(
        &mut self,
        scope: &bodies::Scope<'_>,
        node: &Node,
        operator: Result<&dyn Operator, RuleError>,
        overrides: &BTreeMap<usize, Fact>,
        budget: &mut usize,
    ) -> Result<(), String> {
        if node.proto.op_type == "Constant"
            && let (Some(tensor), Some(output)) = (node.proto.tensor("value"), node.output(0))
        {
            let fact = of_tensor(scope.model, tensor).map_err(|error| error.to_string())?;
            self.check_rank(&fact)?;
            self.put(output, Some(fact));
            return Ok(());
        }
        let mut inputs: Vec<Option<&Fact>> =
            node.inputs.iter().map(|v| v.and_then(|v| self.values[v].as_ref())).collect();
        for (slot, fact) in overrides {
            inputs.resize(inputs.len().max(slot + 1), None);
            inputs[*slot] = Some(fact);
        }
        let outer = |name: &str| scope.graph.value(name).and_then(|value| self.values[value].clone());
        let inside = bodies::Scope { outer: Some(&outer), ..*scope };
        let mut run_body = |body: &GraphProto, inputs: Vec<Option<Fact>>, fresh: &mut usize| {
            inside.infer_body(body, inputs, fresh, budget)
        };
        let mut cx = InferCx {
            node,
            inputs,
            outputs: vec![None; node.outputs.len()],
            fresh: &mut self.fresh,
            equations: &mut self.equations,
            run_body: &mut run_body,
        };
        let noted = cx.equations.len();
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
                return Err(format!("{text}; its inputs are: {}", inputs.join(", ")));
            }
            Err(cause) => {
                self.equations.truncate(noted);
                self.gaps.push((node.id, cause.to_string()));
            }
        }
        for (value, fact) in node.outputs.iter().zip(outputs) {
            if let Some(value) = value {
                if let Some(fact) = &fact {
                    self.check_rank(fact)?;
                }
                self.put(*value, fact);
            }
        }
        Ok(())
    }

    /// Takes over the type that the file declares for a value if inference found no shape.
    fn complete(&mut self, declared: &[(usize, TypeProto)], node: &Node) {
        for value in node.outputs.iter().flatten() {
            let known = self.values[*value].as_ref();
            if known.is_some_and(|fact| fact.shape.is_some()) {
                continue;
            }
            if let Ok(at) = declared.binary_search_by_key(value, |(value, _)| *value)
                && let Some(fact) = of_type(&declared[at].1, &mut self.fresh)
                && self.check_rank(&fact).is_ok()
            {
                self.values[*value] = Some(fact);
                self.replace_sizes(*value, &self.fixed_sizes());
            }
        }
    }
}

/// Infers the facts of all values. A symbolic size of the network's inputs that a weight fixes is replaced by that
/// number ([`Facts::fixed`]). Other symbols are tied where they meet ([`Facts::ties`]).
///
/// # Errors
/// A node violates its operator's specification, or a constant can't be read.
pub fn infer(model: &Model, graph: &Graph, operators: &Operators) -> Result<Facts, Error> {
    let mut facts = infer_with(model, graph, operators, BTreeMap::new())?;
    for _ in 0..MOST_ROUNDS {
        let fixed = equations::fixed(&facts, graph, Relation::Equal);
        if !fixed.is_empty() {
            let fixed: BTreeMap<_, _> = facts.fixed.into_iter().chain(fixed).collect();
            let list: Vec<String> =
                fixed.iter().map(|(name, by)| format!("{name} = {} ({})", by.size, by.node)).collect();
            facts = infer_with(model, graph, operators, fixed).map_err(|error| {
                error.hint(format!("these symbolic sizes are fixed by weights: {}", list.join(", ")))
            })?;
            continue;
        }
        // A size that broadcasts could also be one. The likely size is used if the network is still consistent with it.
        let likely = equations::fixed(&facts, graph, Relation::Broadcast);
        if likely.is_empty() {
            break;
        }
        let fixed = facts.fixed.iter().map(|(name, by)| (name.clone(), by.clone())).chain(likely).collect();
        match infer_with(model, graph, operators, fixed) {
            Ok(better) => facts = better,
            Err(_) => break,
        }
    }
    facts.ties = equations::ties(&facts, graph);
    Ok(facts)
}

fn infer_with(
    model: &Model,
    graph: &Graph,
    operators: &Operators,
    fixed: BTreeMap<String, Fixed>,
) -> Result<Facts, Error> {
    let mut facts = Facts::of_sources(model, graph, &fixed)?;
    let declared = declared_types(model, graph);
    for node in &graph.nodes {
        facts.infer_node(model, graph, node, operators)?;
        facts.complete(&declared, node);
    }
    Ok(facts)
}

impl Facts {
    /// Infers the facts of all values with a number for every symbolic size of the inputs. `sizes` maps names to
    /// numbers.
    ///
    /// # Errors
    /// A node violates its operator's specification at these sizes, or a constant can't be read.
    pub fn at_sizes(
        model: &Model,
        graph: &Graph,
        operators: &Operators,
        sizes: &crate::graph::sizes::Sizes,
    ) -> Result<Self, Error> {
        let mut facts = Facts::of_sources(model, graph, &BTreeMap::new())?;
        let mut names = std::collections::BTreeSet::new();
        for input in &graph.inputs {
            let shape = facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref());
            shape.into_iter().flatten().for_each(|dim| dim.symbols(&mut names));
        }
        // Ignores entries of the list that are not symbols of the inputs, such as names that inference made up.
        let sizes = sizes.iter().filter(|(name, _)| names.contains(*name));
        let sizes = sizes.map(|(name, size)| (name.clone(), *size)).collect();
        graph.inputs.iter().for_each(|input| facts.replace_sizes(*input, &sizes));
        let declared = declared_types(model, graph);
        for node in &graph.nodes {
            facts.infer_node(model, graph, node, operators)?;
            facts.complete(&declared, node);
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
    types_of(model.graph(), graph)
}

/// Returns the types that a graph or a body declares for its values.
fn types_of(proto: &GraphProto, graph: &Graph) -> Vec<(usize, TypeProto)> {
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

/// Returns the fact of a constant tensor. Includes the elements of small integer tensors and of a few floats.
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
