//! The arguments; their comments are the help text.

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

/// Prune channels of an exported diffusion network on its ONNX graph and prove that the cut is correct.
///
/// Reads IN.onnx, removes the least important channels of every coupled channel group, writes OUT.onnx with the plan
/// of the cut beside it, and verifies OUT.onnx against the original in ONNX Runtime. The folder of a pipeline, as optimum
/// writes it, is read and written as a whole: its denoiser is cut, everything else is copied.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-diffprune",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done; 1 the request can't be met, or verification failed; 2 wrong use or broken input.\n\
        Files: no file that is read is overwritten, no two outputs may be one file, and all outputs take their places \
        together or not at all, also when a signal ends the run."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) prune: PruneArgs,

    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,

    /// The ONNX Runtime library, or a folder that holds it [default: ORT_DYLIB_PATH, beside the executable, the Python
    /// environment, the system].
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) onnxruntime: Option<PathBuf>,

    /// An option of ONNX Runtime for the execution provider of `--device`, such as use_tf32=1 or gpu_mem_limit=8000000000 for
    /// cuda; may be repeated.
    #[arg(long = "provider-option", global = true, value_name = "NAME=VALUE", value_parser = provider_option)]
    pub(super) provider_options: Vec<(String, String)>,

    /// Print errors only.
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,

    /// List all values of which verification proves nothing.
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub(super) verbose: bool,
}

