//! Activations of fused operators.

use super::LowerCx;
use crate::graph::Node;
use crate::onnx::{AttributeProto, attr_float, attr_int};
use crate::operator::RuleError;

/// The activation that a fused operator applies to its result.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The standard operator.
    name: String,
    /// The attributes of the standard operator that the node states; for Clip its limits.
    parameters: Vec<(&'static str, f32)>,
}

/// Returns the parameters of an activation, in the order in which `activation_params` lists them; `None` if the
/// activation can't be lowered.
fn parameter_names(activation: &str) -> Option<&'static [&'static str]> {
    Some(match activation {
        "Relu" | "Sigmoid" | "Softplus" | "Softsign" | "Tanh" => &[],
        "Elu" | "LeakyRelu" | "ThresholdedRelu" => &["alpha"],
        "HardSigmoid" => &["alpha", "beta"],
        "Selu" => &["alpha", "gamma"],
        "Clip" => &["min", "max"],
        _ => return None,
    })
}

impl Activation {
    /// Reads the activation that the attribute `activation` of a node names, with the parameters that the list
    /// `activation_params` states; `None` if there is none.
    pub fn with_list(node: &Node) -> Option<Self> {
        let list = node.proto.attr("activation_params").map_or(&[][..], |list| list.floats.as_slice());
        Self::parse(node, |names| names.iter().copied().zip(list.iter().copied()).collect())
    }

    /// Reads the activation that the attribute `activation` of a node names, with parameters that are attributes of
    /// their own, such as `activation_alpha`; `None` if there is none.
    pub fn with_attributes(node: &Node) -> Option<Self> {
        let stated = |name: &&'static str| Some((*name, node.proto.float(&format!("activation_{name}"))?));
        Self::parse(node, |names| names.iter().filter_map(stated).collect())
    }

    fn parse(node: &Node, parameters: impl FnOnce(&[&'static str]) -> Vec<(&'static str, f32)>) -> Option<Self> {
        let name = node.proto.string("activation")?;
        let parameters = parameters(parameter_names(name).unwrap_or_default());
        Some(Self { name: name.to_owned(), parameters })
    }

    /// Checks that the activation is one that [`LowerCx::activated`] can write; all of them are elementwise.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> Result<(), RuleError> {
        let Self { name, parameters } = self;
        match parameter_names(name) {
            // The standard Clip has no limits by default, the fused one always has both.
            Some(names) if name != "Clip" || parameters.len() == names.len() => Ok(()),
            _ => Err(RuleError::unsupported(format!("the fused activation {name} can't be lowered"))),
        }
    }
}

impl LowerCx<'_> {
    /// Returns the attributes of the node that the standard operator has too: all but those of the activation.
    pub fn attributes_without_activation(&self) -> Vec<AttributeProto> {
        let is_own = |attribute: &&AttributeProto| !attribute.name.starts_with("activation");
        self.attributes().iter().filter(is_own).cloned().collect()
    }

    /// Applies the activation of a fused operator to a value; without one, returns the value itself.
    ///
    /// # Errors
    /// The fused operators have no such activation.
    pub fn activated(&mut self, value: &str, activation: Option<&Activation>) -> Result<String, RuleError> {
        let Some(activation) = activation else { return Ok(value.to_owned()) };
        activation.check()?;
        let Activation { name, parameters } = activation;
        if name == "Clip" && self.opset() >= 11 {
            let limits: Vec<String> = parameters.iter().map(|(_, limit)| self.scalar((*limit).into())).collect();
            let inputs: Vec<&str> = std::iter::once(value).chain(limits.iter().map(String::as_str)).collect();
            return Ok(self.add(name, &inputs, vec![]));
        }
        let attributes = parameters.iter().map(|(name, value)| attr_float(name, *value)).collect();
        Ok(self.add(name, &[value], attributes))
    }

    /// Applies Softmax or LogSoftmax to a value of `rank` axes, along `axis` alone in every opset.
    pub fn softmax(&mut self, op_type: &str, value: &str, axis: usize, rank: usize) -> String {
        let last = rank.saturating_sub(1);
        if self.opset() >= 13 || axis >= last {
            return self.add(op_type, &[value], vec![attr_int("axis", axis as i64)]);
        }
        // Before opset 13, Softmax flattens the axes from the given one on; for the last axis, that makes no
        // difference.
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(axis, last);
        let moved = self.transposed(value, &perm);
        let shares = self.add(op_type, &[&moved], vec![attr_int("axis", last as i64)]);
        self.transposed(&shares, &perm)
    }
}
