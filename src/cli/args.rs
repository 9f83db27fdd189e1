//! The command-line arguments. Their doc comments are the `--help` texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use onnx_diffprune::options::{AttentionOption, GroupReduction, Norm, NormGroups, Scope};
use onnx_diffprune::{CriterionOption, Task};
use serde::{Deserialize, Serialize};

use super::bench::BenchArgs;
use super::deploy::DeployArgs;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::encode::EncodeArgs;
use super::evaluate::EvaluateArgs;
use super::finetune::FinetuneArgs;
use super::folder::Placed;
use super::gradient_args::GradientArgs;
use super::loss::LossArgs;
use super::refit::RefitCommandArgs;
use super::refit_args::RefitArgs;
use super::sample::SampleArgs;

/// Prune channels of an exported diffusion network on its ONNX graph and verify the cut.
///
/// Takes IN.onnx as input, removes the least important channels of every group of coupled channels, writes OUT.onnx
/// with the plan of the cut beside it, and verifies OUT.onnx against the original in ONNX Runtime. IN.onnx may also be
/// the folder of a pipeline, as optimum writes it: the output is then a complete pipeline folder with a pruned denoiser
/// and copies of all other files.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-diffprune",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 100
)]
#[command(after_help = "Exit codes: 0 success; 1 the request can't be met, or verification failed; 2 wrong use or \
        invalid input.\n\
        Files: a run never overwrites a file that it reads, and refuses two outputs with the same path. Either all \
        outputs are written or none, also when a signal ends the run.")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) prune: PruneArgs,

    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,

    /// The ONNX Runtime library, or a folder that contains it [default: searched in ORT_DYLIB_PATH, beside the
    /// executable, in the Python environment, in the system].
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) onnxruntime: Option<PathBuf>,

    /// An option of the execution provider that `--device` selects, such as use_tf32=1 or gpu_mem_limit=8000000000 for
    /// cuda. Can be given several times.
    #[arg(long = "provider-option", global = true, value_name = "NAME=VALUE", value_parser = provider_option)]
    pub(super) provider_options: Vec<(String, String)>,

    /// Print errors only.
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,

    /// Print lists in full, such as all layers of a refit and all values that can't show an error in verification.
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub(super) verbose: bool,
}

