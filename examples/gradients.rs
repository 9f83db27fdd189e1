//! Sums the gradients of a network over timesteps on a device, measures the time per timestep, and writes the sums.
//!
//! ```text
//! gradients run MODEL.onnx OUT.npz [--device D] [--allow-fallback] [--timesteps N] [--batch B] [--micro-batch M]
//!               [--squared] [--half] [--bound] [--onnxruntime PATH]
//! gradients serve MODEL.onnx [--threads N] [the same options]
//! gradients compare A.npz B.npz TOLERANCE
//! ```
//!
//! Inputs and target are random and differ between timesteps, but not between devices. `run` prints lines of a name and
//! a value. Times are in milliseconds per timestep, without the first two timesteps. `compare` ends with exit code 1 if
//! an array differs by more than the tolerance, relative to its largest element. `serve` sums one more timestep for
//! every line on standard input and prints its time in milliseconds, so that another program can be timed in turn, as
//! in `scripts/bench_gradients.py`.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::array::{Array, ArrayData, ElementType};
use onnx_diffprune::error::Error;
use onnx_diffprune::gradient::accumulate::{AccumulateOptions, Accumulated, Denoising, ThresholdMode, accumulate};
use onnx_diffprune::gradient::pass::{GradientPass, PassOptions};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, Precision, TARGET};
use onnx_diffprune::graph::sizes::{Sizes, sizes_for};
use onnx_diffprune::inputs::random_inputs;
use onnx_diffprune::npz;
use onnx_diffprune::runtime::Runtime;
use onnx_diffprune::runtime::random_inputs::{InputDim, InputSpec, draw};

/// Any error.
type Failure = Box<dyn std::error::Error>;

/// The names that exporters use for the symbolic batch dimension.
const BATCH_NAMES: [&str; 4] = ["batch", "batch_size", "N", "B"];

/// The options of `run`.
struct Options {
    model: PathBuf,
    /// The path of the sums. `None`: timesteps run on request.
    output: Option<PathBuf>,
    pass: PassOptions,
    timesteps: usize,
    batch: usize,
    micro_batch: usize,
    squared: bool,
    precision: Precision,
    library: Option<PathBuf>,
}

/// Random inputs and targets.
struct RandomTask<'a> {
    analysis: &'a Analysis,
    sizes: Sizes,
    target: InputSpec,
    timesteps: Vec<f64>,
    batch: usize,
}

