"""What the commands and the steps of a cut take as keywords.

Written by scripts/python_options.py from the command line: a key is an option, with dashes for underscores, and its text is
that of ``--help``. Options that may be given again take a sequence; ``NAME=N`` is a mapping; a flag is ``True``.
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
    """A model in memory that can be written into bytes, such as `onnx.ModelProto`."""

    def SerializeToString(self) -> bytes:
        """The model as the bytes of an ONNX file."""
        ...


if TYPE_CHECKING:
    StrPath: TypeAlias = str | os.PathLike[str]
    ModelLike: TypeAlias = StrPath | bytes | SerializableModel
    Data: TypeAlias = StrPath | NDArray[Any]
    Inputs: TypeAlias = StrPath | Mapping[str, NDArray[Any]]
else:
    StrPath = ModelLike = Data = Inputs = object


class CommonOptions(TypedDict, total=False):
    """What every command takes."""

    onnxruntime: StrPath
    """The ONNX Runtime library, or a folder that holds it [default: ORT_DYLIB_PATH, beside the executable, the Python
    environment, the system]"""

    provider_options: Mapping[str, str]
    """An option of ONNX Runtime for the execution provider of ``device``, such as use_tf32=1 or
    gpu_mem_limit=8000000000 for cuda; may be repeated."""


class DiffusionOptions(TypedDict, total=False):
    """How a network was trained, and what stands around it."""

    scheduler_config: StrPath
    """The scheduler_config.json of a diffusers model, instead of the options for the schedule [default: that of the
    pipeline that the network belongs to, where it has one and no option for the schedule is given]"""

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "flow", "karras"]
    """The noise schedule [default: linear; flow for flow predictions; karras if the time input is named sigma or noise]
    Choices: ``linear``: beta grows linearly (DDPM); ``scaled_linear``: The root of beta grows linearly (latent
    diffusion, Stable Diffusion); ``squaredcos_cap_v2``: A squared cosine (improved diffusion); ``flow``: A straight
    line from sample to noise (flow matching); ``karras``: Noise levels as Karras et al. space them (EDM, consistency
    models)."""

    beta_start: float
    """beta of the first step [default: 0.0001; scaled_linear: 0.00085]"""

    beta_end: float
    """beta of the last step [default: 0.02; scaled_linear: 0.012]"""

    train_timesteps: int
    """The number of steps of training, T [default: 1000]"""

    rescale_betas_zero_snr: bool
    """Stretch the schedule so that the last step has no signal."""

    shift: float
    """The shift of a flow schedule [default: 1]"""

    sigma_min: float
    """The least noise level of a karras schedule [default: 0.002]"""

    sigma_max: float
    """The greatest noise level of a karras schedule [default: 80]"""

    sigma_data: float
    """The standard deviation of the data, for preconditioning outside the graph [default: 0.5]"""

    preconditioning: Literal["inside", "outside"]
    """Where the scalings of a network with noise levels are [default: inside; outside if the time input is named noise;
    as the scheduler says, if one is given and the time input is not named sigma] Choices: ``inside``: In the graph: it
    takes the noisy sample and sigma, and returns the clean sample; ``outside``: Around the graph: it takes the scaled
    sample and ln(sigma) / 4."""

    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow"]
    """What the network's output stands for [default: epsilon; flow for a flow schedule; sample for noise levels]
    Choices: ``epsilon``: The noise `ε`; ``sample``: The clean sample `x_0`; ``v_prediction``: `v = a ε - s x_0`
    (Salimans and Ho 2022); ``flow``: The velocity `ε - x_0` of a straight flow."""

    time_input: Literal["step", "fraction", "sigma", "c_noise", "sqrt_alpha_bar", "alpha_bar", "noise_variance", "log_snr"]
    """What the time input expects [default: step; sigma or c_noise with noise levels; fraction if it is named a ratio;
    log_snr if it is named so] Choices: ``step``: The step `t`, from 0 to `T - 1`; of a flow `σ T`; ``fraction``: The
    step as a share of `T`, from 0 to 1; ``sigma``: The noise level `σ`; ``c_noise``: `ln(σ) / 4`, as EDM networks take
    it without their preconditioning; ``sqrt_alpha_bar``: The scale of the signal `sqrt(ᾱ)`, which SR3 and WaveGrad call
    the noise level; 1 where there is no noise; ``alpha_bar``: `ᾱ`, which Palette calls gamma; ``noise_variance``: The
    variance of the noise `1 - ᾱ`; ``log_snr``: The logarithm of the signal-to-noise ratio, `ln(a² / s²)`, as
    variational diffusion models take it; from -20 to 20."""

    clip_sample: bool
    """Clip estimates of the clean sample to the sample range [default: as the scheduler says; else for 1 or 3 channels
    with a discrete schedule]"""

    sample_range: tuple[float, float]
    """The values of samples that the network was trained on [default: -1,1]"""

    sample_input: str
    """The input that takes the noisy sample."""

    sample_channels: int
    """The sample is only the first N channels of its input; what follows is conditioning [default: as many as the
    prediction has]"""

    sample_offset: int
    """The sample begins at this channel of its input; what stands before is conditioning, as in SR3, where the image to
    enlarge comes first [default: 0]"""

    timestep_input: str
    """The input that takes the time step or noise level."""

    prediction_output: str
    """The output that is the prediction."""

    batch: int
    """The number of samples that are evaluated together."""

    pipeline: StrPath
    """The folder of the pipeline that the network belongs to: its scheduler and its usual sizes are taken where nothing
    else is given [default: found around the network]"""

    prompts: StrPath
    """A text file with a prompt on each line: the text encoders of the pipeline make the conditioning of it, sample i
    taking prompt i. What `inputs` gives takes precedence."""


class DataOptions(TypedDict, total=False):
    """Clean samples."""

    data: Data
    """Clean samples: a folder of PNG or JPEG images, a .npy, .npz or .safetensors file, or a folder of such files.
    Without it samples are drawn from the network itself."""

    data_range: tuple[float, float]
    """The values of the data that stand for the ends of the sample range [default: 0,255 for images and bytes; floats
    are taken as they are]"""


class RefittingOptions(TypedDict, total=False):
    """How weights are fitted after a cut."""

    refit_samples: int
    """Noisy samples that the weights are fitted on; clean ones are used again with other noise where there are fewer
    [default: 512, fewer where one run takes more than 39 GMACs or 8 MiB of activations]"""

    refit_timesteps: int
    """Timesteps that these samples are spread over [default: one for every chunk of samples, 64 or more]"""

    refit_weights: Literal["uniform", "gauss-newton"]
    """How much samples count by their timestep: all alike, or by how much an error at the layer moves the output there
    [default: gauss-newton] Choices: ``uniform``: All alike; ``gauss-newton``: By how much an error at the layer moves
    the output of the network at that timestep."""

    refit_memory: int | str
    """Bytes that the refit holds beside the two networks, such as 500M or 4G; what goes beyond is spilled to disk
    [default: 1.5G]"""

    refit_ridge: float
    """What is added to the diagonal of every Gram matrix, over its mean: how much the fit keeps to the old weights
    [default: 0.001]"""

    refit_exclude: str
    """Keep the weights of the layers whose weight or node has a matching name."""


class CutOptions(TypedDict, total=False):
    """How much goes and of which groups: the keywords of `Scores.cut`."""

    ratio: float
    """Share of the channels that is removed from every channel group, in [0, 1), as in the Diff-Pruning paper and in
    Torch-Pruning. MACs and parameters fall faster: about 1 - (1 - R)^2 of them go, 75 % at 0.5."""

    target_macs: float
    """Share of the multiply-accumulate operations to keep at most, in (0, 1]; the ratio is searched."""

    target_params: float
    """Share of the parameters to keep at most, in (0, 1]; the ratio is searched."""

    max_ratio: float
    """No channel group loses a larger share than this."""

    round_to: int
    """The axes of pruned weights stay multiples of N wide; fewer channels are removed where needed. Of attention that
    is heads times head size, so that a head of 40 counts as 40. 8 suits fp16 tensor cores, 32 int8 [default: 1]"""

    align: str
    """Keep widths that a runtime is fast at: tensorrt or ort-cuda (8), openvino or cpu (16), with :int8 after any of
    them (32). As `round_to` with that number, head sizes in eights, and an even number of channels in every norm group,
    where that comes out. The run says what each costs in MACs."""

    scope: Literal["local", "global"]
    """Take the same share from every group, or have groups compete: what loses least per operation saved goes first,
    and every share of the MACs can be met [default: local] Choices: ``local``: Every group loses the same share;
    ``global``: Groups lose shares of their own: next goes the channel with the least loss per operation saved. The loss
    is the error that a fit of the layers behind would leave, where there is data; else the score over the mean of its
    group."""

    keep: str | Sequence[str]
    """Keep the groups with a weight or node whose name matches; may be given again."""

    ratio_for: Mapping[str, float]
    """A ratio of their own for the groups with a weight or node whose name matches; may be given again, the last match
    counts. Groups that share a norm take the smallest ratio among them."""


class ScoreOptions(DiffusionOptions, DataOptions, CutOptions, total=False):
    """How channels are scored: the keywords of `Analysis.score`. Those of `CutOptions` say with `adaptive` which cut
    has to settle, and by `scope` whether groups are measured to be compared."""

    criterion: Literal["diff-pruning", "taylor", "hessian", "magnitude", "random"]
    """What scores the channels [default: diff-pruning] Choices: ``diff-pruning``: The paper's: |w G| with gradients
    summed over the timesteps whose loss stays above a threshold; ``taylor``: |sum of w G| with gradients summed over
    all timesteps; ``hessian``: w^2 times the squared gradients of all timesteps; ``magnitude``: The norm of the
    weights; ``random``: Random scores."""

    norm: Literal["l1", "l2"]
    """The norm of the magnitude criterion [default: l2] Choices: ``l1``: The sum of absolute values; ``l2``: The sum of
    squares."""

    group_reduction: Literal["sum", "mean", "max", "first"]
    """How the weights of a group make one score per channel [default: sum] Choices: ``sum``: The sum over all members:
    every weight entry of the channel counts once; ``mean``: The mean over the members; ``max``: The largest member;
    ``first``: The first member alone: the weight that produces the channels."""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    norm_groups: Literal["keep", "drop"]
    """Keep the number of norm groups and take the same number of channels from each, or drop whole norm groups, which
    is exact under masking [default: keep] Choices: ``keep``: Their number stays; each loses equally many channels;
    ``drop``: Their size stays; whole groups go."""

    attention: Literal["heads", "dims", "both", "none"]
    """What shrinks in attention: whole heads (head dimensions where there is one head), head dimensions, both, or
    nothing [default: heads] Choices: ``heads``: Whole heads where there is more than one, else head dimensions;
    ``dims``: Head dimensions, the same of every head; ``both``: Heads and dimensions, each by the ratio; ``none``:
    Nothing."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting and verification; may be given again."""

    threshold: float
    """Timesteps count while their loss is at least X times the largest: the paper's threshold [default: 0.05]"""

    threshold_mode: Literal["prefix", "mask"]
    """Which timesteps the threshold keeps: all before the first below it, as published, or every one above it, as in
    the paper's formula [default: prefix] Choices: ``prefix``: All before the first whose loss falls below the threshold
    times the largest so far, as the published code does; ``mask``: Every one whose loss is not below the threshold
    times the largest of all, as the paper's formula says."""

    timesteps: int
    """The number of timesteps that are visited, spread evenly over the schedule [default: all]"""

    micro_batch: int
    """Samples in one run; bounds the memory of activations [default: the batch]"""

    memory: int | str
    """Bytes that the gradients may take, such as 8G [default: what is free]. Where they need more, runs have fewer
    samples, and then the weights are divided over several passes, each over all timesteps; the scores stay."""

    draw_sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """How samples are drawn from the network itself where there is no data [default: dpm++2m] Choices: ``ddim``: Song
    et al. 2021, "Denoising Diffusion Implicit Models"; no noise is added unless `eta` says so; ``ddpm``: Ho et al.
    2020, "Denoising Diffusion Probabilistic Models"; noise is added at every step; ``dpm++2m``: Lu et al. 2022,
    "DPM-Solver++", second-order multistep with midpoints: fewer steps, no noise is added."""

    draw_steps: int
    """Evaluations of the network for a sample that is drawn from it; 1 suits consistency models [default: 10, and at
    most one more than `timesteps`; ddim and ddpm: 50]"""

    members: Literal["all", "weights", "producers"]
    """Which weights of a channel group score [default: all] Choices: ``all``: Everything that a channel goes through:
    weights on both sides, norms and biases; ``weights``: The weights on both sides: rows of producers, columns of
    consumers; ``producers``: The rows of producers alone."""

    reference: Literal["ddpm-prune", "ddpm-exp"]
    """Score exactly as a published implementation does instead of by the paper's formula. Choices: ``ddpm-prune``:
    `ddpm_prune.py` with Torch-Pruning: the mean of |w G| over weights on both sides; the step at which the loss falls
    below the threshold is still summed; ``ddpm-exp``: `ddpm_exp/prune.py`: sums of (w G)^2 over weights on both sides
    plus |w G| of norm scales, with the loss summed over an image; the step at which the loss falls below the threshold
    is not summed."""

    device: str
    """Where gradients are computed: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu]"""

    precision: Literal["float32", "float16"]
    """The precision of convolutions and matrix products in the gradients, whatever that of the network; float16 is for
    devices that are faster in it and scales the loss [default: float32] Choices: ``float32``: Everything in float32;
    weights of another precision are cast to it; ``float16``: Convolutions and matrix products in float16, everything
    else in float32."""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""

    adaptive: bool
    """Stop once the channels that would go have not changed for three checks, one every ten timesteps."""


