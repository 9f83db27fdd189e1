//! Two layers with operators between them.

use onnx_diffprune::onnx::ModelProto;

use crate::support::builder::{Builder, model_of, value_of};

/// Channels of the value between the two layers.
pub(crate) const CHANNELS: i64 = 12;

/// The layers around the operators of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Around {
    /// 1x1 convolutions, `[N, C, H, W]` with symbolic sizes.
    Conv,
    /// 1x1 convolutions, `[2, C, 4, 6]`.
    StaticConv,
    /// Matrix products, `[N, L, C]` with symbolic sizes.
    MatMul,
}

impl Around {
    /// Builds `first layer → build → second layer`. The weight of the first layer is named `first`. If `build` returns
    /// no number of channels, its value is the output.
    pub(crate) fn network(
        self,
        opset: i64,
        build: impl FnOnce(&mut Builder, &str) -> (String, Option<i64>),
    ) -> ModelProto {
        let mut net = Builder::with_opset(opset, 1);
        let v = self.layer(&mut net, "x", 8, CHANNELS);
        net.graph.initializer[0].name = "first".to_owned();
        net.graph.node[0].input[1] = "first".to_owned();
        let (v, channels) = build(&mut net, &v);
        let y = match channels {
            Some(channels) => self.layer(&mut net, &v, channels, 4),
            None => v,
        };
        let sizes: &[&str] = match self {
            Around::Conv => &["N", "8", "H", "W"],
            Around::StaticConv => &["2", "8", "4", "6"],
            Around::MatMul => &["N", "L", "8"],
        };
        net.graph.input = vec![value_of("x", 1, Some(sizes))];
        net.graph.output = vec![value_of(&y, 1, None)];
        model_of(opset, net.graph)
    }

    fn layer(self, net: &mut Builder, x: &str, inputs: i64, outputs: i64) -> String {
        if self == Around::MatMul {
            let w = net.weight(&[inputs, outputs]);
            return net.op("MatMul", &[x, &w], &[]);
        }
        let w = net.weight(&[outputs, inputs, 1, 1]);
        let b = net.weight(&[outputs]);
        net.op("Conv", &[x, &w, &b], &[])
    }
}
