//! The gradient of attention, `Y = softmax(scale Q K^T + mask) V` per head, which several operators contain.

use crate::graph::Node;
use crate::onnx::{DataType, attr_int};
use crate::operator::RuleError;

use super::GradientCx;

/// Queries, keys and values by head, and what is added to the scores.
pub struct Attention {
    /// `[B, heads, L, D]`.
    pub q: String,
    /// `[B, heads, S, D]`.
    pub k: String,
    /// `[B, heads, S, E]`.
    pub v: String,
    /// What the scores are multiplied with.
    pub scale: f64,
    /// Values that broadcast to the scores, `[B, heads, L, S]`, and are added to them.
    pub added: Vec<String>,
}

/// The gradients by the parts of an attention, of their shapes.
pub struct AttentionGradients {
    /// By the queries.
    pub q: String,
    /// By the keys.
    pub k: String,
    /// By the values.
    pub v: String,
    /// By what is added to the scores, before it was broadcast: `[B, heads, L, S]`.
    pub added: String,
}

impl GradientCx<'_> {
    /// The gradients by the parts of an attention, from that by its result, `[B, heads, L, E]`.
    pub fn through_attention(&mut self, attention: &Attention, dy: &str) -> AttentionGradients {
        let Attention { q, k, v, scale, added } = attention;
        let k_t = self.matrix_transpose(k, 4);
        let scores = self.op("MatMul", &[q, &k_t]);
        let mut scores = self.scaled(&scores, *scale);
        for term in added {
            scores = self.op("Add", &[&scores, term]);
        }
        // Before opset 13 the axes from the given one on are one; the last is the same in all.
        let p = self.op_with("Softmax", &[&scores], vec![attr_int("axis", if self.opset() < 11 { 3 } else { -1 })]);
        let p_t = self.matrix_transpose(&p, 4);
        let dv = self.op("MatMul", &[&p_t, dy]);
        let v_t = self.matrix_transpose(v, 4);
        let dp = self.op("MatMul", &[dy, &v_t]);
        let product = self.mul(&dp, &p);
        let sum = self.reduce_sum(&product, &[3], true);
        let difference = self.op("Sub", &[&dp, &sum]);
        let by_scores = self.mul(&difference, &p);
        let ds = self.scaled(&by_scores, *scale);
        let dq = self.op("MatMul", &[&ds, k]);
        let ds_t = self.matrix_transpose(&ds, 4);
        let dk = self.op("MatMul", &[&ds_t, q]);
        AttentionGradients { q: dq, k: dk, v: dv, added: by_scores }
    }

    /// `[B, L, heads * D]` as `[B, heads, L, D]`.
    pub fn by_head(&mut self, value: &str, shape: &[i64; 3], heads: i64) -> String {
        let [batch, length, channels] = *shape;
        let value = self.reshape(value, &[batch, length, heads, channels / heads.max(1)]);
        self.transpose(&value, &[0, 2, 1, 3])
    }

    /// `[B, heads, L, D]` as `[B, L, heads * D]`, of the given shape.
    #[allow(clippy::wrong_self_convention, reason = "the context is not what it converts")]
    pub fn from_heads(&mut self, value: &str, shape: &[i64]) -> String {
        let value = self.transpose(value, &[0, 2, 1, 3]);
        self.reshape(&value, shape)
    }

    /// What hides later positions: `[L, S]`, of which row i sees the first `i + 1 + past` columns.
    pub fn causal_mask(&mut self, rows: i64, columns: i64, past: i64) -> String {
        let hidden = |at: i64| if at % columns <= at / columns + past { 0.0 } else { -1e30 };
        let values: Vec<f32> = (0..rows * columns).map(hidden).collect();
        self.floats(&values, &[rows, columns])
    }

    /// What ONNX Runtime's attentions add for a mask at input `slot` that is zero where a position is hidden,
    /// `[B, S]` or `[B, L, S]`: a value that broadcasts to the scores.
    ///
    /// # Errors
    /// A mask of another form.
    pub fn hidden_positions(&mut self, node: &Node, slot: usize, scores: &[i64; 4]) -> Result<String, RuleError> {
        let [batch, _, rows, columns] = *scores;
        let shape = self.shape(slot)?;
        let target = match shape.as_slice() {
            [b, s] if *b == batch && *s == columns => [batch, 1, 1, columns],
            [b, l, s] if *b == batch && *l == rows && *s == columns => [batch, 1, rows, columns],
            _ => return Err(RuleError::unsupported("a mask of lengths has no gradient")),
        };
        let to = vec![attr_int("to", DataType::Float as i64)];
        let mask = self.op_with("Cast", &[&self.input(slot)], to.clone());
        // Whatever is larger than zero is visible.
        let zero = self.scalar(0.0);
        let visible = self.op("Greater", &[&mask, &zero]);
        let mask = self.op_with("Cast", &[&visible], to);
        let mask = self.reshape(&mask, &target);
        let one = self.scalar(1.0);
        let hidden = self.op("Sub", &[&one, &mask]);
        Ok(self.scaled(&hidden, f64::from(node.float("mask_filter_value", -10_000.0))))
    }

    /// The inputs of ONNX Runtime's attentions that are added to the scores: positions hidden by `mask`, later ones
    /// where the node is causal, and `bias`.
    ///
    /// # Errors
    /// As [`GradientCx::hidden_positions`], or a causal node whose queries and keys are not equally many.
    pub fn score_terms(
        &mut self,
        node: &Node,
        mask: usize,
        bias: usize,
        scores: &[i64; 4],
    ) -> Result<Vec<String>, RuleError> {
        let mut terms = Vec::new();
        if !self.input(mask).is_empty() {
            terms.push(self.hidden_positions(node, mask, scores)?);
        }
        if node.int("unidirectional", 0) != 0 {
            if scores[2] != scores[3] {
                // ONNX Runtime's kernels differ in what they hide then.
                return Err(RuleError::unsupported("no order of queries and keys of different lengths is defined"));
            }
            terms.push(self.causal_mask(scores[2], scores[3], 0));
        }
        if !self.input(bias).is_empty() {
            terms.push(self.input(bias));
        }
        Ok(terms)
    }

    /// Gives input `slot`, which was broadcast to scores of shape `scores`, its share of their gradient.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn give_score_term(&mut self, slot: usize, gradient: &str, scores: &[i64; 4]) -> Result<(), RuleError> {
        if self.wants(slot) {
            let shape = self.shape(slot)?;
            let sum = self.sum_to(gradient, scores, &shape);
            self.give(slot, sum);
        }
        Ok(())
    }
}
