//! Runs arbitrary bytes through load, shape inference, coupling, selection and rewriting: errors are fine, panics are
//! not.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run load_couple -- -rss_limit_mb=4096`

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use onnx_diffprune::load::from_bytes;
use onnx_diffprune::analysis::analyse;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::prune::cutting::cut;

fuzz_target!(|data: &[u8]| {
    // A folder that does not exist, so that external data is never found.
    let path = Path::new("/nonexistent/fuzz.onnx");
    let Ok(model) = from_bytes(path, bytes::Bytes::copy_from_slice(data)) else { return };
    let Ok(analysis) = analyse(&model) else { return };
    let _ = cut(&analysis, &PruneOptions::by_magnitude(Target::Ratio(0.5)), None);
});