/// `NAME=VALUE`.
fn provider_option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, as in use_tf32=1".to_owned()),
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Tables for people.
    #[default]
    Text,
    /// One JSON object on standard output.
    Json,
    /// A JUnit report on standard output, for continuous integration: of verify and evaluate.
    Junit,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Repeat the cut of a plan file exactly.
    Apply(Box<ApplyArgs>),
    /// Fit the weights of a pruned file by least squares, so that it computes what its original does.
    Refit(Box<RefitCommandArgs>),
    /// Train the weights of a file, by its denoising loss and the output of a teacher
    Finetune(Box<FinetuneArgs>),
    /// Check a pruned file against its original.
    Verify(VerifyArgs),
    /// Show inputs, operators, costs, channel groups and what keeps channels from being pruned.
    Inspect(InspectArgs),
    /// Measure the denoising loss of a network on clean samples.
    Loss(Box<LossArgs>),
    /// Say how good networks are beside their original: losses, samples from the same noise, costs.
    Evaluate(Box<EvaluateArgs>),
    /// Draw samples from a network, by DDIM, DDPM or DPM-Solver++.
    Sample(Box<SampleArgs>),
    /// Encode images and captions once for a latent network, into a cache of arrays that --data takes.
    Encode(Box<EncodeArgs>),
    /// Write what a training session of ONNX Runtime loads: training, eval and optimizer model, checkpoint.
    Artifacts(ArtifactsArgs),
    /// Make a network ready for a runtime: half precision, profiles of sizes, commands, in a folder.
    Deploy(Box<DeployArgs>),
    /// Time networks beside each other at the sizes that they are deployed at, with the time by operator.
    Bench(Box<BenchArgs>),
    /// Show which ONNX Runtime libraries are found and which one is used.
    Runtime,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page of the tool or of one of its commands.
    Man {
        /// The command.
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// The options that decide a cut; also the keys of a configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct PruneArgs {
    /// The exported network, or the folder of a pipeline.
    #[arg(value_name = "IN.onnx")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<PathBuf>,

    /// Where the pruned network goes. For a pipeline a folder: one that is not there, is empty, or was written by this tool,
    /// which is replaced.
    #[arg(value_name = "OUT.onnx")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<PathBuf>,

    /// The components of a pipeline that are cut, by the names of their folders [default: the denoiser, unet or transformer].
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Pipelines")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) components: Vec<String>,

    /// A ratio of its own for a component of a pipeline; may be given again. Where neither --components nor a share for all
    /// (--ratio, --target-macs, --target-params) is given, the components that are named here are cut, and no other.
    #[arg(long, value_name = "NAME=R", help_heading = "Pipelines")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) component_ratio: Vec<String>,

    /// Share of the channels that is removed from every channel group, in [0, 1), as in the Diff-Pruning paper and in
    /// Torch-Pruning. MACs and parameters fall faster: about 1 - (1 - R)^2 of them go, 75 % at 0.5.
    #[arg(long, short, value_name = "R", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<f64>,

    /// Share of the multiply-accumulate operations to keep at most, in (0, 1]; the ratio is searched.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["ratio", "target_params"], help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_macs: Option<f64>,

    /// Share of the parameters to keep at most, in (0, 1]; the ratio is searched.
    #[arg(long, value_name = "SHARE", conflicts_with = "ratio", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_params: Option<f64>,

    /// Prune in N rounds, geometric steps to the target: each cuts, refits and, with --finetune-steps, trains. The last file
    /// is a cut of IN.onnx and is verified against it. What earlier rounds make lies in the folder OUT.rounds [default: 1].
    #[arg(long, value_name = "N", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rounds: Option<usize>,

    /// Train for N steps after the cut of every round, by the recipe "quick" of the command finetune with IN.onnx as the
    /// teacher, on --data [default: 0].
    #[arg(long, value_name = "N", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finetune_steps: Option<u64>,

    /// No channel group loses a larger share than this.
    #[arg(long, value_name = "R", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_ratio: Option<f64>,

    /// The axes of pruned weights stay multiples of N wide; fewer channels are removed where needed. Of attention that is
    /// heads times head size, so that a head of 40 counts as 40. 8 suits fp16 tensor cores, 32 int8 [default: 1].
    #[arg(long, value_name = "N", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) round_to: Option<usize>,

    /// Keep widths that a runtime is fast at: tensorrt or ort-cuda (8), openvino or cpu (16), with :int8 after any of them (32).
    /// As --round-to with that number, head sizes in eights, and an even number of channels in every norm group, where that comes
    /// out. The run says what each costs in MACs.
    #[arg(long, value_name = "TARGET[:int8]", conflicts_with = "round_to", help_heading = "How much")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) align: Option<String>,

    /// Take the same share from every group, or have groups compete: what loses least per operation saved goes first, and
    /// every share of the MACs can be met [default: local].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<Scope>,

    /// What scores the channels [default: diff-pruning].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) criterion: Option<CriterionOption>,

    /// The norm of the magnitude criterion [default: l2].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) norm: Option<Norm>,

    /// How the weights of a group make one score per channel [default: sum].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group_reduction: Option<GroupReduction>,

    /// Seed of samples, noise, random scores and the inputs of verification [default: 0].
    #[arg(long, value_name = "N", help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,

    /// Keep the groups with a weight or node whose name matches; may be given again.
    #[arg(long, value_name = "REGEX", help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) keep: Vec<String>,

    /// A ratio of their own for the groups with a weight or node whose name matches; may be given again, the last
    /// match counts. Groups that share a norm take the smallest ratio among them.
    #[arg(long, value_name = "REGEX=R", help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ratio_for: Vec<String>,

    /// Keep the number of norm groups and take the same number of channels from each, or drop whole norm groups, which
    /// is exact under masking [default: keep].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) norm_groups: Option<NormGroups>,

    /// What shrinks in attention: whole heads (head dimensions where there is one head), head dimensions, both, or
    /// nothing [default: heads].
    #[arg(long, value_enum, help_heading = "Which channels")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attention: Option<AttentionOption>,

    /// The size of a symbolic dimension, for counting and verification; may be given again.
    #[arg(long, value_name = "NAME=N", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) size: Vec<String>,

    /// Where the plan goes [default: OUT.plan.json].
    #[arg(long, value_name = "FILE", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<PathBuf>,

    /// Write a report: one HTML page with costs, losses, importance, kept channels and the result of verification.
    #[arg(long, value_name = "FILE.html", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<PathBuf>,

    /// Show what would be removed and write nothing.
    #[arg(long, help_heading = "Output and verification")]
    #[serde(skip)]
    pub(super) dry_run: bool,

    /// Write the output without verifying it and without measuring latency; ONNX Runtime is not needed then.
    #[arg(long, help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_verify: bool,

    /// Do not measure latency.
    #[arg(long, help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_latency: bool,

    /// Allowed error of verification relative to the largest magnitude of an output [default: 1e-4, 2e-2 where the
    /// model has half precision].
    #[arg(long, value_name = "X", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rtol: Option<f64>,

    /// Allowed absolute error of verification on top [default: 1e-6].
    #[arg(long, value_name = "X", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) atol: Option<f64>,

    /// Inputs for verification and latency, arrays by the names of the network's inputs; also the conditioning of the
    /// gradients, sample i taking row i. What is not given is drawn.
    #[arg(long, value_name = "FILE.npz", help_heading = "Output and verification")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inputs: Option<PathBuf>,

    /// Fit the weights that are left by least squares, so that the pruned network computes what the original does
    /// [default: where there are clean samples anyway, from --data or drawn for the criterion].
    #[arg(long, help_heading = "Refit", conflicts_with = "no_refit")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) refit: bool,

    /// Keep the weights that are left as they are.
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

    /// Read options from a file; options on the command line take precedence.
    #[arg(long, value_name = "FILE.toml", help_heading = "Configuration")]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,

    /// Print the options as a configuration file and do nothing else.
    #[arg(long, help_heading = "Configuration")]
    #[serde(skip)]
    pub(super) print_config: bool,

    /// Whether the network is one of several components, so that a size may be that of another.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) is_component: bool,

    /// What the network is for; it denoises where nothing is said.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) task: Option<Task>,

    /// Where the output goes in the end, where it is prepared elsewhere.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) placed: Option<Placed>,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ApplyArgs {
    /// The network that the plan was made for, or the folder of its pipeline.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// The plan, or the folder of a pipeline whose denoiser has one beside it.
    #[arg(value_name = "PLAN.json")]
    pub(super) plan: PathBuf,
    /// Where the pruned network goes: a file, or of a folder IN a folder, in which all else is copied.
    #[arg(value_name = "OUT.onnx")]
    pub(super) output: PathBuf,
    /// Write the output without verifying it.
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Fit the weights again as the plan says they were, on the samples of the first refit: --data, or drawn where they
    /// were.
    #[arg(long)]
    pub(super) refit: bool,
    /// The inputs of the first refit: arrays by the names of the network's inputs.
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
    /// The pruned network; of a pipeline's folder every component that was cut is checked.
    #[arg(value_name = "OUT.onnx")]
    pub(super) output: PathBuf,
    /// The plan of the cut [default: OUT.plan.json].
    #[arg(long, value_name = "FILE")]
    pub(super) plan: Option<PathBuf>,
    /// Inputs, arrays by the names of the network's inputs. What is not given is drawn.
    #[arg(long, value_name = "FILE.npz")]
    pub(super) inputs: Option<PathBuf>,
    /// Allowed error relative to the largest magnitude of an output [default: 1e-4, 2e-2 where the model has half
    /// precision].
    #[arg(long, value_name = "X")]
    pub(super) rtol: Option<f64>,
    /// Allowed absolute error on top.
    #[arg(long, value_name = "X", default_value_t = 1e-6)]
    pub(super) atol: f64,
    /// Seed of the random inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// The size of a symbolic dimension; may be given again.
    #[arg(long, value_name = "NAME=N")]
    pub(super) size: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// The network.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// What shrinks in attention.
    #[arg(long, value_enum, default_value = "heads")]
    pub(super) attention: AttentionOption,
    /// What happens to norm groups.
    #[arg(long, value_enum, default_value = "keep")]
    pub(super) norm_groups: NormGroups,
    /// Print the dependency structure in the DOT language and nothing else.
    #[arg(long)]
    pub(super) dot: bool,
    /// List the weights of every channel group and the nodes that it goes through, each with its coupling as text.
    #[arg(long)]
    pub(super) members: bool,
    /// The size of a symbolic dimension, for counting; may be given again.
    #[arg(long, value_name = "NAME=N")]
    pub(super) size: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct ArtifactsArgs {
    /// The network.
    #[arg(value_name = "IN.onnx")]
    pub(super) input: PathBuf,
    /// The folder for the four files; made where there is none.
    #[arg(value_name = "OUT_DIR")]
    pub(super) output: PathBuf,
    /// The output that the loss compares with the target [default: the first].
    #[arg(long, value_name = "NAME")]
    pub(super) prediction: Option<String>,
    /// How many of the prediction's channels the loss compares, from the first on [default: all]. Networks that also
    /// predict a variance have twice as many as the noise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) channels: Option<i64>,
    /// Train the floating point constants whose name matches; may be given again [default: the weights of all channel
    /// groups, with their biases].
    #[arg(long, value_name = "REGEX")]
    pub(super) train: Vec<String>,
    /// The size of a symbolic dimension, which the artifacts fix; may be given again.
    #[arg(long, value_name = "NAME=N")]
    pub(super) size: Vec<String>,
}
