//! Activations of fused operators.

use super::LowerCx;
use crate::graph::Node;
use crate::onnx::{AttributeProto, attr_float};
use crate::operator::RuleError;

/// The activation that a fused operator applies to its result.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The standard operator.
    pub name: String,
    /// Alpha and beta, or the limits of Clip.
    pub parameters: Vec<f32>,
}

impl Activation {
    /// Reads the activation that the attribute `activation` of a node names, with these parameters; `None` if there is
    /// none.
    pub fn parse(node: &Node, parameters: impl FnOnce() -> Vec<f32>) -> Option<Self> {
        node.proto.string("activation").map(|name| Self { name: name.to_owned(), parameters: parameters() })
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
        let Some(Activation { name, parameters }) = activation else { return Ok(value.to_owned()) };
        let given = |names: &[&str]| -> Vec<AttributeProto> {
            names.iter().zip(parameters).map(|(name, value)| attr_float(name, *value)).collect()
        };
        Ok(match name.as_str() {
            "Relu" | "Sigmoid" | "Softplus" | "Softsign" | "Tanh" => self.add(name, &[value], vec![]),
            "Elu" | "LeakyRelu" => self.add(name, &[value], given(&["alpha"])),
            "HardSigmoid" => self.add(name, &[value], given(&["alpha", "beta"])),
            "Clip" if self.opset() < 11 => self.add(name, &[value], given(&["min", "max"])),
            "Clip" => {
                let limits: Vec<String> = parameters.iter().take(2).map(|limit| self.scalar((*limit).into())).collect();
                let inputs: Vec<&str> = std::iter::once(value).chain(limits.iter().map(String::as_str)).collect();
                self.add(name, &inputs, vec![])
            }
            other => return Err(RuleError::unsupported(format!("the fused activation {other} can't be lowered"))),
        })
    }
}
