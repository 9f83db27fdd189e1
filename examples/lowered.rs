//! Writes a network with its fused operators lowered to standard ones, for `scripts/check_lowering.py`.
//!
//! `cargo run --example lowered -- IN.onnx OUT.onnx`
//!
//! Prints the fused operators that are left in OUT.onnx, one per line.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::graph::Reader;
use onnx_diffprune::load::{from_bytes, load};
use onnx_diffprune::lower::lowered_model;
use onnx_diffprune::onnx::ModelProto;
use onnx_diffprune::verify::reference_model;
use prost::Message;

/// Standard operators that other standard operators can express.
const FUSED: &[&str] = &[
    "Attention",
    "Celu",
    "Gelu",
    "GroupNormalization",
    "HardSwish",
    "InstanceNormalization",
    "LayerNormalization",
    "MeanVarianceNormalization",
    "Mish",
    "RMSNormalization",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "Swish",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        return Err("usage: lowered IN.onnx OUT.onnx".into());
    };
    let model = load(input.as_ref())?;
    let lowered = from_bytes(input.as_ref(), lowered_model(&model)?.encode_to_vec().into())?;
    let lowered = with_norms_written(&analyse(&lowered)?)?;
    std::fs::write(output, lowered.encode_to_vec())?;
    let nodes = lowered.graph.iter().flat_map(|graph| &graph.node);
    let left: BTreeSet<(&str, &str)> = nodes
        .map(|node| (node.domain.as_str(), node.op_type.as_str()))
        .filter(|(domain, op_type)| is_fused(domain, op_type))
        .collect();
    left.iter().for_each(|(domain, op_type)| println!("{domain}:{op_type}"));
    Ok(())
}

/// Standard norms that lowering leaves unchanged. The masked reference expands them.
const NORMS: &[&str] = &[
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
];

fn is_fused(domain: &str, op_type: &str) -> bool {
    if matches!(domain, "" | "ai.onnx") { FUSED.contains(&op_type) } else { true }
}

/// Returns the network with the standard norms expanded too: its reference with all inputs of norms masked by ones.
/// This also tests the rules of masked nodes.
fn with_norms_written(analysis: &Analysis) -> Result<ModelProto, onnx_diffprune::error::Error> {
    let mut kept = HashMap::new();
    for node in &analysis.graph.nodes {
        // A masked norm has no outputs for mean and deviation.
        let reads_statistics = [1, 2].iter().any(|slot| node.output(*slot).is_some());
        if reads_statistics || !NORMS.contains(&node.proto.op_type.as_str()) {
            continue;
        }
        let shape = node.input(0).and_then(|value| analysis.facts.values[value].as_ref()?.shape.as_ref());
        let sizes = shape.into_iter().flatten().map(|size| size.as_const().and_then(|size| usize::try_from(size).ok()));
        let all = sizes.enumerate().filter_map(|(axis, size)| Some((axis, (0..size?).collect())));
        if let Some((axis, all)) = all.last() {
            kept.insert(Reader { node: node.id, slot: 0 }, BTreeMap::from([(axis, all)]));
        }
    }
    Ok(reference_model(analysis, &kept)?.0)
}
