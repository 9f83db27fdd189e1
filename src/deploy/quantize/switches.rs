//! Measurement of the error that each layer causes in int8, by a network with a switch for every layer, which is an input.
//!
//! A value `x` that is to be quantised becomes `x + s (q(x) - x)`, where `s` is the switch of its layer: 0 leaves it
//! unchanged, 1 quantises it. One session measures every choice of layers.

use std::collections::{BTreeMap, HashMap};

use super::layers::{Layer, floats};
use super::numbers::{Affine, Weight};
use super::{LayerCost, QuantizeOptions, QuantizeReport};
use crate::array::{Array, ArrayData};
use crate::deploy::half::KeptNode;
use crate::deploy::ranges::{Inputs, Range, Steps, failed, taken};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::lower::session_with_outputs;
use crate::onnx::builder::Builder;
use crate::onnx::names::Names;
use crate::onnx::{DataType, GraphProto, TensorProto, TypeProto, ValueInfoProto, attr_int, type_proto};
use crate::runtime::{Runtime, Session, SessionOptions};

/// Number of runs on which a layer is measured alone.
const RUNS_OF_ONE: usize = 3;

/// Chooses the layers that are quantised, and returns them with the measurements.
pub(super) fn choose<'l>(
    runtime: &Runtime,
    (model, graph, facts): (&Model, &Graph, &Facts),
    (layers, ranges): (&'l [Layer], &BTreeMap<ValueId, Range>),
    batches: &[Inputs],
    options: &QuantizeOptions<'_>,
    steps: &mut Steps<'_>,
) -> Result<(Vec<&'l Layer>, QuantizeReport), Error> {
    let mut network = Switched::new(runtime, (model, graph, facts), (layers, ranges), options)?;
    let wanted = network.outputs(&vec![0.0; layers.len()], batches)?;
    // Some of the runs, evenly spaced over the timesteps.
    let few: Vec<usize> = (0..RUNS_OF_ONE.min(batches.len()))
        .map(|at| (2 * at + 1) * batches.len() / (2 * RUNS_OF_ONE.min(batches.len())))
        .collect();
    let of_few = |all: &[Vec<f64>]| few.iter().map(|at| all[*at].clone()).collect::<Vec<_>>();
    let few_batches: Vec<Inputs> = few.iter().map(|at| batches[*at].clone()).collect();
    let few_wanted = of_few(&wanted);
    let mut costs = Vec::with_capacity(layers.len());
    for at in 0..layers.len() {
        steps(at, layers.len())?;
        let mut switches = vec![0.0; layers.len()];
        switches[at] = 1.0;
        costs.push((difference(&few_wanted, &network.outputs(&switches, &few_batches)?), at));
    }
    costs.sort_by(|a, b| b.0.total_cmp(&a.0));
    // The difference with all layers quantised except for those with the largest errors.
    let mut without = |count: usize| {
        let mut switches = vec![1.0; layers.len()];
        costs[..count].iter().for_each(|(_, at)| switches[*at] = 0.0);
        Ok::<_, Error>(difference(&wanted, &network.outputs(&switches, batches)?))
    };
    let of_all = without(0)?;
    let (mut kept, mut reached) = (0, of_all);
    if let Some(most) = options.most
        && of_all > most
    {
        // Finds the lowest number of kept layers that is enough. If all are kept, there is no difference.
        let (mut too_few, mut enough) = (0, layers.len());
        reached = 0.0;
        while enough - too_few > 1 {
            let middle = too_few.midpoint(enough);
            let found = without(middle)?;
            if found <= most {
                (enough, reached) = (middle, found);
            } else {
                too_few = middle;
            }
        }
        kept = enough;
    }
    let is_kept = |at: usize| costs[..kept].iter().any(|(_, dear)| *dear == at);
    let node = |at: usize| &graph.nodes[layers[at].node];
    let report = QuantizeReport {
        kept: costs[..kept]
            .iter()
            .map(|(cost, at)| KeptNode {
                node: node(*at).name.clone(),
                op: node(*at).op(),
                reason: format!("int8 in this layer alone changes the output by {cost:.2e} (mean square)"),
            })
            .collect(),
        costs: costs
            .iter()
            .map(|(cost, at)| LayerCost { node: node(*at).name.clone(), op: node(*at).op(), cost: *cost })
            .collect(),
        difference: reached,
        difference_of_all: of_all,
        quantized: 0,
    };
    let chosen = layers.iter().enumerate().filter(|(at, _)| !is_kept(*at)).map(|(_, layer)| layer).collect();
    Ok((chosen, report))
}

/// Computes the mean squared difference.
fn difference(wanted: &[Vec<f64>], found: &[Vec<f64>]) -> f64 {
    let pairs = wanted.iter().flatten().zip(found.iter().flatten());
    let (sum, count) = pairs.fold((0.0, 0usize), |(sum, count), (a, b)| (sum + (a - b).powi(2), count + 1));
    // NaN is worse than any number.
    let mean = sum / count.max(1) as f64;
    if mean.is_nan() { f64::INFINITY } else { mean }
}