class CheckOptions(TypedDict, total=False):
    """How a pruned file is verified: the keywords of `Staged.check` and `Analysis.verify`."""

    rtol: float
    """Allowed error of verification relative to the largest magnitude of an output [default: 1e-4, 2e-2 where the model
    has half precision]"""

    atol: float
    """Allowed absolute error of verification on top [default: 1e-6]"""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting and verification; may be given again."""

    pipeline: StrPath
    """The folder of the pipeline that the network belongs to: its scheduler and its usual sizes are taken where nothing
    else is given [default: found around the network]"""


class FitOptions(DiffusionOptions, DataOptions, RefittingOptions, total=False):
    """On what weights are fitted: the keywords of `Staged.refit`."""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting and verification; may be given again."""

    device: str
    """Where gradients are computed: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu]"""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""


class NetworkOptions(DiffusionOptions, DataOptions, total=False):
    """What a network is and how it was trained: the keywords of `Network`."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting and verification; may be given again."""


class ApplyOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Repeat the cut of a plan file exactly: the keywords of `apply`."""

    no_verify: bool
    """Write the output without verifying it."""

    refit: bool
    """Fit the weights again as the plan says they were, on the samples of the first refit: `data`, or drawn where they
    were."""

    inputs: Inputs
    """The inputs of the first refit: arrays by the names of the network's inputs."""


