//! Activations of fused operators.

use super::LowerCx;
use crate::graph::Node;
use crate::onnx::{AttributeProto, attr_float};
use crate::operator::RuleError;

/// What a fused operator does to its result.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The operator, of the standard.
    pub name: String,
    /// Alpha and beta, or the limits of Clip.
    pub parameters: Vec<f32>,
}

impl Activation {
    /// The activation of a node that names one in its attribute `activation`, with these parameters.
    pub fn parse(node: &Node, parameters: impl FnOnce() -> Vec<f32>) -> Option<Self> {
        node.proto.string("activation").map(|name| Self { name: name.to_owned(), parameters: parameters() })
    }
}

impl LowerCx<'_> {
    /// The attributes of the node that a standard operator has too: all but those of the activation.
    pub fn attributes_without_activation(&self) -> Vec<AttributeProto> {
        let is_own = |attribute: &&AttributeProto| !attribute.name.starts_with("activation");
        self.attributes().iter().filter(is_own).cloned().collect()
    }

    /// A value after the activation of a fused operator; the value itself where there is none.
    ///
    /// # Errors
    /// An activation that the fused operators do not have.
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
            other => return Err(RuleError::unsupported(format!("a fused {other} can't be lowered"))),
        })
    }
}
