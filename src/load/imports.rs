//! Imports of operator sets that a model uses without importing them.
//!
//! ONNX requires an import of every operator set. ONNX Runtime adds the sets that it knows, except the standard one,
//! whose version decides what its operators mean.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::graph::model::Model;
use crate::onnx::{GraphProto, OperatorSetIdProto};

/// Operator sets of ONNX Runtime that have only one version.
const OF_ONE_VERSION: [&str; 4] =
    ["com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc"];

/// Imports the used operator sets that have only one version. Adds a note for every missing import.
pub(super) fn complete(model: &mut Model) {
    let mut used = BTreeSet::new();
    domains(model.graph(), &mut used);
    let missing: Vec<String> =
        used.into_iter().filter(|domain| model.opset(domain).is_none()).map(str::to_owned).collect();
    for domain in missing {
        let note = match OF_ONE_VERSION.contains(&domain.as_str()) {
            true => {
                let import = OperatorSetIdProto { domain: domain.clone(), version: 1 };
                Arc::make_mut(&mut model.proto).opset_import.push(import);
                format!(
                    "the model uses operators of domain {domain:?} without importing its operator set; version 1 is \
                     assumed"
                )
            }
            false => {
                format!("the model uses operators of {domain:?} without importing the set; add it to opset_import")
            }
        };
        model.note(note);
    }
}

/// Collects the domains of all nodes, including those of subgraphs. The standard domain is the empty string.
fn domains<'g>(graph: &'g GraphProto, found: &mut BTreeSet<&'g str>) {
    for node in &graph.node {
        found.insert(node.domain.as_str());
        for attribute in &node.attribute {
            attribute.g.iter().chain(&attribute.graphs).for_each(|inner| domains(inner, found));
        }
    }
}