class ArtifactsOptions(CommonOptions, total=False):
    """Write what a training session of ONNX Runtime loads: training, eval and optimizer model, checkpoint: the keywords
    of `artifacts`."""

    prediction: str
    """The output that the loss compares with the target [default: the first]"""

    channels: int
    """How many of the prediction's channels the loss compares, from the first on [default: all]. Networks that also
    predict a variance have twice as many as the noise."""

    train: str | Sequence[str]
    """Train the floating point constants whose name matches; may be given again [default: the weights of all channel
    groups, with their biases]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, which the artifacts fix; may be given again."""


class BenchOptions(CommonOptions, total=False):
    """Time networks beside each other at the sizes that they are deployed at, with the time by operator: the keywords
    of `bench`."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, as the networks are deployed; may be given again."""

    batch: int | Sequence[int]
    """Sizes of the batch to measure at, one after the other, such as 1,2,4."""

    runs: int
    """Rounds in which every network runs once; five more come before any is measured. [default: 50]"""

    seconds: float
    """No further round begins after this time, for each size of the batch. [default: 60]"""

    device: str
    """Where the networks run: cpu, cuda, cuda:1 or tensorrt [default: cpu]"""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""

    threads: int
    """Threads within an operator [default: ONNX Runtime's choice]"""

    seed: int
    """Seed of the inputs, which are drawn. [default: 0]"""

    no_operators: bool
    """Do not measure the time by operator."""


class DeployOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Make a network ready for a runtime: half precision, profiles of sizes, commands, in a folder: the keywords of
    `deploy`."""

    target: Literal["tensorrt", "tensorrt-rtx", "ort-cuda", "directml", "openvino", "web", "cpu"]
    """What runs the network. Choices: ``tensorrt``: NVIDIA TensorRT: an engine that is built on the machine with the
    GPU, or ONNX Runtime's TensorRT provider; ``tensorrt-rtx``: TensorRT for RTX: an engine that is built on any
    machine; ``ort-cuda``: ONNX Runtime's CUDA provider; ``directml``: ONNX Runtime's DirectML provider on Windows;
    ``openvino``: OpenVINO; ``web``: ONNX Runtime Web, with WebGPU or WebNN; ``cpu``: ONNX Runtime on the CPU."""

    precision: Literal["float32", "float16", "bfloat16", "int8"]
    """The precision [default: float16; float32 for openvino and cpu] Choices: ``float32``: As the file has it;
    ``float16``: Weights and activations in float16, but for what it does not hold; ``bfloat16``: The same in bfloat16;
    ``int8``: Linear layers in int8, but for those that it costs too much; everything else as the file has it."""

    io_precision: Literal["float32", "float16"]
    """The type of the network's inputs and outputs; float16 stands for half precision of either kind [default: float32;
    that of the network with `io` demodiffusion and webnn]"""

    io: Literal["optimum", "demodiffusion", "comfyui", "webnn"]
    """The names, ranks and types of inputs and outputs that a program expects [default: those of the network] Choices:
    ``optimum``: optimum's pipelines: sample, timestep (a scalar), encoder_hidden_states[, text_embeds, time_ids] ->
    out_sample; ``demodiffusion``: TensorRT's demo/Diffusion: `sample, timestep[1], encoder_hidden_states[, text_embeds,
    time_ids]` -> `latent`, in model_optimized.onnx; ``comfyui``: ComfyUI's node for TensorRT: x, timesteps, context[,
    y] -> h; ``webnn``: Web demos with WebNN: as optimum's, with fixed sizes and `timestep[1]`."""

    profile: Mapping[str, str]
    """Sizes of symbolic dimensions: NAME=N, NAME=MIN..MAX or NAME=MIN..OPT..MAX, several with commas between. Engines
    are built for them [default: a batch of 1..2..8, latents of 64 x 64, 77 tokens]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension, where the profile does not say it; may be given again."""

    engine: bool
    """Build the engine into the bundle, for tensorrt and tensorrt-rtx: with trtexec or tensorrt_rtx on the PATH, or a
    Python that has the bindings."""

    compute_capability: str | Sequence[str]
    """The compute capabilities that an engine of TensorRT for RTX is for, such as 8.9,12.0 [default: 8.0 and later]"""

    python: StrPath
    """The Python whose tensorrt or tensorrt_rtx builds the engine [default: programs and the Python on the PATH]"""

    keep: str | Sequence[str]
    """Keep the nodes whose name matches in float32; in int8 also layers by the names of their weights. May be given
    again."""

    calibration: Literal["min-max", "percentile", "entropy"]
    """How the ranges of activations in int8 are chosen. Choices: ``min-max``: The least and the largest element;
    ``percentile``: What all but one of ten thousand elements are within; ``entropy``: The range of which the quantised
    distribution is closest to that of the elements, by the Kullback-Leibler divergence (Migacz, "8-bit inference with
    TensorRT", 2017). [default: min-max]"""

    budget: float
    """The largest mean squared error of int8, as a share of the denoising loss or of the mean square of the prediction,
    whichever is less: the layers that cost most stay in float32. [default: 0.01]"""

    count: int
    """The number of clean samples on which the network is run. [default: 16]"""

    timesteps: int
    """The number of timesteps, spread evenly over the schedule. [default: 10]"""

    seed: int
    """Seed of the choice of samples and of all noise. [default: 0]"""

    inputs: Inputs
    """Conditioning, or inputs of a network that does not denoise: arrays by the names of the network's inputs. What is
    not given is drawn."""


class EncodeOptions(CommonOptions, total=False):
    """Encode images and captions once for a latent network, into a cache of arrays that --data takes: the keywords of
    `encode`."""

    vae_encoder: ModelLike
    """The VAE encoder in ONNX."""

    text_encoder: ModelLike
    """The text encoder in ONNX; without one, captions are left out."""

    tokenizer: StrPath
    """The folder of the tokenizer: tokenizer.json, or vocab.json and merges.txt of CLIP."""

    size: int
    """Height and width to which images are cut and resized. [default: 512]"""

    scaling_factor: float
    """What latents are multiplied by [default: that of config.json beside the VAE encoder, else 0.18215]"""

    latents: Literal["mean", "drawn", "direct"]
    """What is taken of the VAE encoder's output: the means or draws of its moments, or the output itself [default: by
    its name, the means of latent_parameters or latent_sample itself] Choices: ``mean``: The output holds means and
    logarithms of variances, one after the other along the channels: the means; ``drawn``: Of such an output, one draw
    of the normal distribution for each image, by the seed and the image's number; ``direct``: The output is the
    latents."""

    text_output: str
    """The output of the text encoder that is taken [default: the first with three axes]"""

    text_length: int
    """Tokens to which captions are cut or padded [default: what the encoder fixes, else the tokenizer's
    configuration]"""

    sample_name: str
    """The name of the latents: the network's sample input. [default: sample]"""

    text_name: str
    """The name of the captions' states: the network's input for them. [default: encoder_hidden_states]"""

    half: bool
    """Write half precision."""

    batch: int
    """Images that are encoded at once. [default: 4]"""

    shard: int
    """Images of a shard. [default: 256]"""

    most_unreadable: int
    """Images that can't be read and are left out, at most. [default: 16]"""

    seed: int
    """Seed of latents that are drawn. [default: 0]"""

    device: str
    """Where the encoders run: cpu, cuda[:N] or tensorrt[:N] [default: cpu]"""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""


class EvaluateOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Say how good networks are beside their original: losses, samples from the same noise, costs: the keywords of
    `evaluate`."""

    original: ModelLike
    """The network that they stem from."""

    report: StrPath
    """Write a report: one HTML page with figures, losses by timestep, and samples side by side."""

    max_loss_increase: float | str
    """Fail (exit code 1) where the mean denoising loss is above the original's by more than this share, such as 5% or
    0.05."""

    min_ssim: float
    """Fail (exit code 1) where the mean SSIM to the original's samples is below this."""

    seed: int
    """Seed of the choice of clean samples, of all noise, and of the subsets of the kernel distance. [default: 0]"""

    no_latency: bool
    """Do not measure latency."""

    device: str
    """Where the networks run: cpu, cuda, cuda:1 or tensorrt [default: cpu]"""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""

    inputs: Inputs
    """Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn."""

    size: Mapping[str, int]
    """The size of a symbolic dimension; may be given again."""

    count: int
    """Clean samples of the denoising loss [default: 256, or as many whole batches as the data has]"""

    timesteps: int
    """The number of timesteps, spread evenly over the schedule. [default: 25]"""

    samples: int
    """Samples that every network draws from the same noise; none with 0 [default: 2048 with `features`, else 256]"""

    steps: int
    """The number of evaluations of the network per sample [default: 50; dpm++2m: 20]"""

    sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """The sampler. Choices: ``ddim``: Song et al. 2021, "Denoising Diffusion Implicit Models"; no noise is added unless
    `eta` says so; ``ddpm``: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; noise is added at every step;
    ``dpm++2m``: Lu et al. 2022, "DPM-Solver++", second-order multistep with midpoints: fewer steps, no noise is added.
    [default: ddim]"""

    skip: Literal["uniform", "quadratic"]
    """Which steps of a discrete schedule are visited. Choices: ``uniform``: Evenly spaced steps; ``quadratic``: Steps
    that lie closer together where there is little noise, up to 0.8 `T`, as in the DDIM paper. [default: uniform]"""

    eta: float
    """DDIM's share of the noise that DDPM would add, from 0 to 1. [default: 0]"""

    features: ModelLike
    """A network that computes features of images, for distances between samples (FD and KID): any ONNX file with one
    input of images."""

    features_output: str
    """The value that holds the features, an output or any other value of the graph; spatial axes are averaged [default:
    the only output]"""

    features_range: tuple[float, float]
    """What black and white are [default: as the metadata Image.NominalPixelRange says; 0,255 for bytes, else 0,1]"""

    features_mean: float | Sequence[float]
    """What is subtracted from pixels in that range: one number, or one for each channel in the network's order
    [default: 0]"""

    features_std: float | Sequence[float]
    """By what is divided then [default: 1]"""

    features_order: Literal["rgb", "bgr"]
    """The order of colours [default: as the metadata Image.BitmapPixelFormat says, else rgb] Choices: ``rgb``: Red,
    green, blue; ``bgr``: Blue, green, red."""

    features_layout: Literal["nchw", "nhwc"]
    """Where the channels stand [default: on the axis of size 1 or 3] Choices: ``nchw``: `[batch, channels, height,
    width]`; ``nhwc``: `[batch, height, width, channels]`."""

    features_size: int | str
    """The size of images where the graph leaves it open, one number or height and width [default: that of the
    samples]"""

    data_samples: int
    """Samples of the data that features are taken of [default: as many as are drawn, or all]"""

    kid_subsets: int
    """Random subsets over which the kernel distance is averaged. [default: 100]"""

    kid_subset_size: int
    """Samples in each of them [default: 1000, or as many as there are]"""


class FinetuneOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Train the weights of a file, by its denoising loss and the output of a teacher: the keywords of `finetune`."""

    teacher: ModelLike
    """The network whose output is learnt beside the data: the original of a pruned network."""

    plan: StrPath
    """The plan of the cut [default: IN.plan.json, where it is there]. With `teacher`, OUT.onnx gets a plan of its own,
    by which it is verified against its original."""

    run_folder: StrPath
    """Where checkpoints, metrics and pictures are kept [default: OUT.finetune]"""

    resume: bool
    """Go on from the last checkpoint in the folder."""

    report: StrPath
    """Write a report: one HTML page with samples of teacher, network and trained network, and the losses."""

    no_verify: bool
    """Do not verify the trained network."""

    seed: int
    """Seed of the order of samples, their timesteps and their noise. [default: 0]"""

    inputs: Inputs
    """Conditioning of the samples, arrays by the names of the network's inputs; sample i takes row i. What is not given
    is drawn."""

    size: Mapping[str, int]
    """The size of a symbolic dimension; may be given again."""

    recipe: Literal["quick", "diff-pruning", "bk-sdm"]
    """The recipe that gives every option its default: quick (distillation for some hundred steps), diff-pruning (the
    paper's on CIFAR-10) or bk-sdm [default: quick] Choices: ``quick``: Distillation with a cosine from 1e-3, a batch of
    32: for some hundred or thousand steps of a small network; ``diff-pruning``: "Structural Pruning for Diffusion
    Models" on CIFAR-10: Adam, 2e-4, a batch of 128, antithetic timesteps, 100,000 steps; ``bk-sdm``: "BK-SDM" (2023):
    AdamW, 5e-5, decay 0.01, a batch of 256, the teacher's output beside the data, 50,000 steps."""

    steps: int
    """Steps of the optimizer [default: 1000]"""

    micro_batch: int
    """Samples of one run of the network, a divisor of the batch: less memory, the same result [default: the batch]"""

    memory: int | str
    """Bytes that the run may take, such as 8G [default: what is free]. Where it needs more, runs of the network have
    fewer samples."""

    accumulate: int
    """Batches whose gradients are summed for one step of the optimizer [default: 1]"""

    lr: float
    """Learning rate [default: 1e-3]"""

    lr_schedule: Literal["constant", "cosine", "linear"]
    """How the learning rate falls after the warm-up [default: cosine] Choices: ``constant``: It stays; ``cosine``: Half
    a cosine down to zero (Loshchilov and Hutter, "SGDR", 2017); ``linear``: A line down to zero."""

    warmup: int
    """Steps over which the learning rate grows from zero [default: a tenth of all, but at most 100]"""

    optimizer: Literal["adam-w", "adam"]
    """The optimizer [default: adamw] Choices: ``adam-w``: Adam with decay apart from the gradient (Loshchilov and
    Hutter, 2019); ``adam``: Adam; the decay is added to the gradient (Kingma and Ba, 2015)."""

    weight_decay: float
    """Weight decay [default: 0]"""

    ema: float
    """Decay of the moving average of the weights (EMA), which is what is written; 0 for none [default: 0.999]"""

    clip: float
    """Largest norm of all gradients together; larger ones are scaled down; 0 for none [default: 1]"""

    distill: float
    """Share of the teacher's output in the loss, from 0 to 1 [default: 0.7 with `teacher`]"""

    distill_features: str
    """Compare inner values with the teacher's, of the channels that were kept: those of nodes or values whose name
    matches, or auto for a few of the residual stream."""

    distill_features_weight: float
    """Weight of the inner values in the loss [default: 0.1]"""

    distill_jacobian: float
    """Weight of the difference between how strongly output and teacher's output change with the noisy samples
    (2ndMatch), for example 0.1; takes three times the time and memory [default: 0]"""

    huber: float
    """Use the Huber loss: differences beyond this count by their absolute value."""

    snr_gamma: float
    """Weigh timesteps by min(SNR, X) (Min-SNR weighting)."""

    timestep_sampling: Literal["uniform", "antithetic", "stratified"]
    """How timesteps are drawn [default: stratified] Choices: ``uniform``: Each for itself, all equally likely;
    ``antithetic``: In pairs t and T - 1 - t, as the published code of DDIM and Diff-Pruning draws them; ``stratified``:
    One from each of as many parts of the schedule as a batch has samples."""

    flip: bool
    """Mirror half of the images from left to right."""

    drop_conditioning: float
    """Leave out the conditioning of a sample with this probability, for classifier-free guidance [default: 0]"""

    empty_conditioning: Inputs
    """What stands for no conditioning, arrays of one row by the names of the inputs [default: zeros]"""

    train: str | Sequence[str]
    """Train the floating point constants whose name matches; may be given again [default: the weights of all channel
    groups and their biases]"""

    precision: Literal["float32", "float16"]
    """Precision of convolutions and matrix products; weights and optimizer are float32 [default: float32] Choices:
    ``float32``: Everything in float32; weights of another precision are cast to it; ``float16``: Convolutions and
    matrix products in float16, everything else in float32."""

    checkpoint_activations: bool
    """Compute activations again in the backward pass instead of keeping them: less memory, more time, the same
    result."""

    device: str
    """Where the steps run: cpu, cuda or cuda:N [default: cpu]"""

    update: Literal["kernel", "graph"]
    """What makes the optimizer's step: a kernel of ours on the CPU, or graphs of standard operators in the memory of
    any device [default: kernel on the CPU, graph elsewhere] Choices: ``kernel``: A fused kernel of ours, on the CPU
    alone; ``graph``: Graphs of standard operators, on any device."""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""

    threads: int
    """Threads within an operator [default: as many as ONNX Runtime takes]"""

    max_hours: float
    """Begin no further step after this time."""

    eval_data: Data
    """Clean samples by which the network is judged during training [default: up to 32 of the data, which are not
    trained on]"""

    eval_samples: int
    """Samples by which the network is judged, at most [default: 32]"""

    eval_every: int
    """Steps between two evaluations [default: a tenth of all, but at least 100]"""

    eval_pictures: int
    """Samples that are drawn from fixed noise at every evaluation, as one PNG [default: 0]"""

    checkpoint_every: int
    """Steps between two checkpoints [default: one every ten minutes]"""

    keep_checkpoints: int
    """Checkpoints that are kept [default: 2]"""


class InspectOptions(CommonOptions, total=False):
    """Show inputs, operators, costs, channel groups and what keeps channels from being pruned: the keywords of
    `inspect`."""

    attention: Literal["heads", "dims", "both", "none"]
    """What shrinks in attention. Choices: ``heads``: Whole heads where there is more than one, else head dimensions;
    ``dims``: Head dimensions, the same of every head; ``both``: Heads and dimensions, each by the ratio; ``none``:
    Nothing. [default: heads]"""

    norm_groups: Literal["keep", "drop"]
    """What happens to norm groups. Choices: ``keep``: Their number stays; each loses equally many channels; ``drop``:
    Their size stays; whole groups go. [default: keep]"""

    members: bool
    """List the weights of every channel group and the nodes that it goes through, each with its coupling as text."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting; may be given again."""


class LossOptions(CommonOptions, DiffusionOptions, DataOptions, total=False):
    """Measure the denoising loss of a network on clean samples: the keywords of `loss`."""

    count: int
    """The number of samples. [default: 256]"""

    timesteps: int
    """The number of timesteps, spread evenly over the schedule. [default: 25]"""

    seed: int
    """Seed of the choice of samples and of the noise, which is the same at every timestep. [default: 0]"""

    inputs: Inputs
    """Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn."""

    size: Mapping[str, int]
    """The size of a symbolic dimension; may be given again."""


class PruneOptions(CommonOptions, DiffusionOptions, DataOptions, RefittingOptions, total=False):
    """Prune channels of an exported diffusion network on its ONNX graph and prove that the cut is correct: the keywords
    of `prune`."""

    components: str | Sequence[str]
    """The components of a pipeline that are cut, by the names of their folders [default: the denoiser, unet or
    transformer]"""

    component_ratio: Mapping[str, float]
    """A ratio of its own for a component of a pipeline; may be given again. Where neither `components` nor a share for
    all (`ratio`, `target_macs`, `target_params`) is given, the components that are named here are cut, and no other."""

    ratio: float
    """Share of the channels that is removed from every channel group, in [0, 1), as in the Diff-Pruning paper and in
    Torch-Pruning. MACs and parameters fall faster: about 1 - (1 - R)^2 of them go, 75 % at 0.5."""

    target_macs: float
    """Share of the multiply-accumulate operations to keep at most, in (0, 1]; the ratio is searched."""

    target_params: float
    """Share of the parameters to keep at most, in (0, 1]; the ratio is searched."""

    rounds: int
    """Prune in N rounds, geometric steps to the target: each cuts, refits and, with `finetune_steps`, trains. The last
    file is a cut of IN.onnx and is verified against it. What earlier rounds make lies in the folder OUT.rounds
    [default: 1]"""

    finetune_steps: int
    """Train for N steps after the cut of every round, by the recipe "quick" of the command finetune with IN.onnx as the
    teacher, on `data` [default: 0]"""

    max_ratio: float
    """No channel group loses a larger share than this."""

    round_to: int
    """The axes of pruned weights stay multiples of N wide; fewer channels are removed where needed. Of attention that
    is heads times head size, so that a head of 40 counts as 40. 8 suits fp16 tensor cores, 32 int8 [default: 1]"""

    align: str
    """Keep widths that a runtime is fast at: tensorrt or ort-cuda (8), openvino or cpu (16), with :int8 after any of
    them (32). As `round_to` with that number, head sizes in eights, and an even number of channels in every norm group,
    where that comes out. The run says what each costs in MACs."""

    scope: Literal["local", "global"]
    """Take the same share from every group, or have groups compete: what loses least per operation saved goes first,
    and every share of the MACs can be met [default: local] Choices: ``local``: Every group loses the same share;
    ``global``: Groups lose shares of their own: next goes the channel with the least loss per operation saved. The loss
    is the error that a fit of the layers behind would leave, where there is data; else the score over the mean of its
    group."""

    criterion: Literal["diff-pruning", "taylor", "hessian", "magnitude", "random"]
    """What scores the channels [default: diff-pruning] Choices: ``diff-pruning``: The paper's: |w G| with gradients
    summed over the timesteps whose loss stays above a threshold; ``taylor``: |sum of w G| with gradients summed over
    all timesteps; ``hessian``: w^2 times the squared gradients of all timesteps; ``magnitude``: The norm of the
    weights; ``random``: Random scores."""

    norm: Literal["l1", "l2"]
    """The norm of the magnitude criterion [default: l2] Choices: ``l1``: The sum of absolute values; ``l2``: The sum of
    squares."""

    group_reduction: Literal["sum", "mean", "max", "first"]
    """How the weights of a group make one score per channel [default: sum] Choices: ``sum``: The sum over all members:
    every weight entry of the channel counts once; ``mean``: The mean over the members; ``max``: The largest member;
    ``first``: The first member alone: the weight that produces the channels."""

    seed: int
    """Seed of samples, noise, random scores and the inputs of verification [default: 0]"""

    keep: str | Sequence[str]
    """Keep the groups with a weight or node whose name matches; may be given again."""

    ratio_for: Mapping[str, float]
    """A ratio of their own for the groups with a weight or node whose name matches; may be given again, the last match
    counts. Groups that share a norm take the smallest ratio among them."""

    norm_groups: Literal["keep", "drop"]
    """Keep the number of norm groups and take the same number of channels from each, or drop whole norm groups, which
    is exact under masking [default: keep] Choices: ``keep``: Their number stays; each loses equally many channels;
    ``drop``: Their size stays; whole groups go."""

    attention: Literal["heads", "dims", "both", "none"]
    """What shrinks in attention: whole heads (head dimensions where there is one head), head dimensions, both, or
    nothing [default: heads] Choices: ``heads``: Whole heads where there is more than one, else head dimensions;
    ``dims``: Head dimensions, the same of every head; ``both``: Heads and dimensions, each by the ratio; ``none``:
    Nothing."""

    size: Mapping[str, int]
    """The size of a symbolic dimension, for counting and verification; may be given again."""

    plan: StrPath
    """Where the plan goes [default: OUT.plan.json]"""

    report: StrPath
    """Write a report: one HTML page with costs, losses, importance, kept channels and the result of verification."""

    dry_run: bool
    """Show what would be removed and write nothing."""

    no_verify: bool
    """Write the output without verifying it and without measuring latency; ONNX Runtime is not needed then."""

    no_latency: bool
    """Do not measure latency."""

    rtol: float
    """Allowed error of verification relative to the largest magnitude of an output [default: 1e-4, 2e-2 where the model
    has half precision]"""

    atol: float
    """Allowed absolute error of verification on top [default: 1e-6]"""

    inputs: Inputs
    """Inputs for verification and latency, arrays by the names of the network's inputs; also the conditioning of the
    gradients, sample i taking row i. What is not given is drawn."""

    refit: bool
    """Fit the weights that are left by least squares, so that the pruned network computes what the original does
    [default: where there are clean samples anyway, from `data` or drawn for the criterion]"""

    no_refit: bool
    """Keep the weights that are left as they are."""

    threshold: float
    """Timesteps count while their loss is at least X times the largest: the paper's threshold [default: 0.05]"""

    threshold_mode: Literal["prefix", "mask"]
    """Which timesteps the threshold keeps: all before the first below it, as published, or every one above it, as in
    the paper's formula [default: prefix] Choices: ``prefix``: All before the first whose loss falls below the threshold
    times the largest so far, as the published code does; ``mask``: Every one whose loss is not below the threshold
    times the largest of all, as the paper's formula says."""

    timesteps: int
    """The number of timesteps that are visited, spread evenly over the schedule [default: all]"""

    micro_batch: int
    """Samples in one run; bounds the memory of activations [default: the batch]"""

    memory: int | str
    """Bytes that the gradients may take, such as 8G [default: what is free]. Where they need more, runs have fewer
    samples, and then the weights are divided over several passes, each over all timesteps; the scores stay."""

    draw_sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """How samples are drawn from the network itself where there is no data [default: dpm++2m] Choices: ``ddim``: Song
    et al. 2021, "Denoising Diffusion Implicit Models"; no noise is added unless `eta` says so; ``ddpm``: Ho et al.
    2020, "Denoising Diffusion Probabilistic Models"; noise is added at every step; ``dpm++2m``: Lu et al. 2022,
    "DPM-Solver++", second-order multistep with midpoints: fewer steps, no noise is added."""

    draw_steps: int
    """Evaluations of the network for a sample that is drawn from it; 1 suits consistency models [default: 10, and at
    most one more than `timesteps`; ddim and ddpm: 50]"""

    members: Literal["all", "weights", "producers"]
    """Which weights of a channel group score [default: all] Choices: ``all``: Everything that a channel goes through:
    weights on both sides, norms and biases; ``weights``: The weights on both sides: rows of producers, columns of
    consumers; ``producers``: The rows of producers alone."""

    reference: Literal["ddpm-prune", "ddpm-exp"]
    """Score exactly as a published implementation does instead of by the paper's formula. Choices: ``ddpm-prune``:
    `ddpm_prune.py` with Torch-Pruning: the mean of |w G| over weights on both sides; the step at which the loss falls
    below the threshold is still summed; ``ddpm-exp``: `ddpm_exp/prune.py`: sums of (w G)^2 over weights on both sides
    plus |w G| of norm scales, with the loss summed over an image; the step at which the loss falls below the threshold
    is not summed."""

    device: str
    """Where gradients are computed: cpu, cuda, cuda:N, tensorrt or tensorrt:N [default: cpu]"""

    precision: Literal["float32", "float16"]
    """The precision of convolutions and matrix products in the gradients, whatever that of the network; float16 is for
    devices that are faster in it and scales the loss [default: float32] Choices: ``float32``: Everything in float32;
    weights of another precision are cast to it; ``float16``: Convolutions and matrix products in float16, everything
    else in float32."""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""

    adaptive: bool
    """Stop once the channels that would go have not changed for three checks, one every ten timesteps."""

    resume: bool
    """Go on from the checkpoints of gradients and refit that a killed run left beside the output."""

    config: StrPath
    """Read options from a file; options on the command line take precedence."""


class RefitOptions(CommonOptions, DiffusionOptions, DataOptions, RefittingOptions, total=False):
    """Fit the weights of a pruned file by least squares, so that it computes what its original does: the keywords of
    `refit`."""

    plan: StrPath
    """The plan of the cut [default: PRUNED.plan.json]"""

    report: StrPath
    """Write a report: one HTML page."""

    no_verify: bool
    """Verify neither the pruned network nor the refitted one, and measure no latency."""

    no_latency: bool
    """Do not measure latency."""

    seed: int
    """Seed of samples, noise and the inputs of verification. [default: 0]"""

    inputs: Inputs
    """Inputs for verification and conditioning of the samples, arrays by the names of the network's inputs; sample i
    takes row i. What is not given is drawn."""

    size: Mapping[str, int]
    """The size of a symbolic dimension; may be given again."""

    device: str
    """Where the networks run: cpu, cuda, cuda:1 or tensorrt [default: cpu]"""

    allow_fallback: bool
    """Let the CPU run what the device can't, instead of failing."""

    resume: bool
    """Go on from the checkpoint that a killed run left beside the output."""


class RuntimeOptions(CommonOptions, total=False):
    """Show which ONNX Runtime libraries are found and which one is used: the keywords of `runtime`."""


class SampleOptions(CommonOptions, DiffusionOptions, total=False):
    """Draw samples from a network, by DDIM, DDPM or DPM-Solver++: the keywords of `sample`."""

    save_npy: StrPath
    """Where the samples go as they are, as a NumPy array [count, channels, height, width]"""

    count: int
    """The number of samples. [default: 16]"""

    steps: int
    """The number of evaluations of the network per sample [default: 50; dpm++2m: 20]"""

    sampler: Literal["ddim", "ddpm", "dpm++2m"]
    """The sampler. Choices: ``ddim``: Song et al. 2021, "Denoising Diffusion Implicit Models"; no noise is added unless
    `eta` says so; ``ddpm``: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; noise is added at every step;
    ``dpm++2m``: Lu et al. 2022, "DPM-Solver++", second-order multistep with midpoints: fewer steps, no noise is added.
    [default: ddim]"""

    skip: Literal["uniform", "quadratic"]
    """Which steps of a discrete schedule are visited. Choices: ``uniform``: Evenly spaced steps; ``quadratic``: Steps
    that lie closer together where there is little noise, up to 0.8 `T`, as in the DDIM paper. [default: uniform]"""

    eta: float
    """DDIM's share of the noise that DDPM would add, from 0 to 1. [default: 0]"""

    seed: int
    """Seed of all noise. [default: 0]"""

    inputs: Inputs
    """Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn."""

    size: Mapping[str, int]
    """The size of a symbolic dimension; may be given again."""


class VerifyOptions(CommonOptions, total=False):
    """Check a pruned file against its original: the keywords of `verify`."""

    plan: StrPath
    """The plan of the cut [default: OUT.plan.json]"""

    inputs: Inputs
    """Inputs, arrays by the names of the network's inputs. What is not given is drawn."""

    rtol: float
    """Allowed error relative to the largest magnitude of an output [default: 1e-4, 2e-2 where the model has half
    precision]"""

    atol: float
    """Allowed absolute error on top. [default: 0.000001]"""

    seed: int
    """Seed of the random inputs. [default: 0]"""

    size: Mapping[str, int]
    """The size of a symbolic dimension; may be given again."""
