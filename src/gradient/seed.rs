//! The loss from which differentiation starts, and the gradients as outputs.

use std::collections::BTreeMap;

use super::precision::{LOSS_SCALE, OVERFLOW};
use super::{LOSS, TARGET, UseGradient};
use crate::graph::{Graph, ValueId};
use crate::lower::Use;
use crate::onnx::NodeProto;
use crate::operator::gradient::Tape;

impl Tape {
    /// Names uses after the inputs of the original network that they stand for: where several nodes of a fused one read a
    /// weight, their gradients are summed.
    pub(super) fn join_uses(&mut self, origins: &BTreeMap<Use, Use>) {
        let mut of_origins: BTreeMap<Use, (ValueId, Vec<String>)> = BTreeMap::new();
        for (of, (value, gradient)) in std::mem::take(&mut self.uses) {
            let origin = origins.get(&of).copied().unwrap_or(of);
            of_origins.entry(origin).or_insert((value, Vec::new())).1.push(gradient);
        }
        for (origin, (value, gradients)) in of_origins {
            let names: Vec<&str> = gradients.iter().map(String::as_str).collect();
            let sum = match names.as_slice() {
                [one] => (*one).to_owned(),
                many => self.add("", "Sum", many, vec![]),
            };
            self.uses.insert(origin, (value, sum));
        }
    }

    /// Makes the gradient by every use of a wanted weight a graph output. Those of a loss that was multiplied by a scale
    /// are divided by it, and one more output tells whether all are finite.
    pub(super) fn name_uses(&mut self, graph: &Graph, is_scaled: bool) -> Vec<UseGradient> {
        let uses = std::mem::take(&mut self.uses);
        let mut named = Vec::with_capacity(uses.len());
        let mut zeros = Vec::new();
        for (at, ((node, slot), (value, gradient))) in uses.into_iter().enumerate() {
            let output = format!("__gradient/{at}/{}", graph.values[value].name);
            if is_scaled {
                // Zero times anything but a finite number is not a number, which a sum keeps.
                let zero = self.scalar(0.0);
                let product = self.add("", "Mul", &[&gradient, &zero], vec![]);
                // All axes are reduced where none is named; every opset agrees on that.
                zeros.push(self.add("", "ReduceSum", &[&product], vec![crate::onnx::attr_int("keepdims", 0)]));
                self.push("", "Div", &[&gradient, LOSS_SCALE], vec![output.clone()], vec![]);
            } else {
                self.push("", "Identity", &[&gradient], vec![output.clone()], vec![]);
            }
            named.push(UseGradient { value, node, slot, output });
        }
        if is_scaled && named.is_empty() {
            zeros.push(self.scalar(0.0));
        }
        if is_scaled {
            let zeros: Vec<&str> = zeros.iter().map(String::as_str).collect();
            self.push("", "Sum", &zeros, vec![OVERFLOW.to_owned()], vec![]);
        }
        named
    }

    /// Emits the loss `L = mean((prediction - target)^2)` over the first `channels` of axis 1 and gives the prediction
    /// its gradient `2 (prediction - target) / n`, times [`LOSS_SCALE`] where `is_scaled`. Returns the shape of the
    /// target.
    pub(super) fn seed(
        &mut self,
        graph: &Graph,
        prediction: ValueId,
        shape: &[i64],
        channels: Option<i64>,
        is_scaled: bool,
    ) -> Vec<i64> {
        let mut compared = graph.values[prediction].name.clone();
        let mut target = shape.to_vec();
        let cut = channels.filter(|channels| shape.get(1).is_some_and(|size| channels < size));
        if let Some(channels) = cut {
            target[1] = channels;
            compared = self.slice(&compared, 1, 0, channels, 1);
        }
        let count = target.iter().product::<i64>().max(1) as f32;
        let difference = self.add("", "Sub", &[&compared, TARGET], vec![]);
        let square = self.add("", "Mul", &[&difference, &difference], vec![]);
        // All axes are reduced where none is named; every opset agrees on that.
        let mean = self.add("", "ReduceMean", &[&square], vec![crate::onnx::attr_int("keepdims", 0)]);
        self.nodes.push(NodeProto {
            op_type: "Identity".to_owned(),
            name: LOSS.to_owned(),
            input: vec![mean],
            output: vec![LOSS.to_owned()],
            ..NodeProto::default()
        });
        let scale = self.floats(&[2.0 / count], &[]);
        let mut seed = self.add("", "Mul", &[&difference, &scale], vec![]);
        if is_scaled {
            seed = self.add("", "Mul", &[&seed, LOSS_SCALE], vec![]);
        }
        if cut.is_some() {
            let after: Vec<i64> = shape.iter().zip(&target).map(|(whole, part)| whole - part).collect();
            seed = self.pad(&seed, &vec![0; shape.len()], &after);
        }
        self.contributions.insert(prediction, vec![seed]);
        target
    }
}
