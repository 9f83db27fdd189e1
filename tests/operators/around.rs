//! Small networks made node by node.
#![allow(clippy::unwrap_used)]

use onnx_diffprune::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension::Value, type_proto,
};

/// Channels of the value that stands between the two layers.
pub(crate) const CHANNELS: i64 = 12;

/// What surrounds the operators of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Around {
    /// Convolutions of one pixel, `[N, C, H, W]` with symbolic sizes.
    Conv,
    /// Convolutions of one pixel, `[2, C, 4, 6]`.
    StaticConv,
    /// Matrix products, `[N, L, C]` with symbolic sizes.
    MatMul,
}

/// A network under construction.
pub(crate) struct Net {
    /// Version of the standard operators.
    pub(crate) opset: i64,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    declared: Vec<ValueInfoProto>,
    random: u64,
}

impl Net {
    /// A value of many kinds of weights: uniform in -1..1 and the same in every run.
    fn next(&mut self) -> f32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, tensor: impl FnOnce(&str) -> TensorProto) -> String {
        let name = format!("constant_{}", self.initializers.len());
        self.initializers.push(tensor(&name));
        name
    }

    /// A vector of integers.
    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        self.tensor(|name| TensorProto::of_ints(name, values, &[values.len() as i64]))
    }

    /// Integers of any shape.
    pub(crate) fn ints_of(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.tensor(|name| TensorProto::of_ints(name, values, dims))
    }

    /// Floats of any shape.
    pub(crate) fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.tensor(|name| TensorProto::of_floats(name, values, dims))
    }

    /// A scalar.
    pub(crate) fn float(&mut self, value: f32) -> String {
        self.floats(&[value], &[])
    }

    /// Random weights, called `weight_` and a number.
    pub(crate) fn weight(&mut self, dims: &[i64]) -> String {
        let values: Vec<f32> = (0..dims.iter().product::<i64>()).map(|_| self.next()).collect();
        let name = format!("weight_{}", self.initializers.len());
        self.initializers.push(TensorProto::of_floats(&name, &values, dims));
        name
    }

    /// Writes down the sizes of a value, as exporters do.
    pub(crate) fn declare(&mut self, name: &str, sizes: &[&str]) {
        self.declared.push(value(name, Some(sizes)));
    }

    /// A node with several outputs.
    pub(crate) fn ops(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        count: usize,
    ) -> Vec<String> {
        let number = self.nodes.len();
        let output: Vec<String> = (0..count).map(|slot| format!("{op}_{number}_{slot}")).collect();
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            name: format!("{op}_{number}"),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: output.clone(),
            attribute: attributes.to_vec(),
            ..NodeProto::default()
        });
        output
    }

    /// A node of ONNX Runtime's own operators with several outputs.
    pub(crate) fn fused(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        count: usize,
    ) -> Vec<String> {
        let outputs = self.ops(op, inputs, attributes, count);
        let node = self.nodes.last_mut().unwrap();
        node.domain = "com.microsoft".to_owned();
        outputs
    }

    /// A node of ONNX Runtime's own operators with the outputs of given names; an empty one is omitted.
    pub(crate) fn fused_to(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        outputs: &[&str],
    ) -> Vec<String> {
        self.fused(op, inputs, attributes, 1);
        let node = self.nodes.last_mut().unwrap();
        node.output = outputs.iter().map(|name| (*name).to_owned()).collect();
        node.output.clone()
    }

    /// A node with one output.
    pub(crate) fn op(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        self.ops(op, inputs, attributes, 1).pop().unwrap()
    }

    /// `first layer → build → second layer`; the first layer's weight is called `first`. Where `build` gives no number
    /// of channels, its value is the output.
    pub(crate) fn around(
        around: Around,
        opset: i64,
        build: impl FnOnce(&mut Net, &str) -> (String, Option<i64>),
    ) -> ModelProto {
        let mut net = Net { opset, nodes: Vec::new(), initializers: Vec::new(), declared: Vec::new(), random: 1 };
        let v = net.layer(around, "x", 8, CHANNELS);
        net.initializers[0].name = "first".to_owned();
        net.nodes[0].input[1] = "first".to_owned();
        let (v, channels) = build(&mut net, &v);
        let y = match channels {
            Some(channels) => net.layer(around, &v, channels, 4),
            None => v,
        };
        let sizes: &[&str] = match around {
            Around::Conv => &["N", "8", "H", "W"],
            Around::StaticConv => &["2", "8", "4", "6"],
            Around::MatMul => &["N", "L", "8"],
        };
        ModelProto {
            ir_version: 8,
            opset_import: vec![
                OperatorSetIdProto { domain: String::new(), version: opset },
                OperatorSetIdProto { domain: "com.microsoft".to_owned(), version: 1 },
            ],
            graph: Some(GraphProto {
                name: "net".to_owned(),
                node: net.nodes,
                initializer: net.initializers,
                input: vec![value("x", Some(sizes))],
                output: vec![value(&y, None)],
                value_info: net.declared,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    fn layer(&mut self, around: Around, x: &str, inputs: i64, outputs: i64) -> String {
        if around == Around::MatMul {
            let w = self.weight(&[inputs, outputs]);
            return self.op("MatMul", &[x, &w], &[]);
        }
        let w = self.weight(&[outputs, inputs, 1, 1]);
        let b = self.weight(&[outputs]);
        self.op("Conv", &[x, &w, &b], &[])
    }
}

fn value(name: &str, sizes: Option<&[&str]>) -> ValueInfoProto {
    let dim = |size: &&str| Dimension {
        value: Some(match size.parse() {
            Ok(size) => Value::DimValue(size),
            Err(_) => Value::DimParam((*size).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = sizes.map(|sizes| TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: 1, shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}
