//! Cuts a network and fits its weights, to try variants: original, data, scheduler configuration, output, ratio.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;

use onnx_diffprune::prune::RefitSettings;
use onnx_diffprune::{CriterionOption, Model, Progress, Ratio, Runtime, ScoreOptions};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, data, config, output, ratio, criterion, rest @ ..] = arguments.as_slice() else { panic!("arguments") };
    let setting = |at: usize, default: f64| rest.get(at).map_or(default, |text| text.parse().unwrap());
    let runtime = Runtime::open(None).unwrap();
    let mut options = ScoreOptions::diff_pruning(data);
    options.criterion = match criterion.as_str() {
        "magnitude" => CriterionOption::Magnitude,
        "random" => CriterionOption::Random,
        _ => CriterionOption::DiffPruning,
    };
    options.gradients.timesteps = Some(100);
    options.gradients.network.process.scheduler_config = Some(config.into());
    options.seed = setting(2, 0.0) as u64;
    let model = Model::open(input).unwrap();
    let analysis = model.analyse().unwrap();
    let scores = analysis.score(&options, &runtime).unwrap();
    let staged = scores.cut(Ratio(ratio.parse().unwrap())).unwrap().stage(output).unwrap();
    let mut settings = RefitSettings { samples: setting(0, 2048.0) as usize, ..RefitSettings::default() };
    settings.options.ridge = setting(1, 1e-3);
    settings.batch = Some(setting(3, 32.0) as usize);
    if setting(4, 1.0) == 0.0 {
        settings.options.weighting = onnx_diffprune::prune::Weighting::Uniform;
    }
    let started = std::time::Instant::now();
    let mut watch = |progress: Progress<'_>| {
        if let Progress::At { done, total, .. } = progress {
            eprint!("\r{done}/{total}  ");
        }
        ControlFlow::Continue(())
    };
    let (staged, layers) = staged.refit(&runtime, &options, &settings, &mut watch).unwrap();
    eprintln!("\n{:.1} s", started.elapsed().as_secs_f64());
    for layer in layers {
        println!("{:60} {:40} {:?} {}", layer.node, layer.weight, layer.errors, layer.reason.unwrap_or_default());
    }
    staged.save().unwrap();
}
