"""The keywords of the commands and of the steps of a cut.

Written by scripts/python_options.py from the command line: a key is an option with underscores for dashes, and its text is
that of ``--help``. Repeatable options take a sequence; ``NAME=N`` is a mapping; a flag is ``True``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy
    from numpy.typing import NDArray


@runtime_checkable
class SerializableModel(Protocol):
    """A model in memory that can be serialised, such as `onnx.ModelProto`."""

    def SerializeToString(self) -> bytes:
        """Return the model as the bytes of an ONNX file."""
        ...


if TYPE_CHECKING:
    StrPath: TypeAlias = str | os.PathLike[str]
    ModelLike: TypeAlias = StrPath | bytes | SerializableModel
    Data: TypeAlias = StrPath | NDArray[Any]
    Inputs: TypeAlias = StrPath | Mapping[str, NDArray[Any]]
else:
    StrPath = ModelLike = Data = Inputs = object


class CommonOptions(TypedDict, total=False):
    """The options of every command."""

    onnxruntime: StrPath
    """The ONNX Runtime library, or a folder that contains it [default: searched in ORT_DYLIB_PATH, beside the
    executable, in the Python environment, in the system]"""

    provider_options: Mapping[str, str]
    """An option of the execution provider that ``device`` selects, such as use_tf32=1 or gpu_mem_limit=8000000000 for
    cuda. Can be given several times."""


class DiffusionOptions(TypedDict, total=False):
    """How a network was trained, and the pipeline around it."""

    scheduler_config: StrPath
    """The scheduler_config.json of a diffusers model; replaces the options for the schedule [default: that of the
    network's pipeline, if it has one and no option for the schedule is given]"""

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "flow", "karras"]
    """The noise schedule [default: linear; flow for flow predictions; karras if the time input is named sigma or noise]
    Choices: ``linear``: beta grows linearly (DDPM); ``scaled_linear``: The square root of beta grows linearly (latent
    diffusion, Stable Diffusion); ``squaredcos_cap_v2``: Squared cosine (improved diffusion); ``flow``: Straight line
    from sample to noise (flow matching); ``karras``: Noise levels with the spacing of Karras et al. (EDM, consistency
    models)."""

    beta_start: float
    """beta of the first timestep of the schedule [default: 0.0001; scaled_linear: 0.00085]"""

    beta_end: float
    """beta of the last timestep of the schedule [default: 0.02; scaled_linear: 0.012]"""

    train_timesteps: int
    """T, the number of timesteps of the noise schedule in training [default: 1000]"""

    rescale_betas_zero_snr: bool
    """Rescale the schedule to zero terminal SNR: the last timestep has no signal."""

    shift: float
    """The timestep shift of a flow schedule [default: 1]"""

    sigma_min: float
    """The smallest noise level of a karras schedule [default: 0.002]"""

    sigma_max: float
    """The largest noise level of a karras schedule [default: 80]"""

    sigma_data: float
    """The standard deviation of the data, for preconditioning outside the graph [default: 0.5]"""

    preconditioning: Literal["inside", "outside"]
    """Whether the graph of a network with noise levels contains the preconditioning of Karras et al. [default: inside;
    outside if the time input is named noise; as in the scheduler configuration, if there is one and the time input is
    not named sigma] Choices: ``inside``: In the graph: it takes the noisy sample and sigma, and returns the clean
    sample; ``outside``: Around the graph: it takes the scaled sample and ln(sigma) / 4."""

    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow"]
    """What the network predicts [default: epsilon; flow for a flow schedule; sample for noise levels] Choices:
    ``epsilon``: The noise `ε`; ``sample``: The clean sample `x_0`; ``v_prediction``: `v = a ε - s x_0` (Salimans and Ho
    2022); ``flow``: The velocity `ε - x_0` of a straight flow."""

    time_input: Literal["step", "fraction", "sigma", "c_noise", "sqrt_alpha_bar", "alpha_bar", "noise_variance", "log_snr"]
    """What the time input expects [default: step; sigma or c_noise with noise levels; fraction if it is named a ratio;
    log_snr if it is named so] Choices: ``step``: The step `t`, from 0 to `T - 1`; for a flow, `σ T`; ``fraction``: The
    step as a fraction of `T`, from 0 to 1; ``sigma``: The noise level `σ`; ``c_noise``: `ln(σ) / 4`: the input of EDM
    networks without their preconditioning; ``sqrt_alpha_bar``: The signal scale `sqrt(ᾱ)`, which SR3 and WaveGrad call
    the noise level; 1 where there is no noise; ``alpha_bar``: `ᾱ`, which Palette calls gamma; ``noise_variance``: The
    variance of the noise `1 - ᾱ`; ``log_snr``: The logarithm of the signal-to-noise ratio, `ln(a² / s²)`, as in
    variational diffusion models, clipped to -20 to 20."""

    clip_sample: bool
    """Clip estimates of the clean sample to the sample range [default: as in the scheduler configuration; without one,
    true for 1 or 3 channels with a discrete schedule]"""

    sample_range: tuple[float, float]
    """Range of the sample values that the network was trained on [default: -1,1]"""

    sample_input: str
    """Name of the input for the noisy sample [default: found by names and shapes]"""

    sample_channels: int
    """Number of channels of the sample input that hold the noisy sample; the channels after them are conditioning
    [default: as many as the prediction has]"""

    sample_offset: int
    """First channel of the sample input that holds the noisy sample; the channels before it are conditioning, such as
    the low-resolution image in SR3 [default: 0]"""

    timestep_input: str
    """Name of the input for the timestep or noise level [default: found by names and shapes]"""

    prediction_output: str
    """Name of the output with the prediction [default: found by names and shapes]"""

    batch: int
    """Batch size, in samples [default: the batch size that the network fixes, else chosen by the command; finetune: by
    the recipe]"""

    pipeline: StrPath
    """The folder of the network's pipeline. Its scheduler and its usual sizes are used unless options set them
    [default: found around the network]"""

    prompts: StrPath
    """A UTF-8 text file with one prompt per line. The text encoders of the pipeline encode them as conditioning: sample
    i uses prompt i. Arrays in `inputs` take precedence."""


