//! The loss at which differentiation starts, and the gradients as graph outputs.

use std::collections::BTreeMap;

use super::loss::{Distance, FoundTerm, TermInput};
use super::precision::{LOSS_SCALE, OVERFLOW};
use super::{GradientOptions, LOSS, UseGradient, ValueGradient};
use crate::graph::{Graph, Reader, ValueId};
use crate::onnx::{attr_float, attr_int};
use crate::operator::gradient::Tape;

impl Tape {
    /// Emits the terms of the loss and their sum. Seeds the gradient of every value that a term compares, times
    /// [`LOSS_SCALE`] if `is_scaled`.
    pub(super) fn seed(&mut self, graph: &Graph, terms: &[FoundTerm], is_scaled: bool) {
        for term in terms {
            self.seed_term(graph, term, is_scaled);
        }
        match terms {
            [only] if only.input.output == LOSS => {}
            terms => {
                let outputs: Vec<&str> = terms.iter().map(|term| term.input.output.as_str()).collect();
                let sum = if outputs.len() == 1 { "Identity" } else { "Sum" };
                self.builder.push("", sum, &outputs, vec![LOSS.to_owned()], vec![]);
            }
        }
    }

    fn seed_term(&mut self, graph: &Graph, found: &FoundTerm, is_scaled: bool) {
        let (term, TermInput { output, target, target_shape, sample_weights }) = (&found.term, &found.input);
        let mut compared = graph.values[found.value].name.clone();
        for (axis, (size, whole)) in found.compared.iter().zip(&found.shape).enumerate() {
            if size != whole {
                compared = self.slice(&compared, axis as i64, 0, *size, 1);
            }
        }
        // For every element: its contribution to the loss, and the derivative of that contribution up to a factor.
        let (mut part, mut derivative, factor) = match term.distance {
            Distance::Squared => {
                let difference = self.builder.add("Sub", &[&compared, target], vec![]);
                (self.builder.add("Mul", &[&difference, &difference], vec![]), difference, 2.0)
            }
            Distance::Huber { delta } => {
                // With c = d clipped to [-delta, delta], the distance is c (d - c / 2) and its derivative c.
                let difference = self.builder.add("Sub", &[&compared, target], vec![]);
                let clipped = self.clipped(&difference, delta);
                let half = self.scalar(0.5);
                let half = self.builder.add("Mul", &[&clipped, &half], vec![]);
                let rest = self.builder.add("Sub", &[&difference, &half], vec![]);
                (self.builder.add("Mul", &[&clipped, &rest], vec![]), clipped, 1.0)
            }
            Distance::InnerProduct => (self.builder.add("Mul", &[&compared, target], vec![]), target.clone(), 1.0),
            Distance::SquaredDirectionalDerivative { step } => {
                self.squared_directional_derivatives(&compared, &found.compared, target, step)
            }
        };
        if let Some(weights) = sample_weights {
            let column = |rank: usize| (0..rank).map(|axis| if axis == 0 { -1 } else { 1 }).collect::<Vec<i64>>();
            let of_rows = self.reshape(weights, &column(target_shape.len()));
            part = self.builder.add("Mul", &[&part, &of_rows], vec![]);
            let of_rows = self.reshape(weights, &column(found.shape.len()));
            derivative = self.builder.add("Mul", &[&derivative, &of_rows], vec![]);
        }
        let is_sum = term.distance == Distance::InnerProduct;
        // Without `axes`, all axes are reduced, in every opset.
        let reduction = if is_sum { "ReduceSum" } else { "ReduceMean" };
        let mut value = self.builder.add(reduction, &[&part], vec![attr_int("keepdims", 0)]);
        if term.weight != 1.0 {
            let weight = self.scalar(term.weight as f32);
            value = self.builder.add("Mul", &[&value, &weight], vec![]);
        }
        self.builder.rename(&value, output);
        // The count is rounded to float32, as in the division of ReduceMean.
        let count = if is_sum { 1.0 } else { f64::from(found.count() as f32) };
        let factor = self.scalar((factor * term.weight / count) as f32);
        let mut seed = self.builder.add("Mul", &[&derivative, &factor], vec![]);
        if is_scaled {
            seed = self.builder.add("Mul", &[&seed, LOSS_SCALE], vec![]);
        }
        let mut before = vec![0; found.shape.len()];
        if let Distance::SquaredDirectionalDerivative { .. } = term.distance {
            // The derivative for the third part is the negative of that for the second. For the first part it is zero.
            let opposite = self.builder.add("Neg", &[&seed], vec![]);
            seed = self.builder.add("Concat", &[&seed, &opposite], vec![attr_int("axis", 0)]);
            before[0] = target_shape[0];
        }
        if before.iter().any(|rows| *rows > 0) || found.compared != found.shape {
            let after: Vec<i64> = found.shape.iter().zip(&found.compared).map(|(whole, part)| whole - part).collect();
            seed = self.pad(&seed, &before, &after);
        }
        self.compared.insert(found.value);
        self.contributions.entry(found.value).or_default().push(seed);
    }

