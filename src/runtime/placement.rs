//! The execution providers and the nodes that they run.
//!
//! ONNX Runtime assigns nodes while it creates a session and logs this at the level "verbose"
//! (`VerifyEachNodeIsAssignedToAnEp`); an interface for it exists only since version 1.24. The session option
//! `session.disable_cpu_ep_fallback` is not used: it would make any node on the CPU an error, also the arithmetic on shapes
//! that ONNX Runtime itself puts there to avoid copies.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::device::{CPU_PROVIDER, Device};

/// The nodes of a session by execution provider, after the library's optimisations. Several nodes of the file may run as
/// one, and a part of the graph that TensorRT runs counts as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The nodes by provider, in the order of the library.
    pub providers: Vec<ProviderNodes>,
}

/// The nodes that one execution provider runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProviderNodes {
    /// The provider's name, for example `CUDAExecutionProvider`.
    pub provider: String,
    /// The number of nodes.
    pub nodes: usize,
    /// The number of nodes by operator type. Empty if one provider runs all nodes: the library then only reports their
    /// number.
    pub operators: BTreeMap<String, usize>,
}

/// Operators that compute shapes from shapes. ONNX Runtime keeps them on the CPU if their inputs are there. On CUDA, all
/// of them have kernels for floating point numbers, so nodes on activations do not fall back.
const SHAPE_ARITHMETIC: [&str; 41] = [
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Concat",
    "ConstantOfShape",
    "Div",
    "Equal",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Unsqueeze",
];
/// Further operators on shapes, which also select elements.
const SHAPE_CHOICES: [&str; 2] = ["Tile", "Where"];

impl Placement {
    /// Returns the number of nodes that a provider runs.
    pub fn nodes_on(&self, provider: &str) -> usize {
        self.providers.iter().filter(|on| on.provider == provider).map(|on| on.nodes).sum()
    }

    /// Returns the operator types and numbers of the nodes that run on the CPU although another device was requested,
    /// without arithmetic on shapes. The type is `(all)` if nothing runs on the device.
    pub fn fallen_back(&self, device: Device) -> BTreeMap<String, usize> {
        let mut fallen = BTreeMap::new();
        if device == Device::Cpu {
            return fallen;
        }
        for on in self.providers.iter().filter(|on| on.provider == CPU_PROVIDER) {
            if on.operators.is_empty() && on.nodes > 0 {
                fallen.insert("(all)".to_owned(), on.nodes);
            }
            let unexpected = on.operators.iter().filter(|(name, _)| !is_shape_arithmetic(name));
            fallen.extend(unexpected.map(|(name, count)| (name.clone(), *count)));
        }
        fallen
    }

    /// Whether at least one node runs on the provider of the device.
    pub fn uses(&self, device: Device) -> bool {
        device.providers().first().is_some_and(|provider| self.nodes_on(provider) > 0)
    }
}

fn is_shape_arithmetic(operator: &str) -> bool {
    SHAPE_ARITHMETIC.contains(&operator) || SHAPE_CHOICES.contains(&operator)
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, on) in self.providers.iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{}: {} nodes", on.provider, on.nodes)?;
            if on.provider == CPU_PROVIDER && !on.operators.is_empty() {
                write!(f, " ({})", counted(&on.operators))?;
            }
        }
        Ok(())
    }
}

/// Formats numbers of operators as `3 Conv, 1 Resize`.
pub(super) fn counted(operators: &BTreeMap<String, usize>) -> String {
    let texts: Vec<String> = operators.iter().map(|(name, count)| format!("{count} {name}")).collect();
    texts.join(", ")
}

/// Reads the placement of nodes from the log while a session is created.
#[derive(Clone, Debug, Default)]
pub(super) struct PlacementLog(Arc<Mutex<Option<Reader>>>);

#[derive(Debug, Default)]
struct Reader {
    placement: Placement,
    /// Number of lines with single nodes still to be read for the last provider.
    expected: usize,
}

impl PlacementLog {
    /// Returns a log that reads messages.
    pub(super) fn listening() -> Self {
        Self(Arc::new(Mutex::new(Some(Reader::default()))))
    }