/// Parses `NAME=VALUE`.
fn provider_option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, as in use_tf32=1".to_owned()),
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Readable text and tables.
    #[default]
    Text,
    /// One JSON object on standard output.
    Json,
    /// A JUnit report on standard output, for continuous integration; only with verify and evaluate.
    Junit,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Repeat the cut of a plan file exactly.
    Apply(Box<ApplyArgs>),
    /// Fit the weights of a pruned network by least squares, so that its layers reproduce the outputs of the original.
    Refit(Box<RefitCommandArgs>),
    /// Train the weights of a network by its denoising loss and the output of a teacher.
    Finetune(Box<FinetuneArgs>),
    /// Verify a pruned network against its original.
    Verify(VerifyArgs),
    /// Show inputs, operators, costs, channel groups, and why channels can't be pruned.
    Inspect(InspectArgs),
    /// Measure the denoising loss of a network on clean samples.
    Loss(Box<LossArgs>),
    /// Compare networks with their original: denoising loss, samples from the same noise, costs.
    Evaluate(Box<EvaluateArgs>),
    /// Generate samples with a network, by DDIM, DDPM or DPM-Solver++.
    Sample(Box<SampleArgs>),
    /// Encode images and captions for a latent network, into arrays that --data accepts.
    Encode(Box<EncodeArgs>),
    /// Write the training artifacts of ONNX Runtime: training, eval and optimizer model, checkpoint.
    Artifacts(ArtifactsArgs),
    /// Prepare a network for a runtime: a folder with the converted network, size profiles and commands.
    Deploy(Box<DeployArgs>),
    /// Measure the latency of networks side by side, in total and by operator.
    Bench(Box<BenchArgs>),
    /// Show which ONNX Runtime libraries are found, which one is used, and which devices work.
    Runtime,
    /// Print a completion script for a shell.
    Completions {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Print the manual page of the tool or of one of its commands.
    Man {
        /// The command [default: the page of the whole tool].
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// The options that determine a cut; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct PruneArgs {
    /// The network to prune, or the folder of a pipeline.
    #[arg(value_name = "IN.onnx")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<PathBuf>,

    /// Path of the pruned network. For a pipeline, a folder that does not exist yet, is empty, or was written by this
    /// tool and is then replaced.
    #[arg(value_name = "OUT.onnx")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<PathBuf>,

    /// The components of a pipeline to prune, by the names of their folders [default: the denoiser, unet or
    /// transformer].
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Pipelines")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) components: Vec<String>,

    /// The pruning ratio of one component of a pipeline. Can be given several times. Without --components and without a
    /// target for all components (--ratio, --target-macs, --target-params), only the components named here are pruned.
    #[arg(long, value_name = "NAME=R", help_heading = "Pipelines")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) component_ratio: Vec<String>,

    /// Share of the channels to remove from every channel group, in [0, 1), as in the Diff-Pruning paper and in
    /// Torch-Pruning. MACs and parameters shrink by more, about 1 - (1 - R)^2: 75 % at R = 0.5.
    #[arg(long, short, value_name = "R", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<f64>,

    /// Keep at most this share of the multiply-accumulate operations (MACs), in (0, 1]. The tool searches for the
    /// ratio.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["ratio", "target_params"], help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_macs: Option<f64>,

    /// Keep at most this share of the parameters, in (0, 1]. The tool searches for the ratio.
    #[arg(long, value_name = "SHARE", conflicts_with = "ratio", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_params: Option<f64>,

    /// Prune in N rounds that approach the target geometrically. Every round cuts, refits and, with --finetune-steps,
    /// trains. The final network is a cut of IN.onnx and is verified against it. Intermediate results are kept in the
    /// folder OUT.rounds [default: 1].
    #[arg(long, value_name = "N", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rounds: Option<usize>,

    /// Number of training steps after the cut of every round, on --data, with IN.onnx as the teacher and the recipe
    /// "quick" of the command finetune [default: 0].
    #[arg(long, value_name = "N", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finetune_steps: Option<u64>,

    /// Largest share of the channels to remove from any channel group, in [0, 1] [default: 1].
    #[arg(long, value_name = "R", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_ratio: Option<f64>,

    /// Keep the axes of pruned weights at multiples of N; fewer channels are removed where needed. The width of an
    /// attention axis is heads times head size. 8 suits fp16 tensor cores, 32 int8 [default: 1].
    #[arg(long, value_name = "N", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) round_to: Option<usize>,

    /// Keep axes at widths that are fast on a runtime: multiples of 8 for tensorrt and ort-cuda, 16 for openvino and
    /// cpu, 32 with :int8 appended. Like --round-to with that number; in addition, head sizes are multiples of 8, and
    /// every norm group keeps an even number of channels where possible. The run reports what the alignment costs in
    /// MACs.
    #[arg(long, value_name = "TARGET[:int8]", conflicts_with = "round_to", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) align: Option<String>,

    /// Remove the same share from every group, or rank the channels of all groups together: channels with the least
    /// loss per operation saved are removed first, so that any MACs target can be met [default: local].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<Scope>,

    /// The criterion that scores the channels [default: diff-pruning].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) criterion: Option<CriterionOption>,

    /// The norm for the magnitude criterion [default: l2].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) norm: Option<Norm>,

    /// How the scores of the weights of a group are combined into one score per channel [default: sum].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group_reduction: Option<GroupReduction>,

    /// Seed of samples, noise, random scores and the inputs of verification [default: 0].
    #[arg(long, value_name = "N", help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,

    /// Keep all channels of the groups with a weight or node whose name matches. Can be given several times.
    #[arg(long, value_name = "REGEX", help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) keep: Vec<String>,

    /// The pruning ratio of the groups with a weight or node whose name matches. Can be given several times; the last
    /// match counts. Groups that share a norm use the smallest of their ratios.
    #[arg(long, value_name = "REGEX=R", help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ratio_for: Vec<String>,

    /// Keep the number of norm groups and remove equally many channels from each, or remove whole norm groups; the
    /// original with zeroed channels then computes exactly what the pruned network computes [default: keep].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) norm_groups: Option<NormGroups>,

    /// What to remove in attention: whole heads (or head dimensions, if there is only one head), head dimensions, both,
    /// or nothing [default: heads].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attention: Option<AttentionOption>,

    /// The size of a symbolic dimension, for counting costs and for verification. Can be given several times.
    #[arg(long, value_name = "NAME=N", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) size: Vec<String>,

    /// Path of the plan file [default: OUT.plan.json].
    #[arg(long, value_name = "FILE", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<PathBuf>,

    /// Write a report: one HTML page with costs, losses, importance, kept channels and the result of verification.
    #[arg(long, value_name = "FILE.html", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<PathBuf>,

    /// Show what would be removed, and write nothing.
    #[arg(long, help_heading = "Output and verification")]
    #[serde(skip)]
    pub(super) dry_run: bool,

    /// Write the output without verification and without measuring latency. With --criterion magnitude, most networks
    /// then need no ONNX Runtime.
    #[arg(long, help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_verify: bool,

    /// Do not measure latency.
    #[arg(long, help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_latency: bool,

    /// Largest error that verification allows, relative to the largest magnitude of an output [default: 1e-4; 2e-2 for
    /// a model in half precision].
    #[arg(long, value_name = "X", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtol: Option<f64>,

    /// Absolute error that verification allows in addition to the relative one [default: 1e-6].
    #[arg(long, value_name = "X", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) atol: Option<f64>,

    /// Inputs for verification and latency: arrays with the names of the network's inputs. They are also the
    /// conditioning of the gradients: sample i uses row i. Inputs that are not given are random.
    #[arg(long, value_name = "FILE.npz", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inputs: Option<PathBuf>,

    /// Fit the remaining weights by least squares, so that the layers of the pruned network reproduce the outputs of
    /// the original [default: on if there are clean samples, from --data or generated for the criterion].
    #[arg(long, help_heading = "Refit", conflicts_with = "no_refit")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) refit: bool,

    /// Do not refit: the remaining weights keep their values.
    #[arg(long, help_heading = "Refit")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_refit: bool,

    #[command(flatten)]
    pub(super) refitting: RefitArgs,

    #[command(flatten)]
    pub(super) gradients: GradientArgs,

    #[command(flatten)]
    pub(super) data: DataArgs,

    #[command(flatten)]
    pub(super) diffusion: DiffusionArgs,

    /// Read options from a file. Options on the command line take precedence.
    #[arg(long, value_name = "FILE.toml", help_heading = "Configuration")]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,

    /// Print the options as a configuration file and exit.
    #[arg(long, help_heading = "Configuration")]
    #[serde(skip)]
    pub(super) print_config: bool,

    /// Whether the network is one of several pruned components. A given size may then belong to another component.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) is_component: bool,

    /// The task of the network. `None`: it denoises.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) task: Option<Task>,

    /// The final paths of a network that is prepared in another folder. `None`: it is written to its final path.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) placed: Option<Placed>,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ApplyArgs {
    /// The network that the plan was made for, or the folder of its pipeline.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// The plan, or the folder of a pipeline with the plan beside its denoiser.
    #[arg(value_name = "PLAN.json")]
    pub(super) plan: PathBuf,
    /// Path of the pruned network: a file or, if IN is a folder, a folder that also gets copies of all other files.
    #[arg(value_name = "OUT.onnx")]
    pub(super) output: PathBuf,
    /// Write the output without verifying it.
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Repeat the refit that the plan records, on the samples of the first refit: --data, or generated samples if the
    /// first refit used these.
    #[arg(long)]
    pub(super) refit: bool,
    /// The --inputs of the first refit: arrays with the names of the network's inputs.
    #[arg(long, value_name = "FILE.npz")]
    pub(super) inputs: Option<PathBuf>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    pub(super) diffusion: DiffusionArgs,
}

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// The original network, or the folder of its pipeline.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// The pruned network, or the folder of a pipeline in which every pruned component is verified.
    #[arg(value_name = "OUT.onnx")]
    pub(super) output: PathBuf,
    /// The plan of the cut [default: OUT.plan.json].
    #[arg(long, value_name = "FILE")]
    pub(super) plan: Option<PathBuf>,
    /// Inputs: arrays with the names of the network's inputs. Inputs that are not given are random.
    #[arg(long, value_name = "FILE.npz")]
    pub(super) inputs: Option<PathBuf>,
    /// Largest error allowed, relative to the largest magnitude of an output [default: 1e-4; 2e-2 for a model in half
    /// precision].
    #[arg(long, value_name = "X")]
    pub(super) rtol: Option<f64>,
    /// Absolute error allowed in addition to the relative one.
    #[arg(long, value_name = "X", default_value_t = 1e-6)]
    pub(super) atol: f64,
    /// Seed of the random inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// The size of a symbolic dimension. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    pub(super) size: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// The network to inspect.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// What can be removed in attention.
    #[arg(long, value_enum, default_value = "heads")]
    pub(super) attention: AttentionOption,
    /// How norm groups are pruned.
    #[arg(long, value_enum, default_value = "keep")]
    pub(super) norm_groups: NormGroups,
    /// Print only the channel groups as a graph in the DOT language.
    #[arg(long)]
    pub(super) dot: bool,
    /// List the weights of every channel group, and the nodes that its channels pass through with their coupling rules.
    #[arg(long)]
    pub(super) members: bool,
    /// The size of a symbolic dimension, for counting costs. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    pub(super) size: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct ArtifactsArgs {
    /// The network to train.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// The folder for the four files; created if it does not exist.
    #[arg(value_name = "OUT_DIR")]
    pub(super) output: PathBuf,
    /// The output that the loss compares with the target [default: the first].
    #[arg(long, value_name = "NAME")]
    pub(super) prediction: Option<String>,
    /// Number of channels of the prediction, counted from the first, that the loss compares [default: all]. Networks
    /// that also predict a variance have twice as many channels as the noise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) channels: Option<i64>,
    /// Train the floating point constants whose name matches. Can be given several times [default: the weights of all
    /// channel groups, with their biases].
    #[arg(long, value_name = "REGEX")]
    pub(super) train: Vec<String>,
    /// The size of a symbolic dimension, which the artifacts then fix. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    pub(super) size: Vec<String>,
}
