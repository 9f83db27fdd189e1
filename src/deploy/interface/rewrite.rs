//! The graph with the inputs and outputs that a loader expects.

use std::collections::HashMap;

use super::expected::{Matched, Source, TimeShape};
use super::rename::{rename, rename_reads};
use super::{Adapted, Bridge, Fed, Loader, Wanted};
use crate::deploy::form::{Form, declare_type};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::onnx::builder::Builder;
use crate::onnx::names::{Names, printable};
use crate::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::{DataType, GraphProto, TensorShapeProto, TypeProto, ValueInfoProto, attr_int, type_proto};

/// The first opset in which Round exists.
const ROUNDS_FROM: i64 = 11;

struct Rewriter<'a> {
    facts: &'a Facts,
    graph: &'a Graph,
    builder: Builder,
    wanted: &'a Wanted,
    proto: GraphProto,
    /// The current names of values, by their original names.
    names: HashMap<String, String>,
    notes: Vec<String>,
}

/// Returns the network with the inputs and outputs that were matched.
pub(super) fn rewrite(
    (model, graph, facts): (&Model, &Graph, &Facts),
    loader: Loader,
    matched: &Matched,
    wanted: &Wanted,
) -> Result<Adapted, Error> {
    let form = Form::of(model, graph);
    let taken = Names::of_graph(form.graph());
    let builder = Builder::new("__io", graph.opset, taken.clone());
    let proto = form.graph().clone();
    let (names, notes) = (HashMap::new(), Vec::new());
    let mut rewriter = Rewriter { facts, graph, builder, wanted, proto, names, notes };
    rewriter.make_room(matched, &taken);
    let (inputs, bridges) = rewriter.inputs(loader, matched)?;
    let outputs = rewriter.outputs(matched)?;
    let Rewriter { mut proto, mut builder, notes, .. } = rewriter;
    let before = std::mem::take(&mut builder.nodes);
    let (first, last): (Vec<_>, Vec<_>) = before.into_iter().partition(|node| !gives_output(node, &outputs));
    proto.node = [first, proto.node, last].concat();
    proto.initializer.append(&mut builder.initializers);
    // Files of old IR versions list initializers among the inputs too, as defaults.
    let is_default = |value: &ValueInfoProto| proto.initializer.iter().any(|tensor| tensor.name == value.name);
    let defaults: Vec<ValueInfoProto> = proto.input.iter().filter(|value| is_default(value)).cloned().collect();
    proto.input = [inputs, defaults].concat();
    proto.output = outputs;
    proto.drop_dead();
    if loader.fixes_sizes() {
        fix_sizes(&mut proto, wanted)?;
    }
    let inputs: Vec<&str> = proto.input.iter().map(|input| input.name.as_str()).collect();
    let known = |name: &str| inputs.contains(&name) || proto.initializer.iter().any(|tensor| tensor.name == name);
    let made = |name: &str| proto.node.iter().any(|node| node.output.iter().any(|output| output == name));
    for name in proto.node.iter().flat_map(|node| &node.input).filter(|name| !name.is_empty()) {
        if !known(name) && !made(name) && proto.sparse_initializer.is_empty() {
            let text = format!("--io {}: {:?} has readers that the new input does not replace", loader.name(), name);
            return Err(Error::usage(text)
                .in_file(model.path())
                .hint("omit --io to keep the inputs and outputs of the network"));
        }
    }
    let outputs = matched.outputs.clone();
    Ok(Adapted { form: form.with_graph(proto), bridges, outputs, notes })
}

fn gives_output(node: &crate::onnx::NodeProto, outputs: &[ValueInfoProto]) -> bool {
    node.output.iter().any(|name| outputs.iter().any(|output| output.name == *name))
}

