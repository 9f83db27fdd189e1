//! Trains a network step by step on request, so that another program can be timed in turn: `scripts/bench_finetune.py`.
//!
//! ```text
//! training_step MODEL.onnx TEACHER.onnx [--batch B] [--micro-batch M] [--threads N] [--device D]
//!     [--update kernel|graph] [--precision float32|float16] [--provider-option NAME=VALUE]... [--onnxruntime PATH]
//! ```
//!
//! For every line on standard input, runs one training step (teacher output, forward and backward pass, clipping,
//! AdamW, moving average) on random samples, and prints its time in milliseconds. With `--losses N`, runs N steps
//! instead and prints the loss of each, then the median time and the device they ran on. The networks must take a
//! sample and a timestep as their only inputs.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use ndarray::ArrayD;
use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::array::Array;
use onnx_diffprune::collective::Alone;
use onnx_diffprune::diffusion::{Noising, ProcessOptions, RoleNames, Roles};
use onnx_diffprune::error::Error;
use onnx_diffprune::finetune::draw::{Draws, TimestepDraw};
use onnx_diffprune::finetune::graph::TrainingGraph;
use onnx_diffprune::finetune::objective::Objective;
use onnx_diffprune::finetune::optimizer::OptimizerOptions;
use onnx_diffprune::finetune::pass::TrainingPass;
use onnx_diffprune::finetune::schedule::{Rate, RateSchedule};
use onnx_diffprune::finetune::teacher::Teacher;
use onnx_diffprune::finetune::teaching::Teaching;
use onnx_diffprune::finetune::trainer::{CleanBatch, CleanSamples, StepOptions, Trainer};
use onnx_diffprune::gradient::pass::PassOptions;
use onnx_diffprune::gradient::{GradientOptions, Precision};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::load::load;
use onnx_diffprune::runtime::{Device, Runtime, SessionOptions};
use onnx_diffprune::training::trained_weights;

/// Any error.
type Failure = Box<dyn std::error::Error>;

/// Samples of pure noise.
struct Drawn {
    draws: Draws,
    dims: Vec<usize>,
    position: u64,
}

impl CleanSamples for Drawn {
    fn next(&mut self) -> Result<CleanBatch, Error> {
        let positions: Vec<u64> = (self.position..self.position + self.dims[0] as u64).collect();
        self.position += self.dims[0] as u64;
        let values: ArrayD<f32> = self.draws.noise(&positions, &self.dims);
        let conditioning: Vec<(String, Array)> = Vec::new();
        Ok(CleanBatch { positions, values, conditioning })
    }
}

fn opened(path: &str) -> Result<Analysis, Error> {
    analyse(&load(Path::new(path))?)
}

/// Returns the resident memory in bytes, or zero if the system does not report it.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    1024 * kibibytes.unwrap_or(0)
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let [model, teacher, options @ ..] = arguments else {
        return Err(
            "usage: training_step MODEL.onnx TEACHER.onnx [--batch B] [--micro-batch M] [--threads N] [--device D] \
             [--update kernel|graph] [--precision float32|float16] [--provider-option NAME=VALUE]... [--losses N] [--onnxruntime PATH]".into()
        );
    };
    let (mut batch, mut micro_batch, mut threads, mut library) = (32, None, None, None);
    let (mut device, mut update, mut losses) = (Device::Cpu, None, None);
    let (mut provider_options, mut precision) = (Vec::new(), Precision::Float32);
    for pair in options.chunks(2) {
        match pair {
            [name, value] if name == "--batch" => batch = value.parse()?,
            [name, value] if name == "--micro-batch" => micro_batch = Some(value.parse()?),
            [name, value] if name == "--threads" => threads = Some(value.parse()?),
            [name, value] if name == "--onnxruntime" => library = Some(PathBuf::from(value)),
            [name, value] if name == "--device" => device = value.parse::<Device>()?,
            [name, value] if name == "--update" => update = Some(serde_json::from_value(value.as_str().into())?),
            [name, value] if name == "--provider-option" => {
                provider_options.extend(value.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            [name, value] if name == "--precision" => precision = serde_json::from_value(value.as_str().into())?,
            [name, value] if name == "--losses" => losses = Some(value.parse::<usize>()?),
            other => return Err(format!("unknown option {other:?}").into()),
        }
    }
    Runtime::set_provider_options(provider_options);
    let runtime = Runtime::open(library.as_deref())?;
    println!("onnxruntime {}\nbase {}", runtime.version(), resident());
    let (analysis, of_teacher) = (opened(model)?, opened(teacher)?);
    let roles = Roles::recognise(&analysis.model, &analysis.graph, &analysis.facts, &RoleNames::default())?;
    let process = ProcessOptions::default().configure(&roles)?.process;
    let given = Sizes::default();
    let micro_batch = micro_batch.unwrap_or(batch);
    let sizes = roles.sizes(&analysis.facts, &given, micro_batch);
    let optimizer = OptimizerOptions::default();
    let objective = Objective::default();
    let options = GradientOptions {
        sizes: sizes.clone(),
        loss: objective.terms(&process, (&roles.prediction.name, None), &[], 1.0),
        precision,
        wanted: trained_weights(&analysis, &[])?,
        ..GradientOptions::default()
    };
    let graph = TrainingGraph::build(&analysis, &options, device)?;
    let pass =
        TrainingPass::new(runtime, &analysis, &graph, &PassOptions { threads, device, ..PassOptions::default() })?;
    drop(graph);
    let session = SessionOptions { threads, device, ..SessionOptions::default() };
    let teacher =
        Teaching::new(Teacher::new(runtime, &of_teacher, (&roles, &given, micro_batch), &[], &session)?, Vec::new());
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let noising = Noising { process: &process, roles: &roles, facts: &analysis.facts, sizes: &given };
    let steps = process.schedule.step_count();
    let draws = Draws { seed: 0, timesteps: TimestepDraw::Uniform, steps, batch };
    let rate = Rate { peak: 1e-4, schedule: RateSchedule::Constant, warmup: 0, steps: u64::MAX };
    let of_step = StepOptions { batch, micro_batch, objective, optimizer, update, rate };
    let mut trainer = Trainer::new(pass, Some(teacher), (noising, draws), of_step, Arc::new(Alone))?;
    let mut data = Drawn { draws, dims: roles.sample.dims(&sizes)?, position: 0 };
    if let Some(count) = losses {
        return print_losses(&mut trainer, &mut data, count);
    }
    println!("ready");
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let started = Instant::now();
        trainer.step(&mut data)?;
        println!("{:.3}", 1e3 * started.elapsed().as_secs_f64());
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Runs steps, and prints their losses and times.
fn print_losses(trainer: &mut Trainer<'_>, data: &mut Drawn, count: usize) -> Result<(), Failure> {
    let mut times = Vec::with_capacity(count);
    for step in 0..count {
        let started = Instant::now();
        let report = trainer.step(data)?;
        times.push(1e3 * started.elapsed().as_secs_f64());
        println!("loss_{step} {:.9e}", report.loss);
    }
    // The first steps choose algorithms and allocate memory.
    let mut later = times.split_off(2.min(count.saturating_sub(1)));
    later.sort_by(f64::total_cmp);
    println!("median_ms {:.3}", later.get(later.len() / 2).copied().unwrap_or(f64::NAN));
    println!("execution {}", trainer.execution());
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
