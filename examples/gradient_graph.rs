//! Writes the gradient graph of a network: forward pass, loss, and the gradients of all weights that can be pruned or
//! trained.
//!
//! `cargo run --release --example gradient_graph -- MODEL.onnx OUT.onnx [--half] [NAME=SIZE ...]`
//!
//! `--half` computes convolutions and matrix products in float16.

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, Precision};
use onnx_diffprune::graph::sizes::sizes_for;
use onnx_diffprune::training::trained_weights;
use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, sizes @ ..] = arguments.as_slice() else {
        return Err("usage: gradient_graph MODEL.onnx OUT.onnx [--half] [NAME=SIZE ...]".into());
    };
    let (half, sizes): (Vec<_>, Vec<_>) = sizes.iter().partition(|argument| *argument == "--half");
    let precision = if half.is_empty() { Precision::Float32 } else { Precision::Float16 };
    let mut given = std::collections::BTreeMap::new();
    for size in sizes {
        let (name, size) = size.split_once('=').ok_or("a size is NAME=N")?;
        given.insert(name.to_owned(), size.parse()?);
    }
    let model = onnx_diffprune::load::load(input.as_ref())?;
    let analysis = analyse(&model)?;
    let mut wanted = analysis.prunable_weights();
    wanted.extend(trained_weights(&analysis, &[])?);
    wanted.sort_unstable();
    wanted.dedup();
    let sizes = sizes_for(&analysis.facts, &given);
    let options = GradientOptions { sizes, wanted, precision, ..GradientOptions::default() };
    let graph = GradientGraph::build(&analysis, &options)?;
    std::fs::write(output, graph.model.encode_to_vec())?;
    println!("{} gradients, about {} MB of activations", graph.gradients.len(), graph.activation_bytes >> 20);
    Ok(())
}
