//! Networks built in Rust, with random weights.

use onnx_diffprune::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attr_float, attr_int, attr_ints,
};

use crate::handmade::value;

/// A graph under construction. Values are known by their names.
pub(crate) struct Builder {
    /// The nodes so far.
    pub(crate) nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    state: u64,
}

#[allow(dead_code)]
impl Builder {
    /// An empty graph whose weights follow from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { nodes: Vec::new(), initializers: Vec::new(), state: seed }
    }

    /// The next random number (splitmix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A weight with elements in `centre ± spread`.
    pub(crate) fn weight_around(&mut self, dims: &[i64], centre: f32, spread: f32) -> String {
        let count: i64 = dims.iter().product();
        let elements: Vec<f32> =
            (0..count).map(|_| centre + spread * ((self.random() >> 40) as f32 / (1 << 23) as f32 - 1.0)).collect();
        let name = format!("w{}", self.initializers.len());
        self.initializers.push(TensorProto::of_floats(&name, &elements, dims));
        name
    }

    /// A weight that keeps the magnitude of what it contracts `fan_in` of.
    pub(crate) fn weight(&mut self, dims: &[i64], fan_in: i64) -> String {
        self.weight_around(dims, 0.0, (3.0 / fan_in as f32).sqrt())
    }

    /// A bias.
    pub(crate) fn bias(&mut self, count: i64) -> String {
        self.weight_around(&[count], 0.0, 0.5)
    }

    /// A constant of integers.
    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("i{}", self.initializers.len());
        self.initializers.push(TensorProto::of_ints(&name, values, &[values.len() as i64]));
        name
    }

    /// A float scalar.
    pub(crate) fn scalar(&mut self, value: f32) -> String {
        let name = format!("s{}", self.initializers.len());
        self.initializers.push(TensorProto::of_floats(&name, &[value], &[]));
        name
    }

    /// A node with several outputs.
    pub(crate) fn nodes(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        count: usize,
    ) -> Vec<String> {
        let name = format!("{op_type}_{}", self.nodes.len());
        let output: Vec<String> = (0..count).map(|at| format!("{name}:{at}")).collect();
        self.nodes.push(NodeProto {
            name,
            op_type: op_type.to_owned(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: output.clone(),
            attribute: attributes,
            ..NodeProto::default()
        });
        output
    }

    /// A node with one output.
    pub(crate) fn node(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.nodes(op_type, inputs, attributes, 1).remove(0)
    }

    /// A convolution that keeps height and width.
    pub(crate) fn conv(&mut self, x: &str, from: i64, to: i64, kernel: i64, groups: i64) -> String {
        let per_group = from / groups;
        let w = self.weight(&[to, per_group, kernel, kernel], per_group * kernel * kernel);
        let b = self.bias(to);
        let pads = [kernel / 2; 4];
        self.node("Conv", &[x, &w, &b], vec![attr_ints("pads", &pads), attr_int("group", groups)])
    }

    /// A linear layer on the last axis: MatMul and Add.
    pub(crate) fn linear(&mut self, x: &str, from: i64, to: i64) -> String {
        let (w, b) = (self.weight(&[from, to], from), self.bias(to));
        let y = self.node("MatMul", &[x, &w], vec![]);
        self.node("Add", &[&y, &b], vec![])
    }

    /// Group normalisation as exporters write it, over `[n, channels, height, width]`.
    pub(crate) fn group_norm(&mut self, x: &str, channels: i64, groups: i64) -> String {
        let split = self.ints(&[0, groups, -1]);
        let (ones, zeros) = (self.weight_around(&[groups], 1.0, 0.0), self.weight_around(&[groups], 0.0, 0.0));
        let shape = self.node("Shape", &[x], vec![]);
        let y = self.node("Reshape", &[x, &split], vec![]);
        let y = self.node("InstanceNormalization", &[&y, &ones, &zeros], vec![attr_float("epsilon", 1e-5)]);
        let y = self.node("Reshape", &[&y, &shape], vec![]);
        let scale = self.weight_around(&[channels, 1, 1], 1.0, 0.5);
        let bias = self.weight_around(&[channels, 1, 1], 0.0, 0.5);
        let y = self.node("Mul", &[&y, &scale], vec![]);
        self.node("Add", &[&y, &bias], vec![])
    }

    /// `x * sigmoid(x)`.
    pub(crate) fn silu(&mut self, x: &str) -> String {
        let gate = self.node("Sigmoid", &[x], vec![]);
        self.node("Mul", &[x, &gate], vec![])
    }

    /// Self-attention over `[n, tokens, channels]` with a residual connection.
    pub(crate) fn attention(&mut self, x: &str, channels: i64, heads: i64) -> String {
        let split = self.ints(&[0, 0, heads, channels / heads]);
        let merged = self.ints(&[0, 0, channels]);
        let mut parts = Vec::new();
        for order in [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]] {
            let y = self.linear(x, channels, channels);
            let y = self.node("Reshape", &[&y, &split], vec![]);
            parts.push(self.node("Transpose", &[&y], vec![attr_ints("perm", &order)]));
        }
        let scale = self.scalar(((channels / heads) as f32).powf(-0.5));
        let weights = self.node("MatMul", &[&parts[0], &parts[1]], vec![]);
        let weights = self.node("Mul", &[&weights, &scale], vec![]);
        let weights = self.node("Softmax", &[&weights], vec![attr_int("axis", -1)]);
        let y = self.node("MatMul", &[&weights, &parts[2]], vec![]);
        let y = self.node("Transpose", &[&y], vec![attr_ints("perm", &[0, 2, 1, 3])]);
        let y = self.node("Reshape", &[&y, &merged], vec![]);
        let y = self.linear(&y, channels, channels);
        self.node("Add", &[x, &y], vec![])
    }

    /// A gated linear unit on the last axis, whose halves a Split makes, and the layer that follows it.
    pub(crate) fn gated(&mut self, x: &str, channels: i64, hidden: i64) -> String {
        let y = self.linear(x, channels, 2 * hidden);
        let sizes = self.ints(&[hidden, hidden]);
        let halves = self.nodes("Split", &[&y, &sizes], vec![attr_int("axis", -1)], 2);
        let gate = self.node("Sigmoid", &[&halves[1]], vec![]);
        let y = self.node("Mul", &[&halves[0], &gate], vec![]);
        self.linear(&y, hidden, channels)
    }

    /// The model with input `x` and the named output.
    pub(crate) fn finish(mut self, input: &[i64], output: &str, dims: &[i64]) -> ModelProto {
        self.nodes.push(NodeProto {
            name: "last".to_owned(),
            op_type: "Identity".to_owned(),
            input: vec![output.to_owned()],
            output: vec!["y".to_owned()],
            ..NodeProto::default()
        });
        let graph = GraphProto {
            name: "net".to_owned(),
            node: self.nodes,
            initializer: self.initializers,
            input: vec![value("x", input)],
            output: vec![value("y", dims)],
            ..GraphProto::default()
        };
        ModelProto {
            ir_version: 10,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
            graph: Some(graph),
            ..ModelProto::default()
        }
    }
}

