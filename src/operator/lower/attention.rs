//! Attention, `Y = softmax(scale * Q K^T + mask) V` per head, which several fused operators contain.

use super::LowerCx;
use crate::graph::dim::Dim;
use crate::onnx::{DataType, attr_int, attr_ints};
use crate::operator::RuleError;

/// Queries, keys and values by head, and what is added to the scores.
#[derive(Debug)]
pub struct Attention {
    /// `[B, heads, L, D]`.
    pub q: String,
    /// `[B, heads, S, D]`.
    pub k: String,
    /// `[B, heads, S, E]`.
    pub v: String,
    /// What the scores are multiplied with.
    pub scale: f64,
    /// What the scores are kept below by a tanh; not at all where it is zero.
    pub softcap: f64,
    /// Values that broadcast to the scores, `[B, heads, L, S]`, and are added to them.
    pub added: Vec<String>,
}

/// What ONNX Runtime's attentions add to the scores.
#[derive(Clone, Copy, Debug)]
pub struct ScoreTerms {
    /// The input that hides positions, if the node has it.
    pub mask: usize,
    /// The input that is added as it is, if the node has it.
    pub bias: usize,
    /// Whether later positions are hidden.
    pub is_causal: bool,
    /// What is added where the mask hides a position.
    pub filter_value: f32,
}

/// What is added to a score that must not count: more than any score, and yet finite in float32.
const HIDDEN: f64 = -1e30;

impl LowerCx<'_> {
    /// `[B, L, heads * D]` as `[B, heads, L, D]`.
    pub fn by_head(&mut self, value: &str, heads: i64) -> String {
        let divided = self.reshaped(value, &[0, 0, heads, -1]);
        self.transposed(&divided, &[0, 2, 1, 3])
    }

    /// `[B, heads, L, D]` as `[B, L, heads * D]`.
    #[allow(clippy::wrong_self_convention, reason = "the context is not what it converts")]
    pub fn from_heads(&mut self, value: &str) -> String {
        let moved = self.transposed(value, &[0, 2, 1, 3]);
        self.reshaped(&moved, &[0, 0, -1])
    }

    /// The result of an attention, `[B, heads, L, E]`.
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
        // Before opset 13 the axes from the given one on are one; the last is the same in all.
        let shares = self.add("Softmax", &[&scores], vec![attr_int("axis", 3)]);
        self.add("MatMul", &[&shares, v], vec![])
    }

    /// What hides later positions from earlier ones: `[L, S]` for queries `q` and keys `k`, `[B, heads, length, D]`. Row i
    /// sees the first `i + 1` columns; where `last_sees_all`, the last row sees every column, as in ONNX Runtime's CPU
    /// kernels, which matters where there are more keys than queries.
    ///
    /// # Errors
    /// The model's operators can't count positions.
    pub fn causal_term(&mut self, q: &str, k: &str, last_sees_all: bool) -> Result<String, RuleError> {
        let (at_row, at_column) = (self.places(q, 2)?, self.places(k, 2)?);
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

    /// What a boolean mask at input `slot`, true where a position counts, adds to the scores.
    pub fn boolean_term(&mut self, slot: usize) -> String {
        let mask = self.input(slot);
        let (zero, hidden) = (self.scalar(0.0), self.scalar(HIDDEN));
        self.add("Where", &[&mask, &zero, &hidden], vec![])
    }

    /// What the number of keys that count of every sample, `[B]` at input `slot`, adds to the scores by keys `k`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn lengths_term(&mut self, slot: usize, k: &str) -> Result<String, RuleError> {
        let (lengths, at_column) = (self.input(slot), self.places(k, 2)?);
        let lengths = self.unsqueezed(&lengths, &[1, 2, 3]);
        let counts = self.add("Less", &[&at_column, &lengths], vec![]);
        let (zero, hidden) = (self.scalar(0.0), self.scalar(HIDDEN));
        Ok(self.add("Where", &[&counts, &zero, &hidden], vec![]))
    }

    /// For each query, one where any key counts after the sum of `terms`, else zero; the axis of keys has size one. At
    /// least one term is given.
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

    /// All that ONNX Runtime's attentions add to the scores of queries `q` by keys `k`, `[B, heads, length, D]`.
    ///
    /// # Errors
    /// A mask of a form that is not supported.
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

    /// What a mask of ONNX Runtime's attentions adds: `[B, S]` or `[B, L, S]`, above zero where a position counts; or `[B]`, the
    /// first position that is, or `[2 B]`, after those also the first that is not.
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

    /// `batch` is given where the mask holds two positions for each sample.
    fn length_term(&mut self, terms: &ScoreTerms, k: &str, batch: Option<i64>) -> Result<String, RuleError> {
        let at = self.places(k, 2)?;
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

    /// What is added to the scores where `counts` is zero instead of one.
    fn unless(&mut self, counts: &str, terms: &ScoreTerms) -> String {
        let one = self.scalar(1.0);
        let hidden = self.add("Sub", &[&one, counts], vec![]);
        self.scaled(&hidden, f64::from(terms.filter_value))
    }
}