    /// Emits the loss of a value of this shape in three parts, see [`Distance::SquaredDirectionalDerivative`]. Returns each row's
    /// contribution, the derivative of the contribution with respect to the elements of the second part up to a factor,
    /// and the factor.
    fn squared_directional_derivatives(
        &mut self,
        value: &str,
        shape: &[i64],
        target: &str,
        step: f32,
    ) -> (String, String, f64) {
        let rows = shape[0] / 3;
        let [above, below] = [1, 2].map(|part| self.slice(value, 0, part * rows, (part + 1) * rows, 1));
        let difference = self.builder.add("Sub", &[&above, &below], vec![]);
        let per_step = 0.5 / f64::from(step);
        let scale = self.scalar(per_step as f32);
        let quotients = self.builder.add("Mul", &[&difference, &scale], vec![]);
        let squares = self.builder.add("Mul", &[&quotients, &quotients], vec![]);
        let axes: Vec<usize> = (1..shape.len()).collect();
        let norms = self.reduce_sum(&squares, &axes, false);
        let excess = self.builder.add("Sub", &[&norms, target], vec![]);
        let part = self.builder.add("Mul", &[&excess, &excess], vec![]);
        let column: Vec<i64> = (0..shape.len()).map(|axis| if axis == 0 { rows } else { 1 }).collect();
        let column = self.reshape(&excess, &column);
        let derivative = self.builder.add("Mul", &[&quotients, &column], vec![]);
        // One factor 2 comes from the square of the excess, another from the square of the difference quotient.
        (part, derivative, 4.0 * per_step)
    }

    /// Clips every element to the range from -limit to limit.
    fn clipped(&mut self, value: &str, limit: f32) -> String {
        if self.builder.opset() < 11 {
            let limits = vec![attr_float("min", -limit), attr_float("max", limit)];
            return self.builder.add("Clip", &[value], limits);
        }
        let limits = [-limit, limit].map(|limit| self.scalar(limit));
        self.builder.add("Clip", &[value, &limits[0], &limits[1]], vec![])
    }

    /// Maps the uses to inputs of the original network. If several nodes of a lowered fused node use a weight, their
    /// gradients are summed.
    pub(super) fn join_uses(&mut self, origins: &BTreeMap<Reader, Reader>) {
        let mut of_origins: BTreeMap<Reader, (ValueId, Vec<String>)> = BTreeMap::new();
        for (of, (value, gradient)) in std::mem::take(&mut self.uses) {
            let origin = origins.get(&of).copied().unwrap_or(of);
            of_origins.entry(origin).or_insert((value, Vec::new())).1.push(gradient);
        }
        for (origin, (value, gradients)) in of_origins {
            let names: Vec<&str> = gradients.iter().map(String::as_str).collect();
            let sum = match names.as_slice() {
                [one] => (*one).to_owned(),
                many => self.builder.add("Sum", many, vec![]),
            };
            self.uses.insert(origin, (value, sum));
        }
    }

    /// Makes the gradients with respect to every use of a wanted weight and to every wanted value graph outputs. If
    /// `is_scaled`, divides them by the loss scale and adds an output that shows whether all are finite.
    pub(super) fn name_gradients(
        &mut self,
        graph: &Graph,
        options: &GradientOptions,
        is_scaled: bool,
    ) -> (Vec<UseGradient>, Vec<ValueGradient>) {
        let uses = std::mem::take(&mut self.uses);
        let mut named = Vec::with_capacity(uses.len());
        let mut zeros = Vec::new();
        for (at, (reader, (value, gradient))) in uses.into_iter().enumerate() {
            let output = format!("__gradient/{at}/{}", graph.values[value].name);
            self.name_gradient(&gradient, &output, is_scaled, &mut zeros);
            let Reader { node, slot } = reader;
            let axes = options.by_index.as_ref().and_then(|axes| axes.get(&reader)).cloned().unwrap_or_default();
            named.push(UseGradient { value, node, slot, output, axes });
        }
        let mut by_value = Vec::with_capacity(options.wanted_values.len());
        for (at, value) in options.wanted_values.iter().enumerate() {
            let Some(gradient) = self.gradient(*value) else { continue };
            let output = format!("__gradient/value/{at}/{}", graph.values[*value].name);
            self.name_gradient(&gradient, &output, is_scaled, &mut zeros);
            by_value.push(ValueGradient { value: *value, output });
        }
        if is_scaled && zeros.is_empty() {
            zeros.push(self.scalar(0.0));
        }
        if is_scaled {
            let zeros: Vec<&str> = zeros.iter().map(String::as_str).collect();
            self.builder.push("", "Sum", &zeros, vec![OVERFLOW.to_owned()], vec![]);
        }
        (named, by_value)
    }

    fn name_gradient(&mut self, gradient: &str, output: &str, is_scaled: bool, zeros: &mut Vec<String>) {
        if is_scaled {
            // Zero times a value that is not finite is NaN, and a sum keeps NaN.
            let zero = self.scalar(0.0);
            let product = self.builder.add("Mul", &[gradient, &zero], vec![]);
            // Without `axes`, all axes are reduced, in every opset.
            zeros.push(self.builder.add("ReduceSum", &[&product], vec![attr_int("keepdims", 0)]));
            self.builder.push("", "Div", &[gradient, LOSS_SCALE], vec![output.to_owned()], vec![]);
        } else {
            self.builder.rename(gradient, output);
        }
    }
}
