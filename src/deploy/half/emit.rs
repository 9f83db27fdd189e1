//! The graph in which some nodes compute in half precision.

use std::collections::{BTreeMap, HashMap};

use super::decide::{Decision, is_float, names_float};
use super::{Form, HalfOptions};
use crate::deploy::form::declare_type;
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, Node, ValueId};
use crate::onnx::floats::Floats;
use crate::onnx::names::Names;
use crate::onnx::order::captured;
use crate::onnx::{DataType, GraphProto, NodeProto, TensorProto, attr_int};

/// The precision of a value: half or float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Half,
    Float,
}

impl Kind {
    fn of(is_half: bool) -> Self {
        if is_half { Self::Half } else { Self::Float }
    }

    fn other(self) -> Self {
        if self == Self::Half { Self::Float } else { Self::Half }
    }

    fn suffix(self) -> &'static str {
        if self == Self::Half { "/__half" } else { "/__float" }
    }
}

struct Emitter<'a> {
    model: &'a Model,
    graph: &'a Graph,
    facts: &'a Facts,
    options: &'a HalfOptions<'a>,
    names: Names,
    /// The names of values in each precision.
    known: HashMap<(ValueId, Kind), String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    stored: BTreeMap<String, DataType>,
    casts: usize,
}

/// Returns the converted network, and the number of casts that were added.
pub(super) fn emit(
    (model, graph, facts): (&Model, &Graph, &Facts),
    decision: &Decision<'_>,
    options: &HalfOptions<'_>,
) -> Result<(Form, usize), Error> {
    let names = graph.names();
    let mut emitter = Emitter {
        model,
        graph,
        facts,
        options,
        names,
        known: HashMap::new(),
        nodes: Vec::new(),
        initializers: Vec::new(),
        stored: BTreeMap::new(),
        casts: 0,
    };
    let interface = Kind::of(options.halves_interface);
    for input in graph.inputs.iter().filter(|input| is_float(facts, **input)) {
        emitter.known.insert((*input, interface), graph.values[*input].name.clone());
    }
    for output in graph.outputs.iter().filter(|output| is_float(facts, **output)) {
        // A constant that is an output of the network keeps its name in the type of the outputs.
        if graph.tensor(model, *output).is_some() {
            emitter.named(*output, interface)?;
        }
    }
    for node in &graph.nodes {
        emitter.add(node, decision, interface)?;
    }
    emitter.finish(interface)
}

