//! Measures the latency of two models in turn on a device, for instance a pruned one and its original.
//!
//! ```text
//! latency ORIGINAL.onnx PRUNED.onnx [--device D] [--allow-fallback] [--batch B] [--runs N] [--onnxruntime PATH]
//! ```
//!
//! Prints lines of a name and a value. Inputs and outputs are in CPU memory, so the times include copies to and from
//! the device.

use std::path::PathBuf;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::graph::sizes::{Sizes, sizes_for};
use onnx_diffprune::inputs::random_inputs;
use onnx_diffprune::runtime::{Runtime, SessionOptions, interleaved_latency};

/// The names that exporters use for the symbolic batch dimension.
const BATCH_NAMES: [&str; 4] = ["batch", "batch_size", "N", "B"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [original, pruned, rest @ ..] = arguments.as_slice() else {
        return Err("usage: latency ORIGINAL.onnx PRUNED.onnx [options]".into());
    };
    let mut options = SessionOptions { record_placement: true, ..SessionOptions::default() };
    let (mut batch, mut runs, mut library) = (1i64, 100usize, None::<PathBuf>);
    let mut rest = rest.iter();
    while let Some(option) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{option}: expected a value"));
        match option.as_str() {
            "--device" => options.device = value()?.parse()?,
            "--allow-fallback" => options.allow_fallback = true,
            "--batch" => batch = value()?.parse()?,
            "--runs" => runs = value()?.parse()?,
            "--onnxruntime" => library = Some(value()?.into()),
            _ => return Err(format!("{option}: unknown option").into()),
        }
    }
    options.as_deployed = true;
    let runtime = Runtime::open(library.as_deref())?;
    let model = onnx_diffprune::load::load(original.as_ref())?;
    let analysis = analyse(&model)?;
    let given: Sizes = BATCH_NAMES.iter().map(|name| ((*name).to_owned(), batch)).collect();
    let inputs = random_inputs(&analysis, &sizes_for(&analysis.facts, &given), 1)?;
    let mut of_original = runtime.session_from_file(original.as_ref(), &options)?;
    let mut of_pruned = runtime.session_from_file(pruned.as_ref(), &options)?;
    println!("device {}", of_pruned.execution().used);
    println!("execution {}", of_pruned.execution());
    let measured = interleaved_latency(&mut [&mut of_original, &mut of_pruned], &[&inputs, &inputs], runs, 10, 120.0)?;
    for (name, latency) in ["original", "pruned"].iter().zip(&measured) {
        println!("{name}_ms {:.3}", latency.median_ms);
        println!("{name}_min_ms {:.3}", latency.min_ms);
    }
    println!("runs {}", measured[0].run_count);
    println!("speedup {:.2}", measured[0].median_ms / measured[1].median_ms);
    Ok(())
}