class DataOptions(TypedDict, total=False):
    """Clean samples."""

    data: Data
    """Clean samples: a folder of PNG or JPEG images, a .npy, .npz or .safetensors file, or a folder of such files.
    Without it, criteria and refit use samples that the network itself generates."""

    data_range: tuple[float, float]
    """The data values that correspond to the ends of the sample range [default: 0,255 for images and bytes; floats are
    used as they are]"""


class RefittingOptions(TypedDict, total=False):
    """How weights are fitted after a cut."""

    refit_samples: int
    """Number of noisy samples to fit the weights on. If there are fewer clean samples, they are reused with other noise
    [default: 512, or fewer if one run takes more than 39 GMACs or 8 MiB of activations]"""

    refit_timesteps: int
    """Number of timesteps over which these samples are spread [default: one per chunk of samples, at least 64]"""

    refit_weights: Literal["uniform", "gauss-newton"]
    """How samples are weighted by timestep: all equally, or by how strongly an error at the layer changes the output at
    that timestep [default: gauss-newton] Choices: ``uniform``: All rows have the same weight; ``gauss-newton``: By how
    much an error at the layer changes the output of the network at that timestep."""

    refit_memory: int | str
    """Memory limit of the refit in bytes, such as 500M or 4G, in addition to the two networks. Data beyond it is
    spilled to disk [default: 1.5G]"""

    refit_ridge: float
    """Ridge regularisation: the value added to the diagonal of every Gram matrix, relative to the mean of the diagonal.
    Larger values keep the fit closer to the old weights [default: 0.001]"""

    refit_exclude: str
    """Do not refit the layers whose weight or node has a matching name."""


class CutOptions(TypedDict, total=False):
    """How much is removed, and from which groups: the keywords of `Scores.cut`."""

    ratio: float
    """Share of the channels to remove from every channel group, in [0, 1), as in the Diff-Pruning paper and in
    Torch-Pruning. MACs and parameters shrink by more, about 1 - (1 - R)^2: 75 % at R = 0.5."""

    target_macs: float
    """Keep at most this share of the multiply-accumulate operations (MACs), in (0, 1]. The tool searches for the
    ratio."""

    target_params: float
    """Keep at most this share of the parameters, in (0, 1]. The tool searches for the ratio."""

    max_ratio: float
    """Largest share of the channels to remove from any channel group, in [0, 1] [default: 1]"""

    round_to: int
    """Keep the axes of pruned weights at multiples of N; fewer channels are removed where needed. The width of an
    attention axis is heads times head size. 8 suits fp16 tensor cores, 32 int8 [default: 1]"""

    align: str
    """Keep axes at widths that are fast on a runtime: multiples of 8 for tensorrt and ort-cuda, 16 for openvino and
    cpu, 32 with :int8 appended. Like `round_to` with that number; in addition, head sizes are multiples of 8, and every
    norm group keeps an even number of channels where possible. The run reports what the alignment costs in MACs."""

    scope: Literal["local", "global"]
    """Remove the same share from every group, or rank the channels of all groups together: channels with the least loss
    per operation saved are removed first, so that any MACs target can be met [default: local] Choices: ``local``: Every
    group loses the same share; ``global``: Groups lose different shares: the next channel to be removed is the one with
    the smallest loss per operation saved. With data, the loss is the error that remains after a fit of the following
    layers; without, it is the score divided by the mean score of the group."""

    keep: str | Sequence[str]
    """Keep all channels of the groups with a weight or node whose name matches. Can be given several times."""

    ratio_for: Mapping[str, float]
    """The pruning ratio of the groups with a weight or node whose name matches. Can be given several times; the last
    match counts. Groups that share a norm use the smallest of their ratios."""


