//! # LSTM, GRU and RNN
//! Recurrent layers over a sequence, forwards, backwards or both.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LSTM.html>, <https://onnx.ai/onnx/operators/onnx__GRU.html>,
//! <https://onnx.ai/onnx/operators/onnx__RNN.html>. Opsets 7 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::macs::elements;
use crate::operator::{Folding, InferCx, MacsCx, OpType, Operator, Registration, RuleError, microsoft, onnx};

fn types_lstm() -> &'static [OpType] {
    const { &[onnx("LSTM"), onnx("GRU"), onnx("RNN"), microsoft("DynamicQuantizeLSTM")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_lstm, |node| Ok(Box::new(Recurrent::parse(node))))];

#[derive(Debug)]
struct Recurrent {
    /// Whether the batch is the first axis, not the sequence.
    is_batch_first: bool,
    /// The hidden size, if the node states it.
    hidden: Option<i64>,
    /// Whether W is stored with rows and columns swapped.
    is_transposed: bool,
}

impl Recurrent {
    fn parse(node: &Node) -> Self {
        Self {
            is_batch_first: node.int("layout", 0) != 0,
            hidden: node.proto.int("hidden_size"),
            is_transposed: node.proto.op_type == "DynamicQuantizeLSTM",
        }
    }
}

impl Operator for Recurrent {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x, w, r) = (cx.input(0)?.dtype, cx.shape(0)?, cx.shape(1)?, cx.shape(2)?);
        let ([first, second, size], [directions, rows, columns], [_, r_rows, r_columns]) =
            (x.as_slice(), w.as_slice(), r.as_slice())
        else {
            return Err(RuleError::invalid("X, W and R must have rank 3"));
        };
        let (read, state) = if self.is_transposed { (rows, r_rows) } else { (columns, r_columns) };
        if !cx.equal(size, read) {
            return Err(RuleError::invalid(format!("X has {size} features, but W expects {read}")));
        }
        let hidden = self.hidden.map_or_else(|| state.clone(), Dim::from);
        let (sequence, batch) = if self.is_batch_first { (second, first) } else { (first, second) };
        let (all, last) = if self.is_batch_first {
            ([batch, sequence, directions, &hidden], [batch, directions, &hidden])
        } else {
            ([sequence, directions, batch, &hidden], [directions, batch, &hidden])
        };
        let last: Vec<Dim> = last.into_iter().cloned().collect();
        cx.set_shape(0, dtype, all.into_iter().cloned().collect());
        cx.set_shape(1, dtype, last.clone());
        cx.set_shape(2, dtype, last);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        // Every step of every sample multiplies by all of W and R once.
        let steps = cx.input(0).map_or(0.0, |x| elements(&x[..x.len().min(2)]));
        steps * [1, 2].into_iter().filter_map(|slot| cx.input(slot)).map(elements).sum::<f64>()
    }
}