impl Rewriter<'_> {
    /// Renames values that have the same names as inputs or outputs of the loader.
    fn make_room(&mut self, matched: &Matched, taken: &Names) {
        let mut taken = taken.clone();
        let new = matched.inputs.iter().map(|(name, _)| name).chain(matched.outputs.iter().map(|(_, name)| name));
        for name in new {
            // Unused names are claimed here, so that no other value gets one.
            if !taken.claim(name) {
                let fresh = taken.fresh(&format!("{name}/__own"));
                self.names.insert(name.clone(), fresh);
            }
        }
        rename(&mut self.proto, &self.names);
    }

    /// Returns the current name of a value.
    fn now(&self, name: &str) -> String {
        self.names.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }

    fn declared(&self, name: &str) -> Result<ValueInfoProto, Error> {
        let name = self.now(name);
        let mut all = self.proto.input.iter().chain(&self.proto.output);
        let found = all.find(|value| value.name == name).cloned();
        found.ok_or_else(|| Error::usage(format!("the graph declares no input or output {name:?}")))
    }

    fn type_of(&self, value: ValueId) -> DataType {
        self.facts.values[value].as_ref().map_or(DataType::Float, |fact| fact.dtype)
    }

    /// Returns the new type of a float value of the interface.
    fn wanted_type(&self, own: DataType) -> DataType {
        let is_float = matches!(own, DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double);
        self.wanted.dtype.filter(|_| is_float).unwrap_or(own)
    }

    fn inputs(&mut self, loader: Loader, matched: &Matched) -> Result<(Vec<ValueInfoProto>, Vec<Bridge>), Error> {
        let sample = self.declared(&matched.sample)?;
        let batch = shape_of(&sample).and_then(|shape| shape.dim.first().cloned()).unwrap_or_default();
        let sample_name = matched.inputs.first().map(|(name, _)| name.clone()).unwrap_or_default();
        let (mut inputs, mut bridges) = (Vec::new(), Vec::new());
        for (name, source) in &matched.inputs {
            let (value, fed, is_time) = match source {
                Source::Input(own) => (self.renamed(name, own)?, Fed::Input(own.clone()), false),
                Source::Time(own, shape) => {
                    let value = self.time((name, own), *shape, loader, (&sample_name, &batch))?;
                    (value, Fed::Input(own.clone()), true)
                }
                Source::InPlaceOf(value) => {
                    let own = self.graph.values[*value].name.clone();
                    (self.in_place_of(name, *value, &batch), Fed::Value(own), false)
                }
            };
            inputs.push(value);
            bridges.push(Bridge { input: name.clone(), fed, is_time });
        }
        Ok((inputs, bridges))
    }

    /// Renames an input, and casts it if the loader has another type.
    fn renamed(&mut self, name: &str, own: &str) -> Result<ValueInfoProto, Error> {
        let mut value = self.declared(own)?;
        let inner = value.name.clone();
        name.clone_into(&mut value.name);
        let own_type = self.graph.value(own).map_or(DataType::Float, |id| self.type_of(id));
        let wanted = self.wanted_type(own_type);
        if wanted == own_type {
            rename_reads(&mut self.proto, &inner, name);
            // An input that is also an output of the network keeps that output.
            if self.proto.output.iter().any(|output| output.name == inner) {
                self.builder.rename(name, &inner);
            }
        } else {
            declare_type(&mut value, wanted);
            self.give(name, &inner, own_type);
        }
        Ok(value)
    }

    /// Adds a cast of `value` to a type, with the output `name`.
    fn give(&mut self, value: &str, name: &str, dtype: DataType) {
        let cast = vec![attr_int("to", dtype as i64)];
        self.builder.push("", "Cast", &[value], vec![name.to_owned()], cast);
    }

    /// Adds the timestep in the loader's shape, converted to the shape and type that the network takes.
    fn time(
        &mut self,
        (name, own): (&str, &str),
        shape: TimeShape,
        loader: Loader,
        (sample, batch): (&str, &Dimension),
    ) -> Result<ValueInfoProto, Error> {
        let declared = self.declared(own)?;
        let (inner, rank) = (declared.name.clone(), shape_of(&declared).map_or(0, |shape| shape.dim.len()));
        let own_type = self.graph.value(own).map_or(DataType::Float, |id| self.type_of(id));
        let is_float = !matches!(own_type, DataType::Int64 | DataType::Int32);
        let dtype = match loader {
            // The loader casts to the engine's type, and float32 can represent every timestep.
            Loader::Comfyui => DataType::Float,
            Loader::Demodiffusion if !is_float => self.wanted.dtype.unwrap_or(DataType::Float),
            _ => self.wanted_type(own_type),
        };
        let dim = match shape {
            TimeShape::Scalar => Vec::new(),
            TimeShape::One => vec![fixed(1)],
            TimeShape::PerSample => vec![batch.clone()],
        };
        let own_dims = shape_of(&declared).map(|shape| shape.dim.clone()).unwrap_or_default();
        let is_one = |dims: &[Dimension]| dims.iter().all(|dim| dim.value == fixed(1).value);
        let mut value = name.to_owned();
        // First the number of elements is adjusted, then the rank, then the type.
        if own_dims != dim {
            match (is_one(&own_dims), is_one(&dim)) {
                (true, false) => {
                    let first = self.builder.ints(&[0], &[1]);
                    value = self.builder.add("Gather", &[&value, &first], vec![attr_int("axis", 0)]);
                    self.notes.push(format!(
                        "the network takes one timestep for all samples; {} has one per sample, and the first is used",
                        printable(name)
                    ));
                }
                (false, true) => {
                    let one = self.builder.int_vector(&[1]);
                    let flat = self.builder.add("Reshape", &[&value, &one], vec![]);
                    let size = self.builder.add("Shape", &[sample], vec![]);
                    let first = self.builder.ints(&[0], &[1]);
                    let count = self.builder.add("Gather", &[&size, &first], vec![attr_int("axis", 0)]);
                    value = self.builder.add("Expand", &[&flat, &count], vec![]);
                }
                _ => {}
            }
            let has_rank = match (is_one(&own_dims), is_one(&dim)) {
                (true, true) => dim.len() == rank,
                _ => rank == 1,
            };
            if !has_rank {
                // Either the batch size and ones, or one element.
                let sizes: Vec<i64> = match (rank, is_one(&own_dims)) {
                    (0, _) => Vec::new(),
                    (_, true) => vec![1; rank],
                    (_, false) => std::iter::once(-1).chain(vec![1; rank - 1]).collect(),
                };
                let sizes = self.builder.int_vector(&sizes);
                value = self.builder.add("Reshape", &[&value, &sizes], vec![]);
            }
        }
        let is_same = dtype == own_type;
        if !is_float && !is_same && self.builder.opset() >= ROUNDS_FROM {
            value = self.builder.add("Round", &[&value], vec![]);
        }
        match is_same && value == name {
            true => rename_reads(&mut self.proto, &inner, name),
            false if is_same => self.builder.rename(&value, &inner),
            false => self.give(&value, &inner, own_type),
        }
        Ok(tensor(name, dtype, dim))
    }

    /// Adds an input that replaces a value that the network computes.
    fn in_place_of(&mut self, name: &str, value: ValueId, batch: &Dimension) -> ValueInfoProto {
        let own = self.now(&self.graph.values[value].name);
        let dtype = self.type_of(value);
        let shape = self.facts.values[value].as_ref().and_then(|fact| fact.shape.as_ref());
        let widths = shape.into_iter().flatten().skip(1).map(|dim| fixed(dim.as_const().unwrap_or(1)));
        let dims = std::iter::once(batch.clone()).chain(widths).collect();
        // It has the float type of the interface, whatever type the value has in the network.
        let wanted = self.wanted.dtype.unwrap_or(DataType::Float);
        if wanted == dtype {
            rename_reads(&mut self.proto, &own, name);
        } else {
            let inner = self.builder.cast(name, dtype);
            rename_reads(&mut self.proto, &own, &inner);
        }
        tensor(name, wanted, dims)
    }

    fn outputs(&mut self, matched: &Matched) -> Result<Vec<ValueInfoProto>, Error> {
        let mut outputs = Vec::new();
        for (own, name) in &matched.outputs {
            let mut value = self.declared(own)?;
            let inner = value.name.clone();
            let own_type = self.graph.value(own).map_or(DataType::Float, |id| self.type_of(id));
            let wanted = self.wanted_type(own_type);
            name.clone_into(&mut value.name);
            if wanted != own_type {
                declare_type(&mut value, wanted);
                self.give(&inner, name, wanted);
            } else {
                let made = self.proto.node.iter().chain(&self.builder.nodes);
                let is_made = made.flat_map(|node| &node.output).any(|output| *output == inner);
                match is_made {
                    true => {
                        let names = HashMap::from([(inner, name.clone())]);
                        rename(&mut self.proto, &names);
                        for node in &mut self.builder.nodes {
                            node.input.iter_mut().chain(&mut node.output).for_each(|own| {
                                if let Some(new) = names.get(own) {
                                    own.clone_from(new);
                                }
                            });
                        }
                    }
                    // A constant, or an unchanged input.
                    false => self.builder.rename(&inner, name),
                }
            }
            outputs.push(value);
        }
        Ok(outputs)
    }
}

fn shape_of(value: &ValueInfoProto) -> Option<&TensorShapeProto> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => tensor.shape.as_ref(),
        _ => None,
    }
}

fn fixed(size: i64) -> Dimension {
    Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() }
}

fn tensor(name: &str, dtype: DataType, dim: Vec<Dimension>) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// Replaces symbols by sizes, in the declarations of inputs, outputs and other values.
fn fix_sizes(graph: &mut GraphProto, wanted: &Wanted) -> Result<(), Error> {
    let GraphProto { input, output, value_info, .. } = graph;
    let inputs: Vec<String> = input.iter().map(|value| value.name.clone()).collect();
    for value in input.iter_mut().chain(output).chain(value_info) {
        let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
        else {
            continue;
        };
        for dim in tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim) {
            let Some(dimension::Value::DimParam(symbol)) = &dim.value else { continue };
            match wanted.sizes.get(symbol) {
                Some(size) => dim.value = Some(dimension::Value::DimValue(*size)),
                None if inputs.contains(&value.name) => {
                    return Err(Error::usage(format!("the size {symbol:?} of input {:?} is not given", value.name))
                        .hint(format!("set it with --profile {symbol}=N")));
                }
                None => {}
            }
        }
    }
    Ok(())
}