impl Emitter<'_> {
    fn dtype(&self, kind: Kind) -> DataType {
        if kind == Kind::Half { self.options.dtype } else { DataType::Float }
    }

    /// Returns the name of a float32 value of the network in a precision, and adds the value if there is none.
    fn named(&mut self, value: ValueId, kind: Kind) -> Result<String, Error> {
        if let Some(name) = self.known.get(&(value, kind)) {
            return Ok(name.clone());
        }
        let own = self.graph.values[value].name.clone();
        if let Some(tensor) = self.graph.tensor(self.model, value) {
            // The first precision in which it is read keeps the name.
            let is_first = !self.known.contains_key(&(value, kind.other()));
            let name = if is_first { own } else { self.names.fresh(&format!("{own}{}", kind.suffix())) };
            self.constant(value, tensor.clone(), &name, kind)?;
            self.known.insert((value, kind), name.clone());
            return Ok(name);
        }
        let name = self.names.fresh(&format!("{own}{}", kind.suffix()));
        let from = match self.known.get(&(value, kind.other())) {
            Some(from) => from.clone(),
            // A sparse initializer: it remains unchanged.
            None => own,
        };
        self.cast(&from, &name, kind);
        self.known.insert((value, kind), name.clone());
        Ok(name)
    }

    /// Adds a constant in a precision: as an initializer, or as the Constant node that it was.
    fn constant(&mut self, value: ValueId, tensor: TensorProto, name: &str, kind: Kind) -> Result<(), Error> {
        let producer = self.graph.values[value].producer.map(|(node, _)| &self.graph.nodes[node].proto);
        match producer {
            None => {
                if kind == Kind::Half {
                    self.stored.insert(name.to_owned(), self.options.dtype);
                }
                self.initializers.push(TensorProto { name: name.to_owned(), ..tensor });
            }
            Some(node) => {
                let mut node = node.clone();
                let is_first = node.output.first().is_some_and(|output| output == name);
                if !is_first {
                    node.name = self.names.fresh(name);
                }
                node.output = vec![name.to_owned()];
                if kind == Kind::Half {
                    self.convert_attributes(&mut node)?;
                }
                self.nodes.push(node);
            }
        }
        Ok(())
    }

    fn cast(&mut self, from: &str, to: &str, kind: Kind) {
        self.casts += 1;
        let name = self.names.fresh(&format!("{to}/Cast"));
        self.nodes.push(NodeProto {
            op_type: "Cast".to_owned(),
            name,
            input: vec![from.to_owned()],
            output: vec![to.to_owned()],
            attribute: vec![attr_int("to", self.dtype(kind) as i64)],
            ..NodeProto::default()
        });
    }

    /// Converts attributes that name or contain float32 to half precision.
    fn convert_attributes(&self, node: &mut NodeProto) -> Result<(), Error> {
        for attribute in node.attribute.iter_mut().filter(|attribute| names_float(attribute)) {
            match &attribute.t {
                Some(tensor) => {
                    let bytes = self.model.tensor_bytes(tensor)?;
                    let values = Floats::of(DataType::Float, &bytes).map(Floats::to_f64).unwrap_or_default();
                    attribute.t = TensorProto::of_numbers(&tensor.name, self.options.dtype, &values, &tensor.dims);
                }
                None => attribute.i = Some(self.options.dtype as i64),
            }
        }
        Ok(())
    }

    /// Returns the name of an input for a node to which the precision does not matter.
    fn any(&mut self, value: ValueId) -> Result<String, Error> {
        for kind in [Kind::Float, Kind::Half] {
            if let Some(name) = self.known.get(&(value, kind)) {
                return Ok(name.clone());
            }
        }
        self.named(value, Kind::Float)
    }

    fn add(&mut self, node: &Node, decision: &Decision<'_>, interface: Kind) -> Result<(), Error> {
        // Constants are added where they are first read.
        let is_constant = |value: &ValueId| self.graph.tensor(self.model, *value).is_some();
        if node.output(0).is_some_and(|value| is_constant(&value) && is_float(self.facts, value)) {
            return Ok(());
        }
        let mut proto = node.proto.clone();
        let floats_out = node.outputs.iter().flatten().any(|value| is_float(self.facts, *value));
        for (slot, value) in node.inputs.iter().enumerate() {
            let Some(value) = value.filter(|value| is_float(self.facts, *value)) else { continue };
            let depends_on_precision = floats_out || decision.depends_on_precision(node);
            proto.input[slot] = match depends_on_precision {
                true => self.named(value, Kind::of(decision.reads_half(node, slot)))?,
                false => self.any(value)?,
            };
        }
        let mut renamed = BTreeMap::new();
        for name in captured(&node.proto) {
            let Some(value) = self.graph.value(name).filter(|value| is_float(self.facts, *value)) else { continue };
            renamed.insert(name.to_owned(), self.named(value, Kind::Float)?);
        }
        for attribute in &mut proto.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| rename_reads(body, &renamed));
        }
        let mut after = Vec::new();
        for (slot, value) in node.outputs.iter().enumerate() {
            let Some(value) = value.filter(|value| is_float(self.facts, *value)) else { continue };
            let kind = Kind::of(decision.gives_half(node, slot));
            let own = self.graph.values[value].name.clone();
            if self.graph.values[value].is_output && kind != interface {
                let name = self.names.fresh(&format!("{own}{}", kind.suffix()));
                proto.output[slot].clone_from(&name);
                after.push((name.clone(), own.clone()));
                self.known.insert((value, kind), name);
                self.known.insert((value, interface), own);
            } else {
                self.known.insert((value, kind), own);
            }
        }
        if decision.is_half(node.id) && decision.gives_half(node, 0) {
            self.convert_attributes(&mut proto)?;
        }
        self.nodes.push(proto);
        for (from, to) in after {
            self.cast(&from, &to, interface);
        }
        Ok(())
    }

    fn finish(mut self, interface: Kind) -> Result<(Form, usize), Error> {
        let by_name: HashMap<&str, Kind> = self.known.iter().map(|((_, kind), name)| (name.as_str(), *kind)).collect();
        let mut graph = GraphProto { node: std::mem::take(&mut self.nodes), ..self.model.graph().clone() };
        for value in graph.input.iter_mut().chain(&mut graph.output) {
            if self.graph.value(&value.name).is_some_and(|value| is_float(self.facts, value)) {
                declare_type(value, self.dtype(interface));
            }
        }
        for value in &mut graph.value_info {
            if by_name.get(value.name.as_str()) == Some(&Kind::Half) {
                declare_type(value, self.options.dtype);
            }
        }
        // Initializers of other types, and those that only bodies read.
        let is_made = |tensor: &TensorProto| self.initializers.iter().any(|made| made.name == tensor.name);
        let is_float =
            |tensor: &TensorProto| self.graph.value(&tensor.name).is_some_and(|value| is_float(self.facts, value));
        let others: Vec<TensorProto> =
            graph.initializer.iter().filter(|tensor| !is_float(tensor) && !is_made(tensor)).cloned().collect();
        graph.initializer = [std::mem::take(&mut self.initializers), others].concat();
        // Files of old IR versions list initializers among the inputs too, as defaults.
        let types: HashMap<&str, DataType> =
            graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor.element_type())).collect();
        for input in &mut graph.input {
            if let Some(own) = types.get(input.name.as_str()) {
                declare_type(input, self.stored.get(&input.name).copied().unwrap_or(*own));
            }
        }
        Ok((Form { model: self.model.with_graph(graph), stored: self.stored }, self.casts))
    }
}

/// Renames the outer values that a body reads.
fn rename_reads(body: &mut GraphProto, renamed: &BTreeMap<String, String>) {
    for node in &mut body.node {
        for input in &mut node.input {
            if let Some(name) = renamed.get(input) {
                input.clone_from(name);
            }
        }
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|inner| rename_reads(inner, renamed));
        }
    }
}
