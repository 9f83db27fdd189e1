//! A teacher that divides its samples into several runs, against ONNX Runtime with all samples in one run.

use std::path::Path;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::diffusion::{RoleNames, Roles};
use onnx_diffprune::finetune::features::Feature;
use onnx_diffprune::finetune::teacher::Teacher;
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::load::load;
use onnx_diffprune::lower;
use onnx_diffprune::runtime::SessionOptions;

use crate::support::fixtures::runtime;

/// Two runs of 96 samples: the largest value has 24,576 elements per sample.
const SAMPLES: usize = 192;

const FEATURE: &str = "/up_blocks.2/Concat_output_0";

#[test]
fn several_runs_produce_the_outputs_of_one_run_of_all_samples() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ddpm_fashion16.onnx");
    let analysis = analyse(&load(&path).unwrap()).unwrap();
    let roles = Roles::recognise(&analysis.model, &analysis.graph, &analysis.facts, &RoleNames::default()).unwrap();
    let values = (0..SAMPLES * 256).map(|at| (at as f32 * 0.37).sin()).collect();
    let times = (0..SAMPLES as i64).map(|at| at * 997 % 1000).collect();
    let inputs = vec![
        ("sample".to_owned(), Array { dims: vec![SAMPLES, 1, 16, 16], data: ArrayData::F32(values) }),
        ("timestep".to_owned(), Array { dims: vec![SAMPLES], data: ArrayData::I64(times) }),
    ];
    let options = SessionOptions::default();
    let names = [roles.prediction.name.as_str(), FEATURE];
    let mut session = lower::session_with_outputs(runtime(), &analysis.model, &names, &options).unwrap();
    let expected = session.run(&inputs).unwrap();

    let feature = Feature { name: FEATURE.to_owned(), kept: vec![None; 4] };
    let at = (&roles, &Sizes::default(), SAMPLES);
    let mut teacher = Teacher::new(runtime(), &analysis, at, &[feature], &options).unwrap();
    let taught = teacher.predict(&inputs).unwrap();
    assert_eq!(taught.features[0].dims, [SAMPLES, 96, 16, 16]);
    let pairs = [
        (taught.output, expected[0].1.to_f64()),
        (taught.features[0].to_f64().into_iter().map(|value| value as f32).collect(), expected[1].1.to_f64()),
    ];
    for (found, expected) in pairs {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        let worst = found.iter().zip(&expected).fold(0.0f64, |worst, (a, b)| worst.max((f64::from(*a) - b).abs()));
        assert!(worst < 1e-5 * largest, "{worst} of {largest}");
    }
}
