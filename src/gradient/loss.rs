//! The loss that is differentiated, as a sum of terms.

use std::collections::BTreeMap;

use super::differentiate::ancestors;
use super::{LOSS, Network, TARGET};
use crate::error::Error;
use crate::graph::ValueId;
use crate::operator::gradient::signed_shape;

/// A term of a loss: the distance between a value of the network and a target.
#[derive(Clone, Debug, PartialEq)]
pub struct LossTerm {
    /// The name of the value: an output of the network, or any value within it.
    pub value: String,
    /// Number of channels that are compared: the first channels of axis 1. `None`: all channels.
    pub channels: Option<i64>,
    /// Number of equal parts of consecutive rows into which axis 0 is divided, at least one. Only the first part is
    /// compared (but see [`Distance::SquaredDirectionalDerivative`]).
    pub parts: i64,
    /// The graph input for the target: float32, with the shape of the compared part of the value. Terms may share an
    /// input.
    pub target: String,
    /// The distance between the two.
    pub distance: Distance,
    /// The factor of the term.
    pub weight: f64,
    /// The graph input for one weight per sample: float32 `[N]`, where N is the size of axis 0. Each sample's mean (or
    /// inner product) is multiplied by its weight before the mean (or sum) over samples. `None`: all samples have
    /// weight one.
    pub sample_weights: Option<String>,
}

/// A distance between a value v and a target y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distance {
    /// The mean of `(v - y)^2` over all elements.
    Squared,
    /// The mean over all elements of `d^2 / 2` if `|d| <= delta`, else of `delta (|d| - delta / 2)`, with `d = v - y`
    /// (Huber, 1964).
    Huber {
        /// The difference at which the quadratic part ends and the linear part begins. Greater than zero.
        delta: f32,
    },
    /// The sum of `v y` over all elements. Its gradient is the product of the transposed Jacobian with y.
    InnerProduct,
    /// The deviation of a squared directional derivative from a target. The value has three parts of N rows each:
    /// `v(x)`, `v(x + h u)` and `v(x - h u)`. The distance is the mean over rows of `(|s|^2 - y)^2`, with the central
    /// difference `s = (v(x + h u) - v(x - h u)) / (2 h)` and one number y per row. The target has shape `[N]`. The
    /// first part is ignored.
    SquaredDirectionalDerivative {
        /// The step size `h`, greater than zero.
        step: f32,
    },
}

impl Distance {
    /// Returns whether this is [`Distance::SquaredDirectionalDerivative`].
    fn is_squared_slope(self) -> bool {
        matches!(self, Self::SquaredDirectionalDerivative { .. })
    }
}

impl LossTerm {
    /// Returns the mean squared difference between a value and the input [`TARGET`].
    pub fn squared(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            channels: None,
            parts: 1,
            target: TARGET.to_owned(),
            distance: Distance::Squared,
            weight: 1.0,
            sample_weights: None,
        }
    }
}

/// A term in a gradient graph.
#[derive(Clone, Debug, PartialEq)]
pub struct TermInput {
    /// The scalar output with the term times its weight. It is [`LOSS`] if the loss was not given as terms.
    pub output: String,
    /// The graph input for the target.
    pub target: String,
    /// The shape of the target.
    pub target_shape: Vec<i64>,
    /// The graph input for one weight per sample. `None`: all samples have weight one.
    pub sample_weights: Option<String>,
}

impl TermInput {
    /// Returns all inputs that the terms add to a graph, with their shapes, each once.
    pub(super) fn inputs(terms: &[Self]) -> Vec<(String, Vec<i64>)> {
        let mut inputs: Vec<(String, Vec<i64>)> = Vec::new();
        for term in terms {
            let samples = term.target_shape.first().copied().unwrap_or(1);
            let weights = term.sample_weights.clone().map(|name| (name, vec![samples]));
            for input in std::iter::once((term.target.clone(), term.target_shape.clone())).chain(weights) {
                if !inputs.iter().any(|(name, _)| *name == input.0) {
                    inputs.push(input);
                }
            }
        }
        inputs
    }
}

/// A term whose value was found in the network.
#[derive(Clone, Debug)]
pub(super) struct FoundTerm {
    pub(super) term: LossTerm,
    pub(super) value: ValueId,
    /// The shape of the value.
    pub(super) shape: Vec<i64>,
    /// The shape of the part that the loss uses: the first channels and the first rows.
    pub(super) compared: Vec<i64>,
    pub(super) input: TermInput,
}

impl FoundTerm {
    /// Returns the number of elements that are compared.
    pub(super) fn count(&self) -> i64 {
        self.input.target_shape.iter().product::<i64>().max(1)
    }

    /// Returns the estimated loss scale that prevents underflow: about the inverse of the gradient with respect to the
    /// value.
    pub(super) fn scale(&self) -> f64 {
        let count = if self.term.distance == Distance::InnerProduct { 1.0 } else { self.count() as f64 };
        if self.term.weight == 0.0 { count } else { count / self.term.weight.abs() }
    }
}

/// Finds the values of some terms and checks the terms. `is_default`: the caller gave no terms.
pub(super) fn find(network: &Network<'_>, terms: &[LossTerm], is_default: bool) -> Result<Vec<FoundTerm>, Error> {
    let in_file = |error: Error| error.in_file(network.model.path());
    let mut found = Vec::with_capacity(terms.len());
    let mut shapes: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (at, term) in terms.iter().enumerate() {
        let output = if is_default { LOSS.to_owned() } else { format!("{LOSS}/{at}") };
        let term = found_term(network, term, output).map_err(in_file)?;
        for (name, shape) in TermInput::inputs(std::slice::from_ref(&term.input)) {
            if network.graph.value(&name).is_some() {
                let text = format!("the input {name:?} of the loss has the name of a value of the network");
                return Err(in_file(Error::usage(text).hint("choose another name")));
            }
            match shapes.get(&name) {
                Some(other) if *other != shape => {
                    let text = format!(
                        "the input {name:?} of the loss has shape {other:?} in one term and {shape:?} in another"
                    );
                    return Err(in_file(Error::usage(text).hint("use a different name for each shape")));
                }
                _ => shapes.insert(name, shape),
            };
        }
        found.push(term);
    }
    Ok(found)
}