/// A network with switches.
struct Switched<'a> {
    model: &'a Model,
    session: Session,
    /// The input that takes the switches.
    input: String,
}

impl<'a> Switched<'a> {
    fn new(
        runtime: &Runtime,
        (model, graph, _): (&'a Model, &Graph, &Facts),
        (layers, ranges): (&[Layer], &BTreeMap<ValueId, Range>),
        options: &QuantizeOptions<'_>,
    ) -> Result<Self, Error> {
        let mut builder = Builder::new("__switch", graph.opset, Names::of_graph(model.graph()));
        let input = builder.fresh("all");
        let by_node: HashMap<usize, usize> = layers.iter().enumerate().map(|(at, layer)| (layer.node, at)).collect();
        // Names of layer outputs after their switches.
        let mut outputs: HashMap<ValueId, String> = HashMap::new();
        for node in &graph.nodes {
            let mut proto = node.proto.clone();
            for (slot, value) in node.inputs.iter().enumerate() {
                if let Some(name) = value.and_then(|value| outputs.get(&value)) {
                    proto.input[slot].clone_from(name);
                }
            }
            let Some(at) = by_node.get(&node.id).copied() else {
                builder.nodes.push(proto);
                continue;
            };
            let layer = &layers[at];
            let index = builder.ints(&[at as i64], &[]);
            let switch = builder.add("Gather", &[&input, &index], vec![attr_int("axis", 0)]);
            let data = proto.input[layer.slots.data].clone();
            proto.input[layer.slots.data] = through(&mut builder, &data, layer.data, ranges, options, &switch);
            let (values, dims) = floats(model, graph, layer.weight)?;
            let weight = Weight::of(&values, &dims, layer.slots.channels);
            let change: Vec<f32> = weight.values().iter().zip(&values).map(|(new, old)| new - old).collect();
            let change = builder.floats(&change, &dims);
            let change = builder.add("Mul", &[&change, &switch], vec![]);
            let own = proto.input[layer.slots.weight].clone();
            proto.input[layer.slots.weight] = builder.add("Add", &[&own, &change], vec![]);
            builder.nodes.push(proto);
            let goes_through = options.style.quantizes_outputs && !graph.values[layer.output].is_output;
            if goes_through && ranges.contains_key(&layer.output) {
                let own = graph.values[layer.output].name.clone();
                let name = through(&mut builder, &own, layer.output, ranges, options, &switch);
                outputs.insert(layer.output, name);
            }
        }
        let mut switched = GraphProto { node: std::mem::take(&mut builder.nodes), ..model.graph().clone() };
        switched.initializer.append(&mut builder.initializers);
        let tensor = type_proto::Tensor {
            elem_type: DataType::Float as i32,
            shape: Some(crate::onnx::TensorShapeProto { dim: vec![dimension(layers.len() as i64)] }),
        };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        switched.input.push(ValueInfoProto { name: input.clone(), r#type: Some(r#type), ..ValueInfoProto::default() });
        // This measures the rounding alone, without the integer kernels of a runtime.
        let sessions = SessionOptions { no_qdq_fusion: true, ..SessionOptions::default() };
        let session = session_with_outputs(runtime, &model.with_graph(switched), &[options.output], &sessions)?;
        Ok(Self { model, session, input })
    }

    /// Returns the output for every batch of inputs.
    fn outputs(&mut self, switches: &[f32], batches: &[Inputs]) -> Result<Vec<Vec<f64>>, Error> {
        let mut all = Vec::with_capacity(batches.len());
        for inputs in batches {
            let mut given = taken(&self.session, inputs);
            let data = ArrayData::F32(switches.to_vec());
            given.push((self.input.clone(), Array { dims: vec![switches.len()], data }));
            let outputs = self.session.run(&given).map_err(|error| failed(self.model, &error))?;
            all.push(outputs.first().map(|(_, array)| array.to_f64()).unwrap_or_default());
        }
        Ok(all)
    }
}

fn dimension(size: i64) -> crate::onnx::tensor_shape_proto::Dimension {
    use crate::onnx::tensor_shape_proto::Dimension;
    use crate::onnx::tensor_shape_proto::dimension::Value;
    Dimension { value: Some(Value::DimValue(size)), ..Dimension::default() }
}

/// Adds nodes that compute `x + s (q(x) - x)`.
fn through(
    builder: &mut Builder,
    x: &str,
    value: ValueId,
    ranges: &BTreeMap<ValueId, Range>,
    options: &QuantizeOptions<'_>,
    switch: &str,
) -> String {
    let Some(range) = ranges.get(&value) else { return x.to_owned() };
    let affine = Affine::of(*range, options.style);
    let scale = builder.constant(TensorProto { name: String::new(), ..affine.scale_tensor("") });
    let zero = builder.constant(affine.zero_point_tensor(""));
    let integers = builder.add("QuantizeLinear", &[x, &scale, &zero], vec![]);
    let back = builder.add("DequantizeLinear", &[&integers, &scale, &zero], vec![]);
    let change = builder.add("Sub", &[&back, x], vec![]);
    let change = builder.add("Mul", &[&change, switch], vec![]);
    builder.add("Add", &[x, &change], vec![])
}
