//! The inputs, outputs and operator sets of both files.

use std::collections::HashSet;

use super::{Comparison, Stop};
use crate::onnx::{GraphProto, ModelProto, ValueInfoProto};

impl<'a> Comparison<'a> {
    /// Compares inputs, outputs and operator sets.
    pub(super) fn interface(&self) -> Result<(), Stop> {
        let of = |graph: &'a GraphProto| {
            let initialized: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
            let inputs = graph.input.iter().filter(move |input| !initialized.contains(input.name.as_str()));
            let inputs: Vec<&ValueInfoProto> = inputs.collect();
            (inputs, graph.output.iter().collect::<Vec<_>>())
        };
        let (inputs, outputs) = of(self.analysis.model.graph());
        let (found_inputs, found_outputs) = of(self.pruned.graph());
        for (what, expected, found) in [("input", inputs, found_inputs), ("output", outputs, found_outputs)] {
            if expected.len() != found.len() {
                return Err(Stop::Changed(format!("expected {} {what}s, found {}", expected.len(), found.len())));
            }
            for (expected, found) in expected.iter().zip(&found) {
                if expected.name != found.name {
                    let text = format!("expected {what} {:?}, found {:?}", expected.name, found.name);
                    return Err(Stop::Changed(text));
                }
                if expected.r#type != found.r#type {
                    let text = format!("{what} {:?}: the declared type or shape is not the original's", expected.name);
                    return Err(Stop::Changed(text));
                }
            }
        }
        let version = |proto: &ModelProto, domain: &str| {
            let plain = |domain: &str| if domain == "ai.onnx" { String::new() } else { domain.to_owned() };
            proto.opset_import.iter().find(|import| plain(&import.domain) == plain(domain)).map(|import| import.version)
        };
        for import in &self.analysis.model.proto().opset_import {
            let found = version(self.pruned.proto(), &import.domain);
            if found != Some(import.version) {
                let found = found.map_or("none".to_owned(), |version| version.to_string());
                let text = format!("operator set {:?}: expected {}, found {found}", import.domain, import.version);
                return Err(Stop::Changed(text));
            }
        }
        Ok(())
    }
}