fn found_term(network: &Network<'_>, term: &LossTerm, output: String) -> Result<FoundTerm, Error> {
    let (name, graph) = (&term.value, network.graph);
    let value = graph.value(name).ok_or_else(|| {
        Error::usage(format!("the loss names the value {name:?}, which the network does not have"))
            .hint("run `onnx-diffprune inspect` to list the names of nodes and values")
    })?;
    let fact = network.facts.values[value].as_ref();
    if let Some(fact) = fact.filter(|fact| !fact.is_float()) {
        let text = format!("expected a floating-point value in the loss, found {name:?} with {}", fact.describe());
        return Err(Error::usage(text));
    }
    let what = if graph.values[value].is_output { "output" } else { "value" };
    let shape = fact.and_then(|fact| fact.shape.as_deref()).and_then(signed_shape).ok_or_else(|| {
        let before = ancestors(graph, &[value]);
        let gap = network.facts.gaps.iter().find(|(node, _)| before.contains(node));
        let text = format!("the shape of {what} {name:?} is not known");
        match gap.map(|(node, cause)| (&graph.nodes[*node], cause)) {
            None => Error::unmet(text).hint("set the sizes of the network's inputs with --size NAME=N"),
            Some((node, cause)) => Error::unmet(format!("{text}, because of this node: {cause}"))
                .at_node(&node.name, node.op())
                .hint("use --criterion magnitude, or set the sizes of the network's inputs with --size NAME=N"),
        }
    })?;
    let mut compared = shape.clone();
    if let Some(channels) = term.channels.filter(|channels| shape.get(1).is_some_and(|size| channels < size)) {
        compared[1] = channels;
    }
    let target_shape = split(term, &mut compared)?;
    if term.channels.is_some_and(|channels| channels < 1) {
        return Err(Error::usage(format!("expected at least one channel of {name:?}, found {:?}", term.channels)));
    }
    let (setting, number) = match term.distance {
        Distance::Huber { delta } => ("the delta of a Huber distance to be", delta),
        Distance::SquaredDirectionalDerivative { step } => ("the step size of a directional derivative to be", step),
        Distance::Squared | Distance::InnerProduct => ("", 1.0),
    };
    if !(number > 0.0 && number.is_finite()) {
        return Err(Error::usage(format!("expected {setting} finite and greater than 0, found {number}")));
    }
    if !term.weight.is_finite() {
        return Err(Error::usage(format!(
            "expected a finite weight for the loss term of {name:?}, found {}",
            term.weight
        )));
    }
    if term.sample_weights.is_some() && shape.is_empty() {
        let text = format!("weights per sample need a value with samples on axis 0, found the scalar {name:?}");
        return Err(Error::usage(text));
    }
    let (target, sample_weights) = (term.target.clone(), term.sample_weights.clone());
    let input = TermInput { output, target, target_shape, sample_weights };
    Ok(FoundTerm { term: term.clone(), value, shape, compared, input })
}

/// Removes the rows that are not compared from the shape `compared`. Returns the shape of the target.
fn split(term: &LossTerm, compared: &mut [i64]) -> Result<Vec<i64>, Error> {
    let parts = if term.distance.is_squared_slope() { 3 } else { term.parts };
    let rows = match compared.first() {
        Some(rows) if parts > 0 && rows % parts == 0 => rows / parts,
        None if parts == 1 => return Ok(Vec::new()),
        _ => {
            let text = format!(
                "expected axis 0 of value {:?} to divide into {parts} equal parts, found shape {compared:?}",
                term.value
            );
            return Err(Error::usage(text));
        }
    };
    if term.distance.is_squared_slope() {
        return Ok(vec![rows]);
    }
    compared[0] = rows;
    Ok(compared.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(distance: Distance, weight: f64) -> FoundTerm {
        let term = LossTerm { distance, weight, sample_weights: Some("w".to_owned()), ..LossTerm::squared("y") };
        let shape = vec![4, 3];
        let (target, sample_weights) = (term.target.clone(), term.sample_weights.clone());
        let input = TermInput { output: "__loss/0".to_owned(), target, target_shape: shape.clone(), sample_weights };
        FoundTerm { term, value: 0, compared: shape.clone(), shape, input }
    }

    #[test]
    fn inputs_that_terms_share_are_listed_once() {
        let terms = [found(Distance::Squared, 1.0).input, found(Distance::InnerProduct, 2.0).input];
        let inputs = [(TARGET.to_owned(), vec![4, 3]), ("w".to_owned(), vec![4])];
        assert_eq!(TermInput::inputs(&terms), inputs);
    }

    #[test]
    fn means_over_many_elements_and_small_weights_need_a_large_scale() {
        assert_eq!(found(Distance::Squared, 1.0).scale(), 12.0);
        assert_eq!(found(Distance::Huber { delta: 1.0 }, -0.5).scale(), 24.0);
        assert_eq!(found(Distance::InnerProduct, 4.0).scale(), 0.25);
        assert_eq!(found(Distance::InnerProduct, 0.0).scale(), 1.0);
    }
}
