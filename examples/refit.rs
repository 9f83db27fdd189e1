//! Cuts a network, fits its weights and verifies the result; prints what became of every layer as JSON. Arguments:
//! original, data, scheduler configuration, output, ratio, criterion, then, each with a default, samples, ridge, seed,
//! batch, weighting (0: uniform) and rows. The exit code is 1 where the result fails verification, 2 for other errors.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;

use onnx_diffprune::prune::RefitSettings;
use onnx_diffprune::{CriterionOption, Error, ErrorKind, Model, Progress, Ratio, Runtime, ScoreOptions};

fn run(arguments: &[String]) -> Result<(), Error> {
    let [input, data, config, output, ratio, criterion, rest @ ..] = arguments else { panic!("arguments") };
    let setting = |at: usize, default: f64| rest.get(at).map_or(default, |text| text.parse().unwrap());
    let runtime = Runtime::open(None)?;
    let mut options = ScoreOptions::diff_pruning(data);
    options.criterion = match criterion.as_str() {
        "magnitude" => CriterionOption::Magnitude,
        "random" => CriterionOption::Random,
        _ => CriterionOption::DiffPruning,
    };
    options.gradients.timesteps = Some(100);
    options.gradients.network.process.scheduler_config = Some(config.into());
    options.seed = setting(2, 0.0) as u64;
    let model = Model::open(input)?;
    let analysis = model.analyse()?;
    let scores = analysis.score(&options, &runtime)?;
    let staged = scores.cut(Ratio(ratio.parse().unwrap()))?.stage(output)?;
    let mut settings = RefitSettings { samples: setting(0, 2048.0) as usize, ..RefitSettings::default() };
    settings.options.ridge = setting(1, 1e-3);
    settings.batch = rest.get(3).map(|text| text.parse().unwrap());
    if setting(4, 1.0) == 0.0 {
        settings.options.weighting = onnx_diffprune::prune::Weighting::Uniform;
    }
    settings.options.rows = setting(5, settings.options.rows as f64) as usize;
    let started = std::time::Instant::now();
    let mut watch = |progress: Progress<'_>| {
        if let Progress::At { done, total, .. } = progress {
            eprint!("\r{done}/{total}  ");
        }
        ControlFlow::Continue(())
    };
    let (staged, layers) = staged.refit(&runtime, &options, &settings, &mut watch)?;
    eprintln!("\n{:.1} s", started.elapsed().as_secs_f64());
    let layers: Vec<serde_json::Value> = layers
        .into_iter()
        .map(|layer| {
            serde_json::json!({
                "node": layer.node, "weight": layer.weight, "errors": layer.errors, "reason": layer.reason,
            })
        })
        .collect();
    staged.verify(&runtime)?.save()?;
    println!("{}", serde_json::json!({ "layers": layers }));
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("\n{error}");
        std::process::exit(if error.kind() == ErrorKind::VerificationFailed { 1 } else { 2 });
    }
}