impl Denoising for RandomTask<'_> {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        let seed = (at * self.batch + samples.start) as u64;
        let mut inputs = random_inputs(self.analysis, &self.sizes, seed)?;
        // The gradient graph computes in float32.
        for (_, array) in inputs.iter_mut().filter(|(_, array)| array.element_type().is_float()) {
            *array = array.cast(ElementType::F32);
        }
        let target = draw(std::slice::from_ref(&self.target), &BTreeMap::new(), seed)
            .map_err(|error| Error::unmet(error.to_string()))?;
        inputs.extend(target);
        Ok(inputs)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match texts.as_slice() {
        ["run", model, output, rest @ ..] => options(model, Some(output), rest).and_then(|options| run(&options)),
        ["serve", model, rest @ ..] => options(model, None, rest).and_then(|options| run(&options)),
        ["compare", one, other, tolerance] => compare(one, other, tolerance),
        _ => Err("usage: gradients run MODEL.onnx OUT.npz [options], gradients serve MODEL.onnx [options], \
                 or gradients compare A.npz B.npz TOLERANCE"
            .into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn options(model: &str, output: Option<&str>, rest: &[&str]) -> Result<Options, Failure> {
    let mut options = Options {
        model: model.into(),
        output: output.map(PathBuf::from),
        pass: PassOptions::default(),
        timesteps: if output.is_some() { 10 } else { 1_000_000 },
        batch: 4,
        micro_batch: 4,
        squared: false,
        precision: Precision::Float32,
        library: None,
    };
    let mut rest = rest.iter();
    while let Some(option) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{option}: expected a value"));
        match *option {
            "--device" => options.pass.device = value()?.parse()?,
            "--allow-fallback" => options.pass.allow_fallback = true,
            "--bound" => options.pass.keeps_on_device = Some(true),
            "--timesteps" => options.timesteps = value()?.parse()?,
            "--batch" => options.batch = value()?.parse()?,
            "--micro-batch" => options.micro_batch = value()?.parse()?,
            "--threads" => options.pass.threads = Some(value()?.parse()?),
            "--squared" => options.squared = true,
            "--half" => options.precision = Precision::Float16,
            "--onnxruntime" => options.library = Some(value()?.into()),
            _ => return Err(format!("{option}: unknown option").into()),
        }
    }
    if options.timesteps == 0 || options.micro_batch == 0 || !options.batch.is_multiple_of(options.micro_batch) {
        return Err("--timesteps and --micro-batch must be at least 1, --batch a multiple of --micro-batch".into());
    }
    Ok(options)
}

fn run(options: &Options) -> Result<bool, Failure> {
    let runtime = Runtime::open(options.library.as_deref())?;
    println!("base {}", resident_bytes());
    let model = onnx_diffprune::load::load(&options.model)?;
    let analysis = analyse(&model)?;
    let given: Sizes = BATCH_NAMES.iter().map(|name| ((*name).to_owned(), options.micro_batch as i64)).collect();
    let sizes = sizes_for(&analysis.facts, &given);
    let wanted = analysis.prunable_weights();
    let graph_options =
        GradientOptions { sizes: sizes.clone(), wanted, precision: options.precision, ..GradientOptions::default() };
    let graph = GradientGraph::build_for(&analysis, &graph_options, options.pass.device)?;
    let started = Instant::now();
    let mut pass = GradientPass::with_options(runtime, &graph, &model, &options.pass)?;
    let target_shape = graph.target_shape.clone();
    drop(graph);
    println!("load_seconds {:.2}", started.elapsed().as_secs_f64());
    println!("onnxruntime {}", runtime.version());
    println!("device {}", pass.execution().used);
    println!("execution {}", pass.execution());
    let task = RandomTask {
        analysis: &analysis,
        sizes,
        target: InputSpec {
            name: TARGET.to_owned(),
            element_type: ElementType::F32,
            dims: target_shape.iter().map(|size| InputDim::Fixed(*size)).collect(),
            range: None,
        },
        timesteps: (0..options.timesteps).map(|at| at as f64).collect(),
        batch: options.batch,
    };
    let how = AccumulateOptions {
        threshold: 0.0,
        mode: ThresholdMode::Prefix,
        sums_last: false,
        squared: options.squared,
        micro_batch: options.micro_batch,
    };
    let mut sum = Accumulated::new(pass.uses());
    let mut times = Vec::new();
    let is_server = options.output.is_none();
    println!("ready");
    let mut is_over = is_server && !is_asked()?;
    if !is_over {
        let mut started = Instant::now();
        accumulate(&mut pass, &model, &task, &how, None, &mut sum, |_| {
            let time = started.elapsed().as_secs_f64() * 1e3;
            times.push(time);
            if is_server {
                println!("{time:.3}");
                is_over = !is_asked().map_err(|error| Error::unmet(error.to_string()))?;
            }
            started = Instant::now();
            Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    let Some(output) = &options.output else { return Ok(true) };
    // The first timesteps load libraries, choose algorithms and build the graphs for summing.
    let mut steady: Vec<f64> = times.iter().skip(2.min(times.len() - 1)).copied().collect();
    steady.sort_by(f64::total_cmp);
    println!("timesteps {}", sum.visited);
    println!("first_ms {:.3}", times.first().copied().unwrap_or(f64::NAN));
    println!("median_ms {:.3}", steady[steady.len() / 2]);
    println!("min_ms {:.3}", steady[0]);
    let mut arrays: Vec<(String, Array)> = Vec::new();
    let losses: Vec<f32> = sum.curve.iter().map(|point| point.loss as f32).collect();
    arrays.push(("losses".to_owned(), Array::new(vec![losses.len()], ArrayData::F32(losses))?));
    for (gradient, values) in sum.uses.iter().zip(&sum.sums) {
        arrays.push((gradient.output.clone(), Array::new(vec![values.len()], ArrayData::F32(values.clone()))?));
    }
    npz::write(output, arrays.iter().map(|(name, array)| (name.as_str(), array)))?;
    Ok(true)
}

/// Returns the resident memory of this process, or zero if the system does not report it.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes * 1024)
}

/// Waits for a line. Returns `false` at the end of the input.
fn is_asked() -> std::io::Result<bool> {
    Ok(std::io::stdin().read_line(&mut String::new())? > 0)
}

/// Prints the largest relative difference of all arrays. Returns whether it is within the tolerance.
fn compare(one: &str, other: &str, tolerance: &str) -> Result<bool, Failure> {
    let tolerance: f64 = tolerance.parse()?;
    let one: BTreeMap<String, Array> = npz::read(one.as_ref())?.into_iter().collect();
    let other: BTreeMap<String, Array> = npz::read(other.as_ref())?.into_iter().collect();
    if !one.keys().eq(other.keys()) {
        return Err("expected arrays of the same names in both files".into());
    }
    let largest_of = |array: &Array| array.to_f64().iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let largest = one.values().map(largest_of).fold(0.0, f64::max);
    let mut worst = (0.0f64, "");
    for (name, array) in &one {
        let (values, others) = (array.to_f64(), other[name].to_f64());
        if values.len() != others.len() {
            return Err(format!(
                "{name}: expected the same number of elements, found {} and {}",
                values.len(),
                others.len()
            )
            .into());
        }
        // Gradients that are zero except for rounding (such as those of a key's bias) are compared to the scale of the
        // others.
        let scale = largest_of(array).max(1e-4 * largest).max(f64::MIN_POSITIVE);
        let difference = values.iter().zip(&others).map(|(a, b)| (a - b).abs());
        // A difference that is NaN must not get lost in a maximum.
        let difference = difference.fold(0.0f64, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) });
        if difference / scale > worst.0 {
            worst = (difference / scale, name);
        }
    }
    println!("arrays {}", one.len());
    println!("worst {:.2e}", worst.0);
    println!("worst_array {}", worst.1);
    Ok(!one.is_empty() && worst.0 < tolerance)
}
