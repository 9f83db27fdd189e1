"""Writes results of diffusers' schedulers for the tests of src/diffusion: fixtures/diffusion/schedulers.{json,npz}.

Every case is a scheduler configuration with short trajectories on random network outputs. The cases of the multistep
solver, whose steps depend on each other, are written to multistep.{json,npz}; there the scheduler computes in float64,
except in the cases named float32. Needs diffusers, numpy and torch of requirements-export.txt.
"""

import contextlib
import itertools
import json
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "diffusion"
SHAPE = (2, 3, 2, 2)

# Name, class of the scheduler, configuration, number of steps, arguments of step().
CASES = [
    ("ddim_linear", "DDIMScheduler", {"beta_schedule": "linear"}, 10, {}),
    ("ddim_eta", "DDIMScheduler", {"beta_schedule": "linear", "clip_sample": False}, 10, {"eta": 0.6}),
    (
        "ddim_stable_diffusion",
        "DDIMScheduler",
        {
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
            "set_alpha_to_one": False, "steps_offset": 1,
        },
        20,
        {},
    ),
    (
        "ddim_v_zero_snr",
        "DDIMScheduler",
        {
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        },
        10,
        {},
    ),
    (
        "ddim_cosine_sample",
        "DDIMScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "num_train_timesteps": 100},
        5,
        {"eta": 1.0},
    ),
    ("ddpm_small", "DDPMScheduler", {"beta_schedule": "linear"}, 10, {}),
    ("ddpm_large", "DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}, 10, {}),
    (
        "ddpm_learned_range",
        "DDPMScheduler",
        {"beta_schedule": "linear", "variance_type": "learned_range", "clip_sample_range": 2.0},
        10,
        {},
    ),
    ("ddpm_v", "DDPMScheduler", {"beta_schedule": "linear", "prediction_type": "v_prediction"}, 10, {}),
    ("flow", "FlowMatchEulerDiscreteScheduler", {}, 8, {}),
    ("flow_shift", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}, 8, {}),
    ("edm", "EDMEulerScheduler", {}, 8, {}),
    (
        "edm_v_exponential",
        "EDMEulerScheduler",
        {
            "prediction_type": "v_prediction", "sigma_schedule": "exponential", "sigma_data": 1.0,
            "final_sigmas_type": "sigma_min",
        },
        8,
        {},
    ),
    ("consistency", "CMStochasticIterativeScheduler", {}, 1, {}),
]

MULTISTEP_SHAPE = (1, 1, 2, 2)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": STABLE_DIFFUSION,
    "squaredcos": {"beta_schedule": "squaredcos_cap_v2"},
}
DPM_SOLVER = "DPMSolverMultistepScheduler"

