//! The graph with quantised layers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::layers::{Layer, floats};
use super::numbers::{Affine, Weight, bias};
use super::{Form, QuantizeOptions};
use crate::deploy::ranges::Range;
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::onnx::names::Names;
use crate::onnx::{GraphProto, NodeProto, TensorProto, attr_int};

struct Emitter<'a> {
    model: &'a Model,
    graph: &'a Graph,
    ranges: &'a BTreeMap<ValueId, Range>,
    options: &'a QuantizeOptions<'a>,
    names: Names,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// The names of activations after their dequantisation.
    activations: HashMap<ValueId, String>,
    /// The same for weights, by value and axis of the scales, with the scales.
    weights: HashMap<(ValueId, usize), (String, Vec<f32>)>,
}

/// Returns the network with these layers in int8.
pub(super) fn emit(
    (model, graph, _): (&Model, &Graph, &Facts),
    layers: &[&Layer],
    ranges: &BTreeMap<ValueId, Range>,
    options: &QuantizeOptions<'_>,
) -> Result<Form, Error> {
    let mut emitter = Emitter {
        model,
        graph,
        ranges,
        options,
        names: graph.names(),
        nodes: Vec::new(),
        initializers: Vec::new(),
        activations: HashMap::new(),
        weights: HashMap::new(),
    };
    let by_node: HashMap<usize, &Layer> = layers.iter().map(|layer| (layer.node, *layer)).collect();
    for node in &graph.nodes {
        let mut proto = node.proto.clone();
        // All nodes read the dequantised form of a quantised output.
        for (slot, value) in node.inputs.iter().enumerate() {
            let is_output = value.is_some_and(|value| layers.iter().any(|layer| layer.output == value));
            if let Some(name) = value.and_then(|value| emitter.activations.get(&value)).filter(|_| is_output) {
                proto.input[slot].clone_from(name);
            }
        }
        let layer = by_node.get(&node.id);
        if let Some(layer) = layer {
            proto.input[layer.slots.data] = emitter.activation(layer.data);
            let (weight, scales) = emitter.weight(layer)?;
            proto.input[layer.slots.weight] = weight;
            if let (true, Some(value)) = (options.style.quantizes_biases, layer.bias)
                && let Some(name) = emitter.bias(layer, value, &scales)?
            {
                proto.input[layer.slots.bias] = name;
            }
        }
        emitter.nodes.push(proto);
        if let Some(layer) = layer.filter(|_| options.style.quantizes_outputs)
            && emitter.ranges.contains_key(&layer.output)
            && !graph.values[layer.output].is_output
        {
            emitter.activation(layer.output);
        }
    }
    emitter.finish()
}

impl Emitter<'_> {
    fn node(&mut self, op_type: &str, stem: &str, inputs: &[&str], axis: Option<usize>) -> String {
        let name = self.names.fresh(&format!("{stem}_{op_type}"));
        let output = self.names.fresh(&format!("{stem}_{op_type}_Output"));
        self.nodes.push(NodeProto {
            op_type: op_type.to_owned(),
            name,
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.clone()],
            attribute: axis.map(|axis| attr_int("axis", axis as i64)).into_iter().collect(),
            ..NodeProto::default()
        });
        output
    }

    fn tensor(&mut self, name: &str, tensor: impl FnOnce(&str) -> TensorProto) -> String {
        let name = self.names.fresh(name);
        self.initializers.push(tensor(&name));
        name
    }

    /// Returns the name of a value after quantisation and dequantisation.
    fn activation(&mut self, value: ValueId) -> String {
        if let Some(name) = self.activations.get(&value) {
            return name.clone();
        }
        let own = self.graph.values[value].name.clone();
        let range = self.ranges.get(&value).copied().unwrap_or(Range { low: 0.0, high: 0.0 });
        let affine = Affine::of(range, self.options.style);
        let scale = self.tensor(&format!("{own}_scale"), |name| affine.scale_tensor(name));
        let zero = self.tensor(&format!("{own}_zero_point"), |name| affine.zero_point_tensor(name));
        let integers = self.node("QuantizeLinear", &own, &[&own, &scale, &zero], None);
        let name = self.node("DequantizeLinear", &own, &[&integers, &scale, &zero], None);
        self.activations.insert(value, name.clone());
        name
    }

    /// Returns the name of a dequantised weight, and its scales.
    fn weight(&mut self, layer: &Layer) -> Result<(String, Vec<f32>), Error> {
        let key = (layer.weight, layer.slots.channels);
        if let Some(known) = self.weights.get(&key) {
            return Ok(known.clone());
        }
        let (values, dims) = floats(self.model, self.graph, layer.weight)?;
        let weight = Weight::of(&values, &dims, layer.slots.channels);
        let own = self.graph.values[layer.weight].name.clone();
        let integers = self.tensor(&format!("{own}_quantized"), |name| weight.tensor(name));
        let scale = self.tensor(&format!("{own}_scale"), |name| weight.scale_tensor(name));
        let zero = self.tensor(&format!("{own}_zero_point"), |name| weight.zero_point_tensor(name));
        let name = self.node("DequantizeLinear", &own, &[&integers, &scale, &zero], Some(layer.slots.channels));
        self.weights.insert(key, (name.clone(), weight.scales.clone()));
        Ok((name, weight.scales))
    }

    /// Returns the name of a bias dequantised with the scale of the layer's sums. `None`: it is out of range.
    fn bias(&mut self, layer: &Layer, value: ValueId, scales: &[f32]) -> Result<Option<String>, Error> {
        let (values, dims) = floats(self.model, self.graph, value)?;
        let range = self.ranges.get(&layer.data).copied().unwrap_or(Range { low: 0.0, high: 0.0 });
        let own_scale = Affine::of(range, self.options.style).scale;
        let scales: Vec<f32> = scales.iter().map(|scale| scale * own_scale).collect();
        let Some(integers) = bias(&values, &scales) else { return Ok(None) };
        let own = self.graph.values[value].name.clone();
        let bytes = |integers: &[i32]| integers.iter().flat_map(|integer| integer.to_le_bytes()).collect::<Vec<u8>>();
        let of = |name: &str, integers: &[i32]| {
            TensorProto::of_raw(name, crate::onnx::DataType::Int32, &[integers.len() as i64], bytes(integers))
        };
        if dims.len() != 1 {
            return Ok(None);
        }
        let stored = self.tensor(&format!("{own}_quantized"), |name| of(name, &integers));
        let scale = self.tensor(&format!("{own}_quantized_scale"), |name| {
            TensorProto::of_floats(name, &scales, &[scales.len() as i64])
        });
        let zero = self.tensor(&format!("{own}_quantized_zero_point"), |name| of(name, &vec![0; scales.len()]));
        Ok(Some(self.node("DequantizeLinear", &own, &[&stored, &scale, &zero], Some(0))))
    }

    fn finish(mut self) -> Result<Form, Error> {
        let mut graph = GraphProto { node: std::mem::take(&mut self.nodes), ..self.model.graph().clone() };
        graph.initializer.append(&mut self.initializers);
        // Nothing reads the float32 form of quantised weights.
        graph.drop_dead();
        let left: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let before: BTreeSet<&str> = self.model.graph().initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        graph.input.retain(|input| left.contains(input.name.as_str()) || !before.contains(input.name.as_str()));
        Ok(Form { model: self.model.with_graph(graph), stored: BTreeMap::new() })
    }
}