    /// Reads a message.
    pub(super) fn read(&self, message: &str) {
        if let Some(reader) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            reader.read(message);
        }
    }

    /// Returns the placement; later messages are ignored. `None`: the library has logged nothing.
    pub(super) fn finish(&self) -> Option<Placement> {
        let reader = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (!reader.placement.providers.is_empty()).then_some(reader.placement)
    }
}

impl Reader {
    fn read(&mut self, message: &str) {
        for line in message.lines() {
            if let Some((provider, nodes, are_listed)) = header(line) {
                let operators = BTreeMap::new();
                self.placement.providers.push(ProviderNodes { provider: provider.to_owned(), nodes, operators });
                self.expected = if are_listed { nodes } else { 0 };
            } else if self.expected > 0
                && let Some(node) = line.strip_prefix("  ")
                && let Some(on) = self.placement.providers.last_mut()
            {
                // `Conv (name)`. Parts of the graph that a provider compiled have a name and no type.
                let operator = node.trim().split(" (").next().unwrap_or_default();
                *on.operators.entry(operator.to_owned()).or_default() += 1;
                self.expected -= 1;
            }
        }
    }
}

/// Parses ` Node(s) placed on [P]. Number of nodes: 3` or ` All nodes placed on [P]. Number of nodes: 3`. Returns the
/// provider, the number, and whether the nodes follow one by one.
fn header(line: &str) -> Option<(&str, usize, bool)> {
    let line = line.trim();
    let are_listed = line.starts_with("Node(s) placed on [");
    let rest = line.strip_prefix("Node(s) placed on [").or_else(|| line.strip_prefix("All nodes placed on ["))?;
    let (provider, rest) = rest.split_once(']')?;
    let nodes = rest.rsplit_once(": ")?.1.trim().parse().ok()?;
    Some((provider, nodes, are_listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Placement {
        let log = PlacementLog::listening();
        lines.iter().for_each(|line| log.read(line));
        let placement = log.finish().unwrap_or_default();
        log.read(" All nodes placed on [Late]. Number of nodes: 1");
        assert_eq!(log.finish(), None, "later messages are ignored");
        placement
    }

    #[test]
    fn shape_arithmetic_on_the_cpu_is_not_a_fallback() {
        let placement = read(&[
            "Saving initialized tensors",
            "Node placements",
            " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3",
            "  Shape (/Shape)",
            "  Gather (/Gather)",
            "  Gather (/Gather_1 (twice))",
            " Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 2",
            "  Conv (/conv_in/Conv)",
            "  FusedConv (/conv/Conv)",
            "  something else later",
        ]);
        assert_eq!(placement.nodes_on(CPU_PROVIDER), 3);
        assert_eq!(placement.providers[0].operators["Gather"], 2);
        assert_eq!(placement.providers[1].operators.len(), 2);
        assert!(placement.fallen_back(Device::Cuda(0)).is_empty());
        assert!(placement.uses(Device::Cuda(0)) && !placement.uses(Device::TensorRt(0)));
        assert_eq!(
            placement.to_string(),
            "CPUExecutionProvider: 3 nodes (2 Gather, 1 Shape), CUDAExecutionProvider: 2 nodes"
        );
    }

    #[test]
    fn computation_on_the_cpu_is_a_fallback() {
        let placement = read(&[
            " Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 2",
            "  Conv (a)",
            "  MemcpyToHost (Memcpy)",
            " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2",
            "  Resize (b)",
            "  Shape (c)",
        ]);
        assert_eq!(placement.fallen_back(Device::Cuda(0)), BTreeMap::from([("Resize".to_owned(), 1)]));
        assert!(placement.fallen_back(Device::Cpu).is_empty());
        let all = read(&[" All nodes placed on [CPUExecutionProvider]. Number of nodes: 7"]);
        assert_eq!(all.fallen_back(Device::Cuda(0)), BTreeMap::from([("(all)".to_owned(), 7)]));
        assert!(!all.uses(Device::Cuda(0)));
    }
}
