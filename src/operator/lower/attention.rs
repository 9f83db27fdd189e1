//! Attention, `Y = softmax(scale * Q K^T + mask) V` per head, which several fused operators contain.

use super::LowerCx;
use crate::graph::dim::Dim;
use crate::onnx::{DataType, attr_ints};
use crate::operator::RuleError;

/// Queries, keys and values by head, and the terms added to the scores.
#[derive(Debug)]
pub struct Attention {
    /// `[B, heads, L, D]`.
    pub q: String,
    /// `[B, heads, S, D]`.
    pub k: String,
    /// `[B, heads, S, E]`.
    pub v: String,
    /// The factor of the scores.
    pub scale: f64,
    /// The limit of the scores, applied by a tanh; zero: no limit.
    pub softcap: f64,
    /// Values that are added to the scores and broadcast to them, `[B, heads, L, S]`.
    pub added: Vec<String>,
}

/// The terms that ONNX Runtime's attentions add to the scores.
#[derive(Clone, Copy, Debug)]
pub struct ScoreTerms {
    /// The input slot of the mask that hides positions.
    pub mask: usize,
    /// The input slot of the attention bias, which is added as it is.
    pub bias: usize,
    /// Whether a query does not see later positions.
    pub is_causal: bool,
    /// The value that is added where the mask hides a position.
    pub filter_value: f32,
}

/// The value that is added to a score to hide it: far below any score, yet finite in float32.
const HIDDEN: f64 = -1e30;