/// A small network with all that mutations need: a skip connection that is concatenated, group norms, attention, a
/// gated unit.
#[allow(dead_code)]
pub(crate) fn small_unet(seed: u64) -> ModelProto {
    let mut b = Builder::new(seed);
    let first = b.conv("x", 3, 16, 3, 1);
    let y = b.group_norm(&first, 16, 4);
    let y = b.silu(&y);
    let y = b.conv(&y, 16, 24, 3, 1);
    let y = b.node("Concat", &[&y, &first], vec![attr_int("axis", 1)]);
    let y = b.conv(&y, 40, 32, 1, 1);
    let tokens = b.ints(&[0, 32, 64]);
    let y = b.node("Reshape", &[&y, &tokens], vec![]);
    let y = b.node("Transpose", &[&y], vec![attr_ints("perm", &[0, 2, 1])]);
    let y = b.attention(&y, 32, 4);
    let gated = b.gated(&y, 32, 48);
    let y = b.node("Add", &[&y, &gated], vec![]);
    let y = b.node("Transpose", &[&y], vec![attr_ints("perm", &[0, 2, 1])]);
    let image = b.ints(&[0, 32, 8, 8]);
    let y = b.node("Reshape", &[&y, &image], vec![]);
    let y = b.conv(&y, 32, 3, 3, 1);
    b.finish(&[2, 3, 8, 8], &y, &[2, 3, 8, 8])
}
