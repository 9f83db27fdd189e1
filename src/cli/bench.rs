//! The command `bench`: measures the latency of networks side by side, at the sizes of their deployment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use onnx_diffprune::benchmarks::{BenchOptions, BenchPoint, BenchReport, bench};
use onnx_diffprune::networks::UsualSizes;
use onnx_diffprune::{Error, Model, Stage};

use super::args::Cli;
use super::config::parse_sizes;
use super::diffusion_args::DiffusionArgs;
use super::open_runtime;
use super::printer::{Printer, Watcher, bytes_text, percent, table};
use super::ranks::device;
use super::surroundings::{Surroundings, network_of};

/// Number of tokens in a caption of the CLIP text encoder.
const TOKENS: usize = 77;

/// Number of operators to list without `--verbose`.
const OPERATORS_SHOWN: usize = 12;

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// The networks to measure, for instance an original and its pruned version. The first is the baseline.
    #[arg(value_name = "MODEL.onnx", required = true)]
    networks: Vec<PathBuf>,
    /// The size of a symbolic dimension in the deployment. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    /// Batch sizes to measure, one after the other, such as 1,2,4 [default: that of --size, else 1 for a symbolic
    /// batch].
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = clap::value_parser!(i64).range(1..))]
    batch: Vec<i64>,
    /// Number of measured rounds; every network runs once per round. Five warm-up rounds come first.
    #[arg(long, value_name = "N", default_value_t = 50)]
    runs: usize,
    /// Time limit in seconds for each batch size: no round begins after it.
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    seconds: f64,
    /// The device to run on: cpu, cuda, cuda:1 or tensorrt [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Run nodes on the CPU that the device does not support, instead of failing.
    #[arg(long)]
    allow_fallback: bool,
    /// Number of threads within an operator [default: chosen by ONNX Runtime].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Seed of the random inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Do not measure the time by operator.
    #[arg(long)]
    no_operators: bool,
}

pub(super) fn run(args: &BenchArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let networks: Vec<Model> =
        args.networks.iter().map(|path| Model::open(network_of(path)?)).collect::<Result<_, _>>()?;
    // Usual sizes come from the pipeline of the first network that has one; captions have 77 tokens by default.
    let mut usual_sizes = UsualSizes { sample: None, tokens: Some(TOKENS) };
    for network in &networks {
        let around = Surroundings::of(&DiffusionArgs::default(), network.path(), false)?;
        let found = around.diffusion.usual_sizes;
        if found != UsualSizes::default() {
            around.print(printer);
            usual_sizes = UsualSizes { tokens: found.tokens.or(usual_sizes.tokens), ..found };
            break;
        }
    }
    let options = BenchOptions {
        sizes: parse_sizes(&args.size)?,
        usual_sizes,
        batches: args.batch.clone(),
        runs: args.runs,
        seconds: args.seconds,
        device: args.device.as_deref().map(device).transpose()?.unwrap_or_default(),
        allow_fallback: args.allow_fallback,
        threads: args.threads,
        seed: args.seed,
        by_operator: !args.no_operators,
    };
    let runtime = open_runtime(cli)?;
    networks.iter().for_each(|model| printer.notes(model));
    let mut watcher = Watcher::new(printer, |stage| (stage == Stage::Timing).then_some("measuring"));
    let report = bench(&networks, &runtime, &options, &mut |progress| watcher.see(progress))?;
    drop(watcher);
    if !report.assumed.is_empty() {
        let sizes: Vec<String> = report.assumed.iter().map(|(name, size)| format!("{name}={size}")).collect();
        printer.warning(&format!(
            "measured at assumed sizes, {}: give the sizes of the deployment with --size",
            sizes.join(", ")
        ));
    }
    printer.result(&report, || text(&report, printer.is_verbose()));
    Ok(true)
}

fn text(report: &BenchReport, is_verbose: bool) -> String {
    let mut parts = vec![format!("ran on: {}", report.execution)];
    for point in &report.points {
        let shapes: Vec<String> = point.inputs.iter().map(|(name, dims)| format!("{name} {dims:?}")).collect();
        parts.push(format!("{}\n{}", shapes.join(", "), latencies(report, point)));
        let times = operators(report, point, is_verbose);
        if !times.is_empty() {
            parts.push(times);
        }
    }
    parts.join("\n\n")
}

/// Returns the table of latencies, with one row per network.
fn latencies(report: &BenchReport, point: &BenchPoint) -> String {
    let of_first = point.networks.first().map_or(f64::NAN, |network| network.latency.median_ms);
    let row = |(path, network): (&PathBuf, &onnx_diffprune::benchmarks::BenchNetwork)| {
        let latency = &network.latency;
        vec![
            path.display().to_string(),
            format!("{:.2} ms", latency.median_ms),
            format!("{:.2} ms", latency.p90_ms),
            percent(latency.median_ms, of_first),
            network.peak_memory.map_or("-".to_owned(), |bytes| bytes_text(bytes as f64)),
            latency.run_count.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = report.networks.iter().zip(&point.networks).map(row).collect();
    table(&["network", "median", "p90", "vs first", "peak memory", "runs"], &rows)
}

/// Returns the table of times by operator: columns for each network, and the time of the last relative to the first.
fn operators(report: &BenchReport, point: &BenchPoint, is_verbose: bool) -> String {
    // The largest time of each operator in any network.
    let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
    for time in point.networks.iter().flat_map(|network| &network.operators) {
        let entry = largest.entry(&time.operator).or_default();
        *entry = entry.max(time.median_ms);
    }
    if largest.is_empty() {
        return String::new();
    }
    let mut names: Vec<(&str, f64)> = largest.into_iter().collect();
    names.sort_by(|a, b| b.1.total_cmp(&a.1));
    let shown = if is_verbose { names.len() } else { names.len().min(OPERATORS_SHOWN) };
    let time_of = |at: usize, name: &str| point.networks[at].operators.iter().find(|time| time.operator == name);
    let rows: Vec<Vec<String>> = names[..shown]
        .iter()
        .map(|(name, _)| {
            let mut row = vec![(*name).to_owned()];
            for at in 0..point.networks.len() {
                row.push(time_of(at, name).map_or("-".to_owned(), |time| format!("{:.3} ms", time.median_ms)));
                row.push(time_of(at, name).map_or("-".to_owned(), |time| time.count.to_string()));
            }
            if point.networks.len() > 1 {
                let ms = |at: usize| time_of(at, name).map_or(0.0, |time| time.median_ms);
                row.push(percent(ms(point.networks.len() - 1), ms(0)));
            }
            row
        })
        .collect();
    let mut header = vec!["operator".to_owned()];
    for path in &report.networks {
        header.push(path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned());
        header.push("nodes".to_owned());
    }
    if point.networks.len() > 1 {
        header.push("last vs first".to_owned());
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = table(&header, &rows);
    if shown < names.len() {
        let rest: f64 = names[shown..].iter().map(|(_, ms)| ms).sum();
        text +=
            &format!("\n({} more operators, at most {rest:.3} ms in total: --verbose lists them)", names.len() - shown);
    }
    text
}
