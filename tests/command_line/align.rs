//! The option `--align` as users run it.

use super::tool::{run, succeed};
use crate::support::files::decoded;
use crate::support::fixtures::fixture;

#[test]
fn hidden_widths_are_multiples_for_the_runtime_and_the_cost_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (fixture("ddpm_fashion16.onnx"), folder.path().join("out.onnx"));
    let arguments = [input.to_str().unwrap(), output.to_str().unwrap(), "--criterion", "magnitude", "--no-verify"];
    for (ratio, align, multiple) in [("0.3", "tensorrt", 8), ("0.4", "cpu", 16), ("0.6", "ort-cuda:int8", 32)] {
        let ran = succeed(&[&arguments[..], &["--ratio", ratio, "--align", align]].concat());
        assert!(
            ran.err.contains(&format!("aligned to {align}:")) && ran.err.contains(&format!("multiples of {multiple} ")),
            "{}",
            ran.err
        );
        let model = decoded(&output);
        let narrow = |dims: &[i64]| dims.iter().any(|size| *size % multiple != 0);
        // Kernels of convolutions between hidden channels. Those of the image and of norms need not be multiples.
        let kernels = model.graph.initializer.iter().filter(|tensor| tensor.dims.len() == 4 && tensor.dims[2] == 3);
        let hidden: Vec<_> = kernels.filter(|tensor| tensor.dims[0] > 1 && tensor.dims[1] > 1).collect();
        assert!(hidden.len() > 15, "{}", hidden.len());
        for tensor in hidden {
            assert!(!narrow(&tensor.dims[..2]), "{align}: {} {:?}", tensor.name, tensor.dims);
        }
    }
    for wrong in ["tensorrt:int4", "gpu", "cpu:"] {
        let ran = run(&[&arguments[..], &["--ratio", "0.3", "--align", wrong]].concat());
        assert_eq!(ran.code, 2);
        assert!(ran.err.contains("--align"), "{}", ran.err);
    }
}
