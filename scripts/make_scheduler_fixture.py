"""Writes what diffusers' schedulers compute, for the tests of src/diffusion: fixtures/diffusion/schedulers.{json,npz}.

Every case is a scheduler configuration with short trajectories of it on random network outputs. Needs the packages of
requirements-export.txt.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "diffusion"
SHAPE = (2, 3, 2, 2)

# name, class that steps, configuration, number of steps, arguments of step()
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


def noisy_at(scheduler, x0, noise, step):
    """The noisy sample at training step `step`, counted from little noise, and the time the network gets there."""
    if hasattr(scheduler, "alphas_cumprod"):
        return scheduler.add_noise(x0, noise, torch.full((len(x0),), step)), float(step)
    # These count their steps from much noise.
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
    # The EDM scheduler spaces its training steps over one step more than it has; its levels are compared in sampling.
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


def main():
    arrays = {}
    cases = [run(*case, arrays) for case in CASES]
    OUT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT / "schedulers.npz", **arrays)
    text = {"diffusers": diffusers.__version__, "cases": cases}
    (OUT / "schedulers.json").write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
