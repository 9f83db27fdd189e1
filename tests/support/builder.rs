//! Networks built node by node, with pseudo-random weights that are the same in every run.

use onnx_diffprune::onnx::tensor_shape_proto::Dimension;
use onnx_diffprune::onnx::tensor_shape_proto::dimension::Value;
use onnx_diffprune::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attr_float, attr_int, attr_ints, type_proto,
};

/// Builds a node.
pub(crate) fn node(name: &str, op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        name: name.to_owned(),
        op_type: op_type.to_owned(),
        input: names(inputs),
        output: names(outputs),
        ..NodeProto::default()
    }
}

/// Builds the declaration of a float32 value.
pub(crate) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let sizes: Vec<String> = dims.iter().map(i64::to_string).collect();
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    value_of(name, 1, Some(&sizes))
}

/// Builds the declaration of a value with an ONNX element type. A size that is not a number becomes a symbol.
pub(crate) fn value_of(name: &str, elem_type: i32, sizes: Option<&[&str]>) -> ValueInfoProto {
    let dim = |size: &&str| Dimension {
        value: Some(match size.parse() {
            Ok(size) => Value::DimValue(size),
            Err(_) => Value::DimParam((*size).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = sizes.map(|sizes| TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type, shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// Builds a float32 tensor with elements 0, 1, 2, …
pub(crate) fn counting(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    let elements: Vec<f32> = (0..count).map(|at| at as f32).collect();
    TensorProto::of_floats(name, &elements, dims)
}

/// Builds the model of a graph.
pub(crate) fn model_of(opset: i64, graph: GraphProto) -> ModelProto {
    let import = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    let mut opset_import = vec![import("", opset)];
    if graph.node.iter().any(|node| node.domain == MICROSOFT) {
        opset_import.push(import(MICROSOFT, 1));
    }
    ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }
}

/// The domain of ONNX Runtime's contributed operators.
const MICROSOFT: &str = "com.microsoft";

/// A network under construction. Values are known by their names.
pub(crate) struct Builder {
    /// Version of the standard operators.
    pub(crate) opset: i64,
    /// The graph so far.
    pub(crate) graph: GraphProto,
    random: u64,
}

impl Builder {
    /// Creates a network without nodes, whose weights follow from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_opset(21, seed)
    }

    /// Creates a network in another version of the standard operators.
    pub(crate) fn with_opset(opset: i64, seed: u64) -> Self {
        let graph = GraphProto { name: "net".to_owned(), ..GraphProto::default() };
        Self { opset, graph, random: seed }
    }

    /// Returns the next pseudo-random number, uniform in -1..1.
    fn next(&mut self) -> f32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, prefix: &str, tensor: impl FnOnce(&str) -> TensorProto) -> String {
        let name = format!("{prefix}_{}", self.graph.initializer.len());
        self.graph.initializer.push(tensor(&name));
        name
    }

    /// Adds a vector of integers.
    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        self.ints_of(values, &[values.len() as i64])
    }

    /// Adds integers of any shape.
    pub(crate) fn ints_of(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.tensor("constant", |name| TensorProto::of_ints(name, values, dims))
    }

    /// Adds floats of any shape.
    pub(crate) fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.tensor("constant", |name| TensorProto::of_floats(name, values, dims))
    }

    /// Adds a scalar.
    pub(crate) fn float(&mut self, value: f32) -> String {
        self.floats(&[value], &[])
    }

    /// Adds a weight with elements in `centre ± spread`, named `weight_` and a number.
    pub(crate) fn weight_around(&mut self, dims: &[i64], centre: f32, spread: f32) -> String {
        let values: Vec<f32> = (0..dims.iter().product::<i64>()).map(|_| centre + spread * self.next()).collect();
        self.tensor("weight", |name| TensorProto::of_floats(name, &values, dims))
    }

    /// Adds a weight with elements in -1..1.
    pub(crate) fn weight(&mut self, dims: &[i64]) -> String {
        self.weight_around(dims, 0.0, 1.0)
    }

    /// Adds a weight that preserves the magnitude of its input, of which `fan_in` elements contribute to one output.
    pub(crate) fn layer_weight(&mut self, dims: &[i64], fan_in: i64) -> String {
        self.weight_around(dims, 0.0, (3.0 / fan_in as f32).sqrt())
    }

    /// Adds a bias.
    pub(crate) fn bias(&mut self, count: i64) -> String {
        self.weight_around(&[count], 0.0, 0.5)
    }

    /// Declares the sizes of a value, as exporters do.
    pub(crate) fn declare(&mut self, name: &str, sizes: &[&str]) {
        self.graph.value_info.push(value_of(name, 1, Some(sizes)));
    }

    /// Adds a node with several outputs.
    pub(crate) fn ops(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        count: usize,
    ) -> Vec<String> {
        let name = format!("{op}_{}", self.graph.node.len());
        let output: Vec<String> = (0..count).map(|slot| format!("{name}_{slot}")).collect();
        self.graph.node.push(NodeProto {
            output: output.clone(),
            attribute: attributes.to_vec(),
            ..node(&name, op, inputs, &[])
        });
        output
    }

    /// Adds a node with one output.
    pub(crate) fn op(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        self.ops(op, inputs, attributes, 1).remove(0)
    }

    /// Adds a node of ONNX Runtime's contributed operators with several outputs.
    pub(crate) fn fused(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        count: usize,
    ) -> Vec<String> {
        let outputs = self.ops(op, inputs, attributes, count);
        self.graph.node.last_mut().unwrap().domain = MICROSOFT.to_owned();
        outputs
    }

    /// Adds such a node with named outputs. An empty name omits the output.
    pub(crate) fn fused_to(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        outputs: &[&str],
    ) -> Vec<String> {
        self.fused(op, inputs, attributes, 1);
        let node = self.graph.node.last_mut().unwrap();
        node.output = outputs.iter().map(|name| (*name).to_owned()).collect();
        node.output.clone()
    }

    /// Adds a convolution that keeps height and width.
    pub(crate) fn conv(&mut self, x: &str, from: i64, to: i64, kernel: i64, groups: i64) -> String {
        let per_group = from / groups;
        let w = self.layer_weight(&[to, per_group, kernel, kernel], per_group * kernel * kernel);
        let b = self.bias(to);
        let pads = [kernel / 2; 4];
        self.op("Conv", &[x, &w, &b], &[attr_ints("pads", &pads), attr_int("group", groups)])
    }

    /// Adds a linear layer on the last axis: MatMul and Add.
    pub(crate) fn linear(&mut self, x: &str, from: i64, to: i64) -> String {
        let (w, b) = (self.layer_weight(&[from, to], from), self.bias(to));
        let y = self.op("MatMul", &[x, &w], &[]);
        self.op("Add", &[&y, &b], &[])
    }

    /// Adds a group normalisation as exporters write it, over `[n, channels, height, width]`.
    pub(crate) fn group_norm(&mut self, x: &str, channels: i64, groups: i64) -> String {
        let split = self.ints(&[0, groups, -1]);
        let (ones, zeros) = (self.weight_around(&[groups], 1.0, 0.0), self.weight_around(&[groups], 0.0, 0.0));
        let shape = self.op("Shape", &[x], &[]);
        let y = self.op("Reshape", &[x, &split], &[]);
        let y = self.op("InstanceNormalization", &[&y, &ones, &zeros], &[attr_float("epsilon", 1e-5)]);
        let y = self.op("Reshape", &[&y, &shape], &[]);
        let scale = self.weight_around(&[channels, 1, 1], 1.0, 0.5);
        let bias = self.weight_around(&[channels, 1, 1], 0.0, 0.5);
        let y = self.op("Mul", &[&y, &scale], &[]);
        self.op("Add", &[&y, &bias], &[])
    }

    /// Adds `x * sigmoid(x)`.
    pub(crate) fn silu(&mut self, x: &str) -> String {
        let gate = self.op("Sigmoid", &[x], &[]);
        self.op("Mul", &[x, &gate], &[])
    }

    /// Adds self-attention over `[n, tokens, channels]` with a residual connection.
    pub(crate) fn attention(&mut self, x: &str, channels: i64, heads: i64) -> String {
        let split = self.ints(&[0, 0, heads, channels / heads]);
        let merged = self.ints(&[0, 0, channels]);
        let mut parts = Vec::new();
        for order in [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]] {
            let y = self.linear(x, channels, channels);
            let y = self.op("Reshape", &[&y, &split], &[]);
            parts.push(self.op("Transpose", &[&y], &[attr_ints("perm", &order)]));
        }
        let scale = self.float(((channels / heads) as f32).powf(-0.5));
        let weights = self.op("MatMul", &[&parts[0], &parts[1]], &[]);
        let weights = self.op("Mul", &[&weights, &scale], &[]);
        let weights = self.op("Softmax", &[&weights], &[attr_int("axis", -1)]);
        let y = self.op("MatMul", &[&weights, &parts[2]], &[]);
        let y = self.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1, 3])]);
        let y = self.op("Reshape", &[&y, &merged], &[]);
        let y = self.linear(&y, channels, channels);
        self.op("Add", &[x, &y], &[])
    }

    /// Adds a gated linear unit on the last axis, whose halves come from a Split, and the linear layer that follows it.
    pub(crate) fn gated(&mut self, x: &str, channels: i64, hidden: i64) -> String {
        let y = self.linear(x, channels, 2 * hidden);
        let sizes = self.ints(&[hidden, hidden]);
        let halves = self.ops("Split", &[&y, &sizes], &[attr_int("axis", -1)], 2);
        let gate = self.op("Sigmoid", &[&halves[1]], &[]);
        let y = self.op("Mul", &[&halves[0], &gate], &[]);
        self.linear(&y, hidden, channels)
    }

    /// Returns the model with the input `x` and the output `y`, which is the named value.
    pub(crate) fn finish(mut self, input: &[i64], output: &str, dims: &[i64]) -> ModelProto {
        self.graph.node.push(node("last", "Identity", &[output], &["y"]));
        self.graph.input = vec![value("x", input)];
        self.graph.output = vec![value("y", dims)];
        model_of(self.opset, self.graph)
    }
}