class ScoreOptions(DiffusionOptions, DataOptions, CutOptions, total=False):
    """How channels are scored: the keywords of `Analysis.score`. With `adaptive`, those of `CutOptions` set the cut
    that has to be stable; `scope` sets whether groups are measured for comparison."""

    criterion: Literal["diff-pruning", "taylor", "hessian", "magnitude", "random"]
    """The criterion that scores the channels [default: diff-pruning] Choices: ``diff-pruning``: The paper's criterion:
    |w G| with gradients summed over the timesteps whose loss is above a threshold; ``taylor``: |sum of w G| with
    gradients summed over all timesteps; ``hessian``: w^2 times the squared gradients of all timesteps; ``magnitude``:
    The norm of the weights; ``random``: Random scores."""

    norm: Literal["l1", "l2"]
    """The norm for the magnitude criterion [default: l2] Choices: ``l1``: The sum of absolute values; ``l2``: The sum
    of squares."""

    group_reduction: Literal["sum", "mean", "max", "first"]
    """How the scores of the weights of a group are combined into one score per channel [default: sum] Choices: ``sum``:
    The sum over all members: every weight entry of the channel counts once; ``mean``: The mean over the members;
    ``max``: The largest member; ``first``: The first member alone: the weight that produces the channels."""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    norm_groups: Literal["keep", "drop"]
    """Keep the number of norm groups and remove equally many channels from each, or remove whole norm groups; the
    original with zeroed channels then computes exactly what the pruned network computes [default: keep] Choices:
    ``keep``: Keeps their number. The same number of channels is removed from each; ``drop``: Keeps their size. Whole
    groups are removed."""

    attention: Literal["heads", "dims", "both", "none"]
    """What to remove in attention: whole heads (or head dimensions, if there is only one head), head dimensions, both,
    or nothing [default: heads] Choices: ``heads``: Whole heads if there is more than one, else head dimensions;
    ``dims``: Head dimensions, the same ones in every head; ``both``: Heads and head dimensions, each at the given
    ratio; ``none``: Nothing."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting costs and for verification. Can be given several times."""

    threshold: float
    """Use the timesteps whose loss is at least X times the largest loss: the threshold of the paper [default: 0.05]"""

    threshold_mode: Literal["prefix", "mask"]
    """Which timesteps the threshold keeps: all before the first one below it, as in the published code, or every one
    above it, as in the formula of the paper [default: prefix] Choices: ``prefix``: All timesteps before the first whose
    loss is below the threshold times the largest loss so far, as in the published code; ``mask``: Every timestep whose
    loss is at least the threshold times the largest loss of all, as in the paper's formula."""

    timesteps: int
    """Number of timesteps to evaluate, spread evenly over the schedule [default: all]"""

    micro_batch: int
    """Number of samples in one run of the network; smaller values use less memory for activations [default: the batch
    size]"""

    memory: int | str
    """Memory limit for the gradients in bytes, such as 8G. If they need more, the micro-batch is reduced; then the
    weights are divided over several passes, each over all timesteps. The scores do not change [default: the free
    memory]"""

    draw_sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """Sampler that generates samples with the network itself if no data is given [default: dpm++2m] Choices: ``ddim``:
    Song et al. 2021, "Denoising Diffusion Implicit Models"; adds no noise unless `eta` is above 0; ``ddpm``: Ho et al.
    2020, "Denoising Diffusion Probabilistic Models"; adds noise at every step; ``dpm++2m``: Lu et al. 2022,
    "DPM-Solver++", second-order multistep with midpoints; needs fewer steps and adds no noise."""

    draw_steps: int
    """Number of network evaluations per generated sample; use 1 for consistency models [default: 10, and at most one
    more than `timesteps`; ddim and ddpm: 50]"""

    members: Literal["all", "weights", "producers"]
    """Which weights of a channel group contribute to its scores [default: all] Choices: ``all``: All members: weights
    on both sides, norms and biases; ``weights``: The weights on both sides: rows of producers, columns of consumers;
    ``producers``: The rows of producers alone."""

    reference: Literal["ddpm-prune", "ddpm-exp"]
    """Score exactly as a published implementation does, instead of by the formula of the paper. Choices:
    ``ddpm-prune``: `ddpm_prune.py` with Torch-Pruning: the mean of |w G| over weights on both sides. The sum includes
    the step at which the loss falls below the threshold; ``ddpm-exp``: `ddpm_exp/prune.py`: sums of (w G)^2 over
    weights on both sides plus |w G| of norm scales, with the loss summed over an image. The sum excludes the step at
    which the loss falls below the threshold."""

    device: str
    """The device to compute gradients on: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu]"""

    precision: Literal["float32", "float16"]
    """Precision of convolutions and matrix products in the gradients, independent of the precision of the network.
    float16 uses loss scaling; it is for devices that are faster in half precision [default: float32] Choices:
    ``float32``: Everything in float32. Weights of another precision are cast to it; ``float16``: Convolutions and
    matrix products in float16, everything else in float32."""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""

    adaptive: bool
    """Stop the gradients early: once the channels to be removed are the same in three consecutive checks, one every ten
    timesteps."""


class CheckOptions(TypedDict, total=False):
    """How a pruned file is verified: the keywords of `Staged.check` and `Analysis.verify`."""

    rtol: float
    """Largest error that verification allows, relative to the largest magnitude of an output [default: 1e-4; 2e-2 for a
    model in half precision]"""

    atol: float
    """Absolute error that verification allows in addition to the relative one [default: 1e-6]"""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting costs and for verification. Can be given several times."""

    pipeline: StrPath
    """The folder of the network's pipeline. Its scheduler and its usual sizes are used unless options set them
    [default: found around the network]"""


class FitOptions(DiffusionOptions, DataOptions, RefittingOptions, total=False):
    """The data and device of a refit: the keywords of `Staged.refit`."""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting costs and for verification. Can be given several times."""

    device: str
    """The device to compute gradients on: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu]"""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""


class NetworkOptions(DiffusionOptions, DataOptions, total=False):
    """The roles of a network's inputs and how it was trained: the keywords of `Network`."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting costs and for verification. Can be given several times."""


class ApplyOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Repeat the cut of a plan file exactly: the keywords of `apply`."""

    no_verify: bool
    """Write the output without verifying it."""

    refit: bool
    """Repeat the refit that the plan records, on the samples of the first refit: `data`, or generated samples if the
    first refit used these."""

    inputs: Inputs
    """The `inputs` of the first refit: arrays with the names of the network's inputs."""


class ArtifactsOptions(CommonOptions, total=False):
    """Write the training artifacts of ONNX Runtime: training, eval and optimizer model, checkpoint: the keywords of
    `artifacts`."""

    prediction: str
    """The output that the loss compares with the target [default: the first]"""

    channels: int
    """Number of channels of the prediction, counted from the first, that the loss compares [default: all]. Networks
    that also predict a variance have twice as many channels as the noise."""

    train: str | Sequence[str]
    """Train the floating point constants whose name matches. Can be given several times [default: the weights of all
    channel groups, with their biases]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, which the artifacts then fix. Can be given several times."""


class BenchOptions(CommonOptions, total=False):
    """Measure the latency of networks side by side, in total and by operator: the keywords of `bench`."""

    size: Mapping[str, int]
    """The size of a symbolic dimension in the deployment. Can be given several times."""

    batch: int | Sequence[int]
    """Batch sizes to measure, one after the other, such as 1,2,4 [default: that of `size`, else 1 for a symbolic
    batch]"""

    runs: int
    """Number of measured rounds; every network runs once per round. Five warm-up rounds come first. [default: 50]"""

    seconds: float
    """Time limit in seconds for each batch size: no round begins after it. [default: 60]"""

    device: str
    """The device to run on: cpu, cuda, cuda:1 or tensorrt [default: cpu]"""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""

    threads: int
    """Number of threads within an operator [default: chosen by ONNX Runtime]"""

    seed: int
    """Seed of the random inputs. [default: 0]"""

    no_operators: bool
    """Do not measure the time by operator."""


class DeployOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Prepare a network for a runtime: a folder with the converted network, size profiles and commands: the keywords of
    `deploy`."""

    target: Literal["tensorrt", "tensorrt-rtx", "ort-cuda", "directml", "openvino", "web", "cpu"]
    """The runtime that will run the network. Choices: ``tensorrt``: NVIDIA TensorRT: an engine built on the machine
    with the GPU, or ONNX Runtime's TensorRT provider; ``tensorrt-rtx``: TensorRT for RTX: an engine built on any
    machine; ``ort-cuda``: ONNX Runtime's CUDA provider; ``directml``: ONNX Runtime's DirectML provider on Windows;
    ``openvino``: OpenVINO; ``web``: ONNX Runtime Web, with WebGPU or WebNN; ``cpu``: ONNX Runtime on the CPU."""

    precision: Literal["float32", "float16", "bfloat16", "int8"]
    """Precision of the network [default: float16; float32 for openvino and cpu] Choices: ``float32``: The types of the
    file; ``float16``: Weights and activations in float16, except for what float16 can't represent; ``bfloat16``:
    Weights and activations in bfloat16, except for what bfloat16 can't represent; ``int8``: Linear layers in int8,
    except for those whose error is too large; everything else as in the file."""

    io_precision: Literal["float32", "float16"]
    """Element type of the network's floating point inputs and outputs; float16 means half precision of either kind
    [default: float32; with `io` demodiffusion and webnn, that of the network]"""

    io: Literal["optimum", "demodiffusion", "comfyui", "webnn"]
    """The program whose names, ranks and types the inputs and outputs follow [default: those of the network] Choices:
    ``optimum``: The pipelines of optimum: sample, timestep (a scalar), encoder_hidden_states[, text_embeds, time_ids]
    -> out_sample; ``demodiffusion``: TensorRT's demo/Diffusion: `sample, timestep[1], encoder_hidden_states[,
    text_embeds, time_ids]` -> `latent`, in model_optimized.onnx; ``comfyui``: ComfyUI's node for TensorRT: x,
    timesteps, context[, y] -> h; ``webnn``: Web demos with WebNN: as optimum's, with fixed sizes and `timestep[1]`."""

    profile: Mapping[str, str]
    """Sizes of symbolic dimensions: NAME=N, NAME=MIN..MAX or NAME=MIN..OPT..MAX, with commas between several. Engines
    are built for them [default: a batch of 1..2..8, latents of 64 x 64, 77 tokens]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension that the profile does not set. Can be given several times."""

    engine: bool
    """Build the engine into the bundle (tensorrt and tensorrt-rtx only). This needs trtexec or tensorrt_rtx on the
    PATH, or a Python with the bindings."""

    compute_capability: str | Sequence[str]
    """Compute capabilities to build an engine of TensorRT for RTX for, such as 8.9,12.0 [default: 8.0 and later]"""

    python: StrPath
    """The Python whose tensorrt or tensorrt_rtx package builds the engine [default: programs and the Python on the
    PATH]"""

    keep: str | Sequence[str]
    """Keep the nodes whose name matches in float32; with int8, also layers whose weight has a matching name. Can be
    given several times."""

    calibration: Literal["min-max", "percentile", "entropy"]
    """How the ranges of activations are calibrated for int8. Choices: ``min-max``: The minimum and the maximum element;
    ``percentile``: The range that contains all but one of ten thousand elements; ``entropy``: The range whose quantised
    distribution is closest to that of the elements, by the Kullback-Leibler divergence (Migacz, "8-bit inference with
    TensorRT", 2017). [default: min-max]"""

    budget: float
    """Largest mean squared error of int8, relative to the denoising loss or to the mean square of the prediction,
    whichever is smaller. The layers with the largest errors are kept in float32. [default: 0.01]"""

    count: int
    """Number of clean samples to run the network on, to find the ranges of values and to compare outputs. [default:
    16]"""

    timesteps: int
    """Number of timesteps to run, spread evenly over the schedule. [default: 10]"""

    seed: int
    """Seed of the choice of samples and of all noise. [default: 0]"""

    inputs: Inputs
    """Conditioning, or the inputs of a network that does not denoise: arrays with the names of the network's inputs.
    Inputs that are not given are random."""


class EncodeOptions(CommonOptions, total=False):
    """Encode images and captions for a latent network, into arrays that --data accepts: the keywords of `encode`."""

    vae_encoder: ModelLike
    """The VAE encoder as an ONNX file."""

    text_encoder: ModelLike
    """The text encoder as an ONNX file. Without it, captions are not encoded."""

    tokenizer: StrPath
    """The folder of the tokenizer: tokenizer.json, or vocab.json and merges.txt of CLIP."""

    size: int
    """Height and width in pixels to which images are cropped and resized. [default: 512]"""

    scaling_factor: float
    """Factor that latents are multiplied by [default: that of config.json beside the VAE encoder, else 0.18215]"""

    latents: Literal["mean", "drawn", "direct"]
    """What to use of the output of the VAE encoder: the means of the distribution that it describes, random samples
    from it, or the output itself [default: by the name of the output: the means for latent_parameters, the output
    itself for latent_sample] Choices: ``mean``: The output has means and log-variances, concatenated along the
    channels: take the means; ``drawn``: For such an output: take a sample of the normal distribution for each image, by
    the seed and the image's number; ``direct``: The output is the latents: take it as it is."""

    text_output: str
    """Name of the text encoder's output to use [default: the first with three axes]"""

    text_length: int
    """Number of tokens to which captions are truncated or padded [default: the length that the encoder fixes, else that
    of the tokenizer's configuration]"""

    sample_name: str
    """Name of the latents in the shards: the network's input for the noisy sample. [default: sample]"""

    text_name: str
    """Name of the encoded captions in the shards: the network's input for them. [default: encoder_hidden_states]"""

    half: bool
    """Write float16 instead of float32."""

    batch: int
    """Batch size of the encoders, in images. [default: 4]"""

    shard: int
    """Number of images per shard. [default: 256]"""

    most_unreadable: int
    """Largest number of unreadable images to skip; with more, the run fails. [default: 16]"""

    seed: int
    """Seed of latents that are sampled at random. [default: 0]"""

    device: str
    """The device to run the encoders on: cpu, cuda[:N] or tensorrt[:N] [default: cpu]"""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""


class EvaluateOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Compare networks with their original: denoising loss, samples from the same noise, costs: the keywords of
    `evaluate`."""

    original: ModelLike
    """The original network, with which they are compared."""

    report: StrPath
    """Write a report: one HTML page with figures, losses by timestep, and samples side by side."""

    max_loss_increase: float | str
    """Fail (exit code 1) if the mean denoising loss exceeds that of the original by more than this share, such as 5% or
    0.05."""

    min_ssim: float
    """Fail (exit code 1) if the mean SSIM between samples and those of the original is below this value, from -1 to
    1."""

    seed: int
    """Seed of the choice of clean samples, of all noise, and of the subsets for KID. [default: 0]"""

    no_latency: bool
    """Do not measure latency."""

    device: str
    """The device to run on: cpu, cuda, cuda:1 or tensorrt [default: cpu]"""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""

    inputs: Inputs
    """Conditioning: arrays with the names of the network's inputs; sample i uses row i. Inputs that are not given are
    random."""

    size: Mapping[str, int]
    """The size of a symbolic dimension. Can be given several times."""

    count: int
    """Number of clean samples for the denoising loss [default: 256, or as many whole batches as the data has]"""

    timesteps: int
    """Number of timesteps, spread evenly over the schedule. [default: 25]"""

    samples: int
    """Number of samples that every network generates from the same noise; 0 for none [default: 2048 with `features`,
    else 256]"""

    steps: int
    """Number of network evaluations per sample [default: 50; dpm++2m: 20]"""

    sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """The sampler. Choices: ``ddim``: Song et al. 2021, "Denoising Diffusion Implicit Models"; adds no noise unless
    `eta` is above 0; ``ddpm``: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; adds noise at every step;
    ``dpm++2m``: Lu et al. 2022, "DPM-Solver++", second-order multistep with midpoints; needs fewer steps and adds no
    noise. [default: ddim]"""

    skip: Literal["uniform", "quadratic"]
    """Which timesteps of a discrete schedule the sampler uses. Choices: ``uniform``: Evenly spaced steps;
    ``quadratic``: Steps that are denser where there is little noise, up to 0.8 `T`, as in the DDIM paper. [default:
    uniform]"""

    eta: float
    """Stochasticity of DDIM, from 0 (deterministic) to 1 (as much noise as DDPM adds). [default: 0]"""

    features: ModelLike
    """A network that computes features of images, for distances between sets of samples (FD and KID): any ONNX file
    with one image input."""

    features_output: str
    """Name of the value with the features: an output or any other value of the graph. Spatial axes are averaged
    [default: the only output]"""

    features_range: tuple[float, float]
    """Pixel values of black and white [default: from the metadata Image.NominalPixelRange; 0,255 for bytes, else
    0,1]"""

    features_mean: float | Sequence[float]
    """Mean that is subtracted from the pixels, in the units of `features_range`: one number, or one per channel in the
    channel order of the network [default: 0]"""

    features_std: float | Sequence[float]
    """Standard deviation that the pixels are divided by after the mean is subtracted: one number, or one per channel
    [default: 1]"""

    features_order: Literal["rgb", "bgr"]
    """Order of the colour channels [default: from the metadata Image.BitmapPixelFormat, else rgb] Choices: ``rgb``:
    Red, green, blue; ``bgr``: Blue, green, red."""

    features_layout: Literal["nchw", "nhwc"]
    """Position of the channel axis [default: the axis of size 1 or 3] Choices: ``nchw``: `[batch, channels, height,
    width]`; ``nhwc``: `[batch, height, width, channels]`."""

    features_size: int | str
    """Image size in pixels if the graph does not fix it: one number, or height and width [default: the size of the
    samples]"""

    data_samples: int
    """Number of data samples to compute features of [default: as many as are generated, or all]"""

    kid_subsets: int
    """Number of random subsets over which KID, the kernel distance, is averaged. [default: 100]"""

    kid_subset_size: int
    """Number of samples in each subset for KID [default: 1000, or as many as there are]"""


class FinetuneOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Train the weights of a network by its denoising loss and the output of a teacher: the keywords of `finetune`."""

    teacher: ModelLike
    """The teacher, whose output the network learns besides the data: the original of a pruned network."""

    plan: StrPath
    """The plan of the cut. With `teacher`, OUT.onnx also gets a plan, by which it is verified against its original
    [default: IN.plan.json, if it exists]"""

    run_folder: StrPath
    """The folder for checkpoints, metrics and generated samples [default: OUT.finetune]"""

    resume: bool
    """Continue from the last checkpoint in the run folder."""

    report: StrPath
    """Write a report: one HTML page with samples of the teacher and of the network before and after training, and the
    losses."""

    no_verify: bool
    """Do not verify the trained network."""

    seed: int
    """Seed of the order of samples, their timesteps and their noise. [default: 0]"""

    inputs: Inputs
    """Conditioning of the samples: arrays with the names of the network's inputs; sample i uses row i. Inputs that are
    not given are random."""

    size: Mapping[str, int]
    """The size of a symbolic dimension. Can be given several times."""

    recipe: Literal["quick", "diff-pruning", "bk-sdm"]
    """The recipe that sets the defaults: quick (distillation, some hundred or thousand steps), diff-pruning (that of
    the paper on CIFAR-10) or bk-sdm. The defaults shown for the other options are those of quick [default: quick]
    Choices: ``quick``: Distillation, a cosine schedule from 1e-3, batch size 32: for hundreds or thousands of steps of
    a small network; ``diff-pruning``: "Structural Pruning for Diffusion Models" on CIFAR-10: Adam, 2e-4, batch size
    128, antithetic timesteps, 100,000 steps; ``bk-sdm``: "BK-SDM" (2023): AdamW, 5e-5, weight decay 0.01, batch size
    256, distillation and denoising loss, 50,000 steps."""

    steps: int
    """Number of optimizer steps [default: 1000]"""

    micro_batch: int
    """Number of samples in one run of the network, a divisor of the batch size. Smaller values use less memory and give
    the same result [default: the batch size]"""

    memory: int | str
    """Memory limit in bytes, such as 8G. If the run needs more, the micro-batch is reduced [default: the free
    memory]"""

    accumulate: int
    """Number of batches whose gradients are summed for one optimizer step [default: 1]"""

    lr: float
    """Learning rate [default: 1e-3]"""

    lr_schedule: Literal["constant", "cosine", "linear"]
    """How the learning rate changes after the warm-up [default: cosine] Choices: ``constant``: Constant; ``cosine``:
    Cosine decay to zero (Loshchilov and Hutter, "SGDR", 2017); ``linear``: Linear decay to zero."""

    warmup: int
    """Number of warm-up steps, in which the learning rate grows linearly from zero [default: a tenth of all steps, at
    most 100]"""

    optimizer: Literal["adam-w", "adam"]
    """The optimizer [default: adamw] Choices: ``adam-w``: Adam with decoupled weight decay (Loshchilov and Hutter,
    2019); ``adam``: Adam with weight decay added to the gradient (Kingma and Ba, 2015)."""

    weight_decay: float
    """Weight decay [default: 0]"""

    ema: float
    """Decay of the exponential moving average (EMA) of the weights. The averaged weights are the ones written; 0 turns
    averaging off [default: 0.999]"""

    clip: float
    """Gradient clipping: gradients whose global norm is larger are scaled down to this norm; 0 turns clipping off
    [default: 1]"""

    distill: float
    """Weight of the teacher's output in the loss, from 0 to 1; the rest is the weight of the target [default: 0.7 with
    `teacher`, else 0]"""

    distill_features: str
    """Also compare features, the values inside of the network, with those of the teacher at the kept channels: the
    values or nodes whose name matches, or auto for a few values of the residual stream [default: none]"""

    distill_features_weight: float
    """Weight of the feature comparison in the loss [default: 0.1]"""

    distill_jacobian: float
    """Weight of a Jacobian term in the loss (2ndMatch), for example 0.1: it compares how strongly the outputs of
    network and teacher change with the noisy samples. Takes three times the time and memory [default: 0]"""

    huber: float
    """Use the Huber loss with this threshold: larger differences count linearly [default: the squared loss]"""

    snr_gamma: float
    """Weight timesteps by min(SNR, X) (Min-SNR weighting) [default: all timesteps equally]"""

    timestep_sampling: Literal["uniform", "antithetic", "stratified"]
    """How the timesteps of samples are chosen [default: stratified] Choices: ``uniform``: Independent, all timesteps
    equally likely; ``antithetic``: In pairs t and T - 1 - t, as in the published code of DDIM and Diff-Pruning;
    ``stratified``: One timestep from each of N equal parts of the schedule, where N is the batch size."""

    flip: bool
    """Mirror half of the images horizontally."""

    drop_conditioning: float
    """Probability of dropping the conditioning of a sample, for classifier-free guidance [default: 0]"""

    empty_conditioning: Inputs
    """The empty conditioning that replaces a dropped one: arrays of one row with the names of the inputs [default:
    zeros]"""

    train: str | Sequence[str]
    """Train the floating point constants whose name matches. Can be given several times [default: the weights of all
    channel groups, with their biases]"""

    precision: Literal["float32", "float16"]
    """Precision of convolutions and matrix products. Weights and optimizer state are always float32 [default: float32]
    Choices: ``float32``: Everything in float32. Weights of another precision are cast to it; ``float16``: Convolutions
    and matrix products in float16, everything else in float32."""

    checkpoint_activations: bool
    """Recompute activations in the backward pass instead of storing them (gradient checkpointing): less memory, more
    time, the same result."""

    device: str
    """The device to train on: cpu, cuda or cuda:N [default: cpu]"""

    update: Literal["kernel", "graph"]
    """What computes the optimizer step: a fused kernel of this tool, on the CPU only, or graphs of standard operators
    in the memory of the device [default: kernel on the CPU, graph elsewhere] Choices: ``kernel``: A fused kernel, on
    the CPU only; ``graph``: Graphs of standard operators, on any device."""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""

    threads: int
    """Number of threads within an operator [default: chosen by ONNX Runtime]"""

    max_hours: float
    """Time limit in hours: no step begins after it."""

    eval_data: Data
    """Held-out clean samples for the evaluations during training [default: up to 32 samples of `data`, which are then
    not trained on]"""

    eval_samples: int
    """Maximum number of samples in an evaluation [default: 32]"""

    eval_every: int
    """Number of steps between evaluations [default: a tenth of all steps, at least 100]"""

    eval_pictures: int
    """Number of samples to generate from fixed noise at every evaluation, saved as one PNG image [default: 0]"""

    checkpoint_every: int
    """Number of steps between checkpoints [default: a checkpoint every ten minutes]"""

    keep_checkpoints: int
    """Number of checkpoints to keep in addition to the best one [default: 2]"""


class InspectOptions(CommonOptions, total=False):
    """Show inputs, operators, costs, channel groups, and why channels can't be pruned: the keywords of `inspect`."""

    attention: Literal["heads", "dims", "both", "none"]
    """What can be removed in attention. Choices: ``heads``: Whole heads if there is more than one, else head
    dimensions; ``dims``: Head dimensions, the same ones in every head; ``both``: Heads and head dimensions, each at the
    given ratio; ``none``: Nothing. [default: heads]"""

    norm_groups: Literal["keep", "drop"]
    """How norm groups are pruned. Choices: ``keep``: Keeps their number. The same number of channels is removed from
    each; ``drop``: Keeps their size. Whole groups are removed. [default: keep]"""

    members: bool
    """List the weights of every channel group, and the nodes that its channels pass through with their coupling
    rules."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting costs. Can be given several times."""


class LossOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Measure the denoising loss of a network on clean samples: the keywords of `loss`."""

    count: int
    """Number of clean samples. [default: 256]"""

    timesteps: int
    """Number of timesteps, spread evenly over the schedule. [default: 25]"""

    seed: int
    """Seed of the choice of samples and of the noise, which is the same at every timestep. [default: 0]"""

    inputs: Inputs
    """Conditioning: arrays with the names of the network's inputs; sample i uses row i. Inputs that are not given are
    random."""

    size: Mapping[str, int]
    """The size of a symbolic dimension. Can be given several times."""


class PruneOptions(CommonOptions, DiffusionOptions, DataOptions, RefittingOptions, total=False):
    """Prune channels of an exported diffusion network on its ONNX graph and verify the cut: the keywords of `prune`."""

    components: str | Sequence[str]
    """The components of a pipeline to prune, by the names of their folders [default: the denoiser, unet or
    transformer]"""

    component_ratio: Mapping[str, float]
    """The pruning ratio of one component of a pipeline. Can be given several times. Without `components` and without a
    target for all components (`ratio`, `target_macs`, `target_params`), only the components named here are pruned."""

    ratio: float
    """Share of the channels to remove from every channel group, in [0, 1), as in the Diff-Pruning paper and in
    Torch-Pruning. MACs and parameters shrink by more, about 1 - (1 - R)^2: 75 % at R = 0.5."""

    target_macs: float
    """Keep at most this share of the multiply-accumulate operations (MACs), in (0, 1]. The tool searches for the
    ratio."""

    target_params: float
    """Keep at most this share of the parameters, in (0, 1]. The tool searches for the ratio."""

    rounds: int
    """Prune in N rounds that approach the target geometrically. Every round cuts, refits and, with `finetune_steps`,
    trains. The final network is a cut of IN.onnx and is verified against it. Intermediate results are kept in the
    folder OUT.rounds [default: 1]"""

    finetune_steps: int
    """Number of training steps after the cut of every round, on `data`, with IN.onnx as the teacher and the recipe
    "quick" of the command finetune [default: 0]"""

    max_ratio: float
    """Largest share of the channels to remove from any channel group, in [0, 1] [default: 1]"""

    round_to: int
    """Keep the axes of pruned weights at multiples of N; fewer channels are removed where needed. The width of an
    attention axis is heads times head size. 8 suits fp16 tensor cores, 32 int8 [default: 1]"""

    align: str
    """Keep axes at widths that are fast on a runtime: multiples of 8 for tensorrt and ort-cuda, 16 for openvino and
    cpu, 32 with :int8 appended. Like `round_to` with that number; in addition, head sizes are multiples of 8, and every
    norm group keeps an even number of channels where possible. The run reports what the alignment costs in MACs."""

    scope: Literal["local", "global"]
    """Remove the same share from every group, or rank the channels of all groups together: channels with the least loss
    per operation saved are removed first, so that any MACs target can be met [default: local] Choices: ``local``: Every
    group loses the same share; ``global``: Groups lose different shares: the next channel to be removed is the one with
    the smallest loss per operation saved. With data, the loss is the error that remains after a fit of the following
    layers; without, it is the score divided by the mean score of the group."""

    criterion: Literal["diff-pruning", "taylor", "hessian", "magnitude", "random"]
    """The criterion that scores the channels [default: diff-pruning] Choices: ``diff-pruning``: The paper's criterion:
    |w G| with gradients summed over the timesteps whose loss is above a threshold; ``taylor``: |sum of w G| with
    gradients summed over all timesteps; ``hessian``: w^2 times the squared gradients of all timesteps; ``magnitude``:
    The norm of the weights; ``random``: Random scores."""

    norm: Literal["l1", "l2"]
    """The norm for the magnitude criterion [default: l2] Choices: ``l1``: The sum of absolute values; ``l2``: The sum
    of squares."""

    group_reduction: Literal["sum", "mean", "max", "first"]
    """How the scores of the weights of a group are combined into one score per channel [default: sum] Choices: ``sum``:
    The sum over all members: every weight entry of the channel counts once; ``mean``: The mean over the members;
    ``max``: The largest member; ``first``: The first member alone: the weight that produces the channels."""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    keep: str | Sequence[str]
    """Keep all channels of the groups with a weight or node whose name matches. Can be given several times."""

    ratio_for: Mapping[str, float]
    """The pruning ratio of the groups with a weight or node whose name matches. Can be given several times; the last
    match counts. Groups that share a norm use the smallest of their ratios."""

    norm_groups: Literal["keep", "drop"]
    """Keep the number of norm groups and remove equally many channels from each, or remove whole norm groups; the
    original with zeroed channels then computes exactly what the pruned network computes [default: keep] Choices:
    ``keep``: Keeps their number. The same number of channels is removed from each; ``drop``: Keeps their size. Whole
    groups are removed."""

    attention: Literal["heads", "dims", "both", "none"]
    """What to remove in attention: whole heads (or head dimensions, if there is only one head), head dimensions, both,
    or nothing [default: heads] Choices: ``heads``: Whole heads if there is more than one, else head dimensions;
    ``dims``: Head dimensions, the same ones in every head; ``both``: Heads and head dimensions, each at the given
    ratio; ``none``: Nothing."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting costs and for verification. Can be given several times."""

    plan: StrPath
    """Path of the plan file [default: OUT.plan.json]"""

    report: StrPath
    """Write a report: one HTML page with costs, losses, importance, kept channels and the result of verification."""

    dry_run: bool
    """Show what would be removed, and write nothing."""

    no_verify: bool
    """Write the output without verification and without measuring latency. With `criterion` magnitude, most networks
    then need no ONNX Runtime."""

    no_latency: bool
    """Do not measure latency."""

    rtol: float
    """Largest error that verification allows, relative to the largest magnitude of an output [default: 1e-4; 2e-2 for a
    model in half precision]"""

    atol: float
    """Absolute error that verification allows in addition to the relative one [default: 1e-6]"""

    inputs: Inputs
    """Inputs for verification and latency: arrays with the names of the network's inputs. They are also the
    conditioning of the gradients: sample i uses row i. Inputs that are not given are random."""

    refit: bool
    """Fit the remaining weights by least squares, so that the layers of the pruned network reproduce the outputs of the
    original [default: on if there are clean samples, from `data` or generated for the criterion]"""

    no_refit: bool
    """Do not refit: the remaining weights keep their values."""

    threshold: float
    """Use the timesteps whose loss is at least X times the largest loss: the threshold of the paper [default: 0.05]"""

    threshold_mode: Literal["prefix", "mask"]
    """Which timesteps the threshold keeps: all before the first one below it, as in the published code, or every one
    above it, as in the formula of the paper [default: prefix] Choices: ``prefix``: All timesteps before the first whose
    loss is below the threshold times the largest loss so far, as in the published code; ``mask``: Every timestep whose
    loss is at least the threshold times the largest loss of all, as in the paper's formula."""

    timesteps: int
    """Number of timesteps to evaluate, spread evenly over the schedule [default: all]"""

    micro_batch: int
    """Number of samples in one run of the network; smaller values use less memory for activations [default: the batch
    size]"""

    memory: int | str
    """Memory limit for the gradients in bytes, such as 8G. If they need more, the micro-batch is reduced; then the
    weights are divided over several passes, each over all timesteps. The scores do not change [default: the free
    memory]"""

    draw_sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """Sampler that generates samples with the network itself if no data is given [default: dpm++2m] Choices: ``ddim``:
    Song et al. 2021, "Denoising Diffusion Implicit Models"; adds no noise unless `eta` is above 0; ``ddpm``: Ho et al.
    2020, "Denoising Diffusion Probabilistic Models"; adds noise at every step; ``dpm++2m``: Lu et al. 2022,
    "DPM-Solver++", second-order multistep with midpoints; needs fewer steps and adds no noise."""

    draw_steps: int
    """Number of network evaluations per generated sample; use 1 for consistency models [default: 10, and at most one
    more than `timesteps`; ddim and ddpm: 50]"""

    members: Literal["all", "weights", "producers"]
    """Which weights of a channel group contribute to its scores [default: all] Choices: ``all``: All members: weights
    on both sides, norms and biases; ``weights``: The weights on both sides: rows of producers, columns of consumers;
    ``producers``: The rows of producers alone."""

    reference: Literal["ddpm-prune", "ddpm-exp"]
    """Score exactly as a published implementation does, instead of by the formula of the paper. Choices:
    ``ddpm-prune``: `ddpm_prune.py` with Torch-Pruning: the mean of |w G| over weights on both sides. The sum includes
    the step at which the loss falls below the threshold; ``ddpm-exp``: `ddpm_exp/prune.py`: sums of (w G)^2 over
    weights on both sides plus |w G| of norm scales, with the loss summed over an image. The sum excludes the step at
    which the loss falls below the threshold."""

    device: str
    """The device to compute gradients on: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu]"""

    precision: Literal["float32", "float16"]
    """Precision of convolutions and matrix products in the gradients, independent of the precision of the network.
    float16 uses loss scaling; it is for devices that are faster in half precision [default: float32] Choices:
    ``float32``: Everything in float32. Weights of another precision are cast to it; ``float16``: Convolutions and
    matrix products in float16, everything else in float32."""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""

    adaptive: bool
    """Stop the gradients early: once the channels to be removed are the same in three consecutive checks, one every ten
    timesteps."""

    resume: bool
    """Continue from the checkpoints of gradients and refit that an interrupted run left beside the output."""

    config: StrPath
    """Read options from a file. Options on the command line take precedence."""


class RefitOptions(CommonOptions, DiffusionOptions, DataOptions, RefittingOptions, total=False):
    """Fit the weights of a pruned network by least squares, so that its layers reproduce the outputs of the original:
    the keywords of `refit`."""

    plan: StrPath
    """The plan of the cut [default: PRUNED.plan.json]"""

    report: StrPath
    """Write a report: one HTML page with samples, losses and the errors of all layers before and after the refit."""

    no_verify: bool
    """Verify neither the pruned network nor the refitted one, and do not measure latency."""

    no_latency: bool
    """Do not measure latency."""

    seed: int
    """Seed of samples, noise and the inputs of verification. [default: 0]"""

    inputs: Inputs
    """Inputs for verification and conditioning of the samples: arrays with the names of the network's inputs; sample i
    uses row i. Inputs that are not given are random."""

    size: Mapping[str, int]
    """The size of a symbolic dimension. Can be given several times."""

    device: str
    """The device to run on: cpu, cuda, cuda:1 or tensorrt [default: cpu]"""

    allow_fallback: bool
    """Run nodes on the CPU that the device does not support, instead of failing."""

    resume: bool
    """Continue from the checkpoint that an interrupted run left beside the output."""


class RuntimeOptions(CommonOptions, total=False):
    """Show which ONNX Runtime libraries are found, which one is used, and which devices work: the keywords of
    `runtime`."""


class SampleOptions(CommonOptions, DiffusionOptions, total=False):
    """Generate samples with a network, by DDIM, DDPM or DPM-Solver++: the keywords of `sample`."""

    save_npy: StrPath
    """Path for the sample values as a NumPy array [count, channels, height, width]"""

    count: int
    """Number of samples. [default: 16]"""

    steps: int
    """Number of network evaluations per sample [default: 50; dpm++2m: 20]"""

    sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """The sampler. Choices: ``ddim``: Song et al. 2021, "Denoising Diffusion Implicit Models"; adds no noise unless
    `eta` is above 0; ``ddpm``: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; adds noise at every step;
    ``dpm++2m``: Lu et al. 2022, "DPM-Solver++", second-order multistep with midpoints; needs fewer steps and adds no
    noise. [default: ddim]"""

    skip: Literal["uniform", "quadratic"]
    """Which timesteps of a discrete schedule the sampler uses. Choices: ``uniform``: Evenly spaced steps;
    ``quadratic``: Steps that are denser where there is little noise, up to 0.8 `T`, as in the DDIM paper. [default:
    uniform]"""

    eta: float
    """Stochasticity of DDIM, from 0 (deterministic) to 1 (as much noise as DDPM adds). [default: 0]"""

    seed: int
    """Seed of all noise. [default: 0]"""

    inputs: Inputs
    """Conditioning: arrays with the names of the network's inputs; sample i uses row i. Inputs that are not given are
    random."""

    size: Mapping[str, int]
    """The size of a symbolic dimension. Can be given several times."""


class VerifyOptions(CommonOptions, total=False):
    """Verify a pruned network against its original: the keywords of `verify`."""

    plan: StrPath
    """The plan of the cut [default: OUT.plan.json]"""

    inputs: Inputs
    """Inputs: arrays with the names of the network's inputs. Inputs that are not given are random."""

    rtol: float
    """Largest error allowed, relative to the largest magnitude of an output [default: 1e-4; 2e-2 for a model in half
    precision]"""

    atol: float
    """Absolute error allowed in addition to the relative one. [default: 0.000001]"""

    seed: int
    """Seed of the random inputs. [default: 0]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension. Can be given several times."""