impl LowerCx<'_> {
    /// Converts `[B, L, heads * D]` to `[B, heads, L, D]`.
    pub fn by_head(&mut self, value: &str, heads: i64) -> String {
        let divided = self.reshaped(value, &[0, 0, heads, -1]);
        self.transposed(&divided, &[0, 2, 1, 3])
    }

    /// Converts `[B, heads, L, D]` to `[B, L, heads * D]`.
    #[allow(clippy::wrong_self_convention, reason = "the context is not what it converts")]
    pub fn from_heads(&mut self, value: &str) -> String {
        let moved = self.transposed(value, &[0, 2, 1, 3]);
        self.reshaped(&moved, &[0, 0, -1])
    }

    /// Computes the result of an attention, `[B, heads, L, E]`.
    pub fn attention(&mut self, attention: &Attention) -> String {
        let Attention { q, k, v, scale, softcap, added } = attention;
        let k = self.transposed(k, &[0, 1, 3, 2]);
        let scores = self.add("MatMul", &[q, &k], vec![]);
        let mut scores = self.scaled(&scores, *scale);
        if *softcap != 0.0 {
            let shares = self.scaled(&scores, 1.0 / softcap);
            let shares = self.add("Tanh", &[&shares], vec![]);
            scores = self.scaled(&shares, *softcap);
        }
        for term in added {
            scores = self.add("Add", &[&scores, term], vec![]);
        }
        let shares = self.softmax("Softmax", &scores, 3, 4);
        self.add("MatMul", &[&shares, v], vec![])
    }

    /// Computes the causal term, which hides later positions: `[L, S]` for queries `q` and keys `k`, `[B, heads,
    /// length, D]`. Row i sees the first `i + 1` columns. With `last_sees_all`, the last row sees every column, as in
    /// ONNX Runtime's CPU kernels; this matters if there are more keys than queries.
    ///
    /// # Errors
    /// The opset of the model has no Range to count positions with.
    pub fn causal_term(&mut self, q: &str, k: &str, last_sees_all: bool) -> Result<String, RuleError> {
        let (at_row, at_column) = (self.positions(q, 2)?, self.positions(k, 2)?);
        let at_row = self.unsqueezed(&at_row, &[1]);
        let mut is_later = self.add("Less", &[&at_row, &at_column], vec![]);
        if last_sees_all {
            let (rows, one) = (self.length(q, 2), self.ints(&[1], &[1]));
            let last = self.add("Sub", &[&rows, &one], vec![]);
            let is_before_last = self.add("Less", &[&at_row, &last], vec![]);
            is_later = self.add("And", &[&is_later, &is_before_last], vec![]);
        }
        let is_later = self.cast(&is_later, DataType::Float);
        Ok(self.scaled(&is_later, HIDDEN))
    }

    /// Computes the term of a boolean mask at input `slot`, which is true for visible positions.
    pub fn boolean_term(&mut self, slot: usize) -> String {
        let mask = self.input(slot);
        let (zero, hidden) = (self.scalar(0.0), self.scalar(HIDDEN));
        self.add("Where", &[&mask, &zero, &hidden], vec![])
    }

    /// Computes the term that hides all but the first keys of every sample; input `slot`, `[B]`, holds their numbers.
    /// The scores have keys `k`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn lengths_term(&mut self, slot: usize, k: &str) -> Result<String, RuleError> {
        let (lengths, at_column) = (self.input(slot), self.positions(k, 2)?);
        let lengths = self.unsqueezed(&lengths, &[1, 2, 3]);
        let counts = self.add("Less", &[&at_column, &lengths], vec![]);
        let (zero, hidden) = (self.scalar(0.0), self.scalar(HIDDEN));
        Ok(self.add("Where", &[&counts, &zero, &hidden], vec![]))
    }

    /// Computes, for each query, one if the sum of `terms` leaves any key visible, else zero; the axis of keys has
    /// size one. At least one term must be given.
    pub fn has_visible(&mut self, terms: &[String]) -> String {
        let terms: Vec<&str> = terms.iter().map(String::as_str).collect();
        let sum = if let [one] = terms.as_slice() { (*one).to_owned() } else { self.add("Sum", &terms, vec![]) };
        let largest = if self.opset() < 18 {
            self.add("ReduceMax", &[&sum], vec![attr_ints("axes", &[-1])])
        } else {
            let axes = self.ints(&[-1], &[1]);
            self.add("ReduceMax", &[&sum, &axes], vec![])
        };
        let bound = self.scalar(HIDDEN / 2.0);
        let counts = self.add("Greater", &[&largest, &bound], vec![]);
        self.cast(&counts, DataType::Float)
    }

    /// Computes all terms that ONNX Runtime's attentions add to the scores of queries `q` and keys `k`, `[B, heads,
    /// length, D]`.
    ///
    /// # Errors
    /// The mask has a form that is not supported.
    pub fn score_terms(&mut self, terms: &ScoreTerms, q: &str, k: &str) -> Result<Vec<String>, RuleError> {
        let mut added = Vec::new();
        if self.has(terms.mask) {
            added.push(self.mask_term(terms, k)?);
        }
        if terms.is_causal {
            added.push(self.causal_term(q, k, true)?);
        }
        if self.has(terms.bias) {
            added.push(self.float(terms.bias));
        }
        Ok(added)
    }

    /// Computes the term of a mask of ONNX Runtime's attentions. The mask is `[B, S]` or `[B, L, S]`, above zero for
    /// visible positions; or `[B]`, the first hidden position; or `[2 B]`, the same and then the first visible
    /// position.
    fn mask_term(&mut self, terms: &ScoreTerms, k: &str) -> Result<String, RuleError> {
        let (shape, of_batch) = (self.shape(terms.mask)?, self.shape(0)?.first().cloned());
        let batch = of_batch.as_ref().and_then(Dim::as_const);
        let axes: &[i64] = match (shape.as_slice(), batch) {
            ([one], _) if Some(one) == of_batch.as_ref() => return self.length_term(terms, k, None),
            ([two], Some(batch)) if two.is(2 * batch) => return self.length_term(terms, k, Some(batch)),
            ([_, _], _) => &[1, 2],
            ([_, _, _], _) => &[1],
            _ => {
                let text = "expected a mask [B], [2 B], [B, S] or [B, L, S], found";
                return Err(RuleError::unsupported(format!("{text} {shape:?}")));
            }
        };
        let mask = self.float(terms.mask);
        let zero = self.scalar(0.0);
        let counts = self.add("Greater", &[&mask, &zero], vec![]);
        let counts = self.cast(&counts, DataType::Float);
        let counts = self.unsqueezed(&counts, axes);
        Ok(self.unless(&counts, terms))
    }

    /// Computes the term of a mask of positions. `batch` is given if the mask holds two positions for each sample.
    fn length_term(&mut self, terms: &ScoreTerms, k: &str, batch: Option<i64>) -> Result<String, RuleError> {
        let at = self.positions(k, 2)?;
        let mask = self.input(terms.mask);
        let mask = self.cast(&mask, DataType::Int64);
        let bound = |cx: &mut Self, range: Option<(i64, i64)>| {
            let part = range.map_or(mask.clone(), |(start, end)| cx.span(&mask, 0, start, end));
            cx.unsqueezed(&part, &[1, 2, 3])
        };
        let end = bound(self, batch.map(|batch| (0, batch)));
        let mut counts = self.add("Less", &[&at, &end], vec![]);
        if let Some(batch) = batch {
            let start = bound(self, Some((batch, 2 * batch)));
            let is_before = self.add("Less", &[&at, &start], vec![]);
            let is_after = self.add("Not", &[&is_before], vec![]);
            counts = self.add("And", &[&counts, &is_after], vec![]);
        }
        let counts = self.cast(&counts, DataType::Float);
        Ok(self.unless(&counts, terms))
    }

    /// Computes the term that is added to the scores where `counts` is zero instead of one.
    fn unless(&mut self, counts: &str, terms: &ScoreTerms) -> String {
        let one = self.scalar(1.0);
        let hidden = self.add("Sub", &[&one, counts], vec![]);
        self.scaled(&hidden, f64::from(terms.filter_value))
    }
}