# Name, class of the scheduler, configuration, number of steps.
MULTISTEP_CASES = [
    *(
        (f"{name}_{prediction}_{steps}", DPM_SOLVER, {**schedule, "prediction_type": prediction}, steps)
        for (name, schedule), prediction, steps in itertools.product(
            SCHEDULES.items(), ("epsilon", "sample", "v_prediction"), (5, 10, 20, 25)
        )
    ),
    ("one_step", DPM_SOLVER, {}, 1),
    ("leading", DPM_SOLVER, {**STABLE_DIFFUSION, "timestep_spacing": "leading", "steps_offset": 1}, 20),
    ("trailing", DPM_SOLVER, {"timestep_spacing": "trailing"}, 12),
    (
        "zero_snr",
        DPM_SOLVER,
        {
            **STABLE_DIFFUSION, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        10,
    ),
    ("clipped_lambda", DPM_SOLVER, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, 10),
    ("flow", DPM_SOLVER, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, 8),
    ("flow_shift", DPM_SOLVER, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}, 20),
    ("edm", "EDMDPMSolverMultistepScheduler", {}, 8),
    ("edm_sigma_min", "EDMDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 8),
    ("edm_sigma_min_long", "EDMDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 16),
    ("float32_linear", DPM_SOLVER, {}, 10),
    ("float32_v", DPM_SOLVER, {**STABLE_DIFFUSION, "prediction_type": "v_prediction"}, 20),
    ("float32_flow", DPM_SOLVER, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, 20),
]


def noisy_at(scheduler, x0, noise, step):
    """Returns the noisy sample at training step `step`, counted from low noise, and the time input of the network there."""
    if hasattr(scheduler, "alphas_cumprod"):
        return scheduler.add_noise(x0, noise, torch.full((len(x0),), step)), float(step)
    # These schedulers count their steps from high noise.
    at = scheduler.config.num_train_timesteps - 1 - step
    sigma = scheduler.sigmas[at]
    noisy = (1 - sigma) * x0 + sigma * noise if "Flow" in type(scheduler).__name__ else x0 + sigma * noise
    return noisy, float(scheduler.timesteps[at])


def run(name, class_name, config, steps, arguments, arrays):
    scheduler = getattr(diffusers, class_name)(**config)
    total = scheduler.config.num_train_timesteps
    random = torch.Generator().manual_seed(len(name))
    draw = lambda *shape: torch.randn(*shape, generator=random)
    x0, noise = draw(*SHAPE), draw(*SHAPE)
    # The EDM scheduler spaces its training steps as if it had one more. Its levels are compared in sampling.
    training = [] if "EDM" in class_name else sorted({0, 1, total // 4, total // 2, total - 2, total - 1})
    noisy = [noisy_at(scheduler, x0, noise, step) for step in training]

    scheduler.set_timesteps(steps)
    x = draw(*SHAPE)
    if not hasattr(scheduler, "alphas_cumprod"):
        x = x * scheduler.sigmas[0]
    trajectory = {key: [] for key in ("x", "scaled", "time", "output", "fresh", "next")}
    for t in scheduler.timesteps:
        learned = config.get("variance_type") == "learned_range"
        output = draw(SHAPE[0], SHAPE[1] * (2 if learned else 1), *SHAPE[2:])
        if learned:
            output[:, SHAPE[1]:].clamp_(-1, 1)
        fresh = draw(*SHAPE)
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        step_arguments = dict(arguments)
        if arguments.get("eta", 0) > 0:
            step_arguments["variance_noise"] = fresh
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        kept = module.randn_tensor
        module.randn_tensor = lambda *args, **kwargs: fresh
        following = scheduler.step(output, t, x, **step_arguments).prev_sample
        module.randn_tensor = kept
        values = (x, scaled, torch.tensor(float(t)), output, fresh, following)
        for key, value in zip(trajectory, values):
            trajectory[key].append(value.numpy())
        x = following
    arrays[f"{name}.x0"], arrays[f"{name}.noise"] = x0.numpy(), noise.numpy()
    if training:
        arrays[f"{name}.training_steps"] = np.array(training, dtype=np.int64)
        arrays[f"{name}.noisy"] = np.stack([value.numpy() for value, _ in noisy])
        arrays[f"{name}.training_times"] = np.array([time for _, time in noisy])
    for key, values in trajectory.items():
        arrays[f"{name}.{key}"] = np.stack(values)
    saved = {"_class_name": class_name, **{k: v for k, v in scheduler.config.items() if not k.startswith("_")}}
    return {"name": name, "config": saved, "steps": steps, "eta": arguments.get("eta", 0.0)}


@contextlib.contextmanager
def double_precision():
    """Makes the schedulers, which use float32 explicitly, compute in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with mock.patch.object(torch, "float32", torch.float64), mock.patch.object(np, "float32", np.float64):
        yield
    torch.set_default_dtype(before)


def run_multistep(name, class_name, config, steps, arrays):
    single = name.startswith("float32")
    random = torch.Generator().manual_seed(len(arrays))
    draw = lambda: torch.randn(*MULTISTEP_SHAPE, generator=random, dtype=torch.float64).float()
    x, outputs = draw(), [draw() for _ in range(steps)]
    with contextlib.nullcontext() if single else double_precision():
        scheduler = getattr(diffusers, class_name)(**config)
        scheduler.set_timesteps(steps)
        if class_name.startswith("EDM"):
            x = x * float(scheduler.sigmas[0])
        trajectory = {key: [] for key in ("x", "time", "output", "next")}
        for t, output in zip(scheduler.timesteps, outputs):
            given = (value if single else value.double() for value in (output, x))
            following = scheduler.step(next(given), t, next(given)).prev_sample
            for key, value in zip(trajectory, (x, torch.tensor(float(t)), output, following)):
                trajectory[key].append(value.numpy())
            # Both implementations step from the same float32 numbers.
            x = following.to(output.dtype)
    for key, values in trajectory.items():
        arrays[f"{name}.{key}"] = np.stack(values)
    # Only the given settings are saved: the reader has to know the defaults of the class.
    saved = {"_class_name": class_name, **config}
    if class_name == DPM_SOLVER:
        saved["beta_schedule"] = scheduler.config.beta_schedule
    return {"name": name, "config": saved, "steps": steps}


def write(name, cases, arrays):
    OUT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    text = {"diffusers": diffusers.__version__, "cases": cases}
    (OUT / f"{name}.json").write_text(json.dumps(text, indent=1) + "\n")


def main():
    arrays = {}
    write("schedulers", [run(*case, arrays) for case in CASES], arrays)
    arrays = {}
    write("multistep", [run_multistep(*case, arrays) for case in MULTISTEP_CASES], arrays)


if __name__ == "__main__":
    main()
