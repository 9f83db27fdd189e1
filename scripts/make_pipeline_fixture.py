#!/usr/bin/env python3
"""Writes the tiny pipelines of fixtures/pipelines: Stable Diffusion and Stable Diffusion XL in the layout of optimum.

The weights are random. Inputs, outputs and symbolic sizes have the names of optimum-onnx 0.1.0. The reference values of
the tests are beside the folders: the token ids of transformers' CLIPTokenizer (tokens.json), and the text states of
PyTorch's text encoders for the prompts, joined as in diffusers' pipelines (NAME.states.npz).

Needs torch, diffusers, transformers and onnx (last run with 2.15.0, 0.42.1, 5.24.0 and 1.23.2).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PROMPTS = [
    "a photo of a cat",
    "It's  42 Cafés, lower\tLOW!",
    "straße — ok...",
    "low " * 120,
    "",
    "<|endoftext|> and <|startoftext|>, 3.14 \"quotes\" (x_y) don't",
    "🐈 emoji",
]


def write_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """Writes a vocabulary of CLIP's bytes, a few merges, and the special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in [*printable, *range(256, 324)]]
    merges = ["l o", "lo w</w>", "c a", "ca t</w>", "p h"]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad}
    special["unk_token"] = "<|endoftext|>"
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(kind, width: int, words: int, projection: int):
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=projection, bos_token_id=words - 2, eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    config._attn_implementation = "eager"
    return kind(config).eval()


def vae() -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=32, scaling_factor=0.18215,
    )
    return model.eval()


def unet(cross: int, **further) -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=2,
        cross_attention_dim=cross, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **further,
    )
    return model.eval()


class Renamed(torch.nn.Module):
    """A network whose forward takes the exported inputs and returns a tuple."""

    def __init__(self, network, forward):
        super().__init__()
        self.network, self.call = network, forward

    def forward(self, *inputs):
        return self.call(self.network, *inputs)


def export(network, forward, inputs: dict, outputs: list[str], axes: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            Renamed(network, forward), tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs,
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )
    network.save_config(path.parent) if hasattr(network, "save_config") else network.config.save_pretrained(path.parent)


def export_text_encoder(network, path: Path, gives_layers: bool) -> None:
    tokens = torch.randint(1, 500, (2, 77))
    names = ["text_embeds", "last_hidden_state"] if isinstance(network, CLIPTextModelWithProjection) else [
        "last_hidden_state", "pooler_output"]
    layers = [f"hidden_states.{at}" for at in range(network.config.num_hidden_layers + 1)] if gives_layers else []

    def forward(network, ids):
        given = network(input_ids=ids, output_hidden_states=gives_layers)
        return tuple(given[name] for name in names) + (tuple(given.hidden_states) if gives_layers else ())

    axes = {name: {0: "batch_size"} for name in names if name in ("text_embeds", "pooler_output")}
    states = {0: "batch_size", 1: "sequence_length"}
    axes |= {name: states for name in ["input_ids", "last_hidden_state", *layers]}
    export(network, forward, {"input_ids": tokens}, names + layers, axes, path)


def export_unet(network, path: Path, further: dict) -> None:
    inputs = {
        "sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor(3.0),
        "encoder_hidden_states": torch.randn(2, 77, network.config.cross_attention_dim), **further,
    }

    def forward(network, sample, timestep, states, *further_values):
        added = dict(zip(further, further_values, strict=True))
        return network(sample, timestep, states, added_cond_kwargs=added or None, return_dict=False)

    sizes = {0: "batch_size", 2: "height", 3: "width"}
    axes = {"sample": sizes, "out_sample": sizes, "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"}}
    axes |= {name: {0: "batch_size"} for name in further}
    export(network, forward, inputs, ["out_sample"], axes, path)


def export_vae(network, folder: Path) -> None:
    latent = {0: "batch_size", 2: "latent_height", 3: "latent_width"}
    image = {0: "batch_size", 2: "sample_height", 3: "sample_width"}

    def decode(network, latents):
        return (network.decode(latents).sample,)

    def encode(network, images):
        return (network.encode(images).latent_dist.parameters,)

    export(network, decode, {"latent_sample": torch.randn(2, 4, 8, 8)}, ["sample"],
           {"latent_sample": latent, "sample": image}, folder / "vae_decoder" / "model.onnx")
    export(network, encode, {"sample": torch.randn(2, 3, 16, 16)}, ["latent_parameters"],
           {"sample": image, "latent_parameters": latent}, folder / "vae_encoder" / "model.onnx")


def finish(folder: Path, pipeline) -> None:
    """Writes the index, and configurations without paths of this machine."""
    with tempfile.TemporaryDirectory() as place:
        pipeline.save_pretrained(place)
        shutil.copy(Path(place) / "model_index.json", folder / "model_index.json")
        shutil.copytree(Path(place) / "scheduler", folder / "scheduler")
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and "vocab" not in path.name:
            config.pop("_name_or_path", None)
            path.write_text(json.dumps(config, indent=2) + "\n")


def stable_diffusion(folder: Path, references: Path) -> None:
    torch.manual_seed(20)
    tokenizer = write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    encoder = text_encoder(CLIPTextModel, 16, len(tokenizer), 16)
    network, images = unet(16), vae()
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    export_text_encoder(encoder, folder / "text_encoder" / "model.onnx", False)
    export_unet(network, folder / "unet" / "model.onnx", {})
    export_vae(images, folder)
    pipeline = StableDiffusionPipeline(images, encoder, tokenizer, network, scheduler, None, None, requires_safety_checker=False)
    finish(folder, pipeline)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True).input_ids
    (references / "tokens.json").write_text(json.dumps({"prompts": PROMPTS, "ids": ids}, ensure_ascii=False) + "\n")
    with torch.no_grad():
        states = torch.cat([pipeline.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in PROMPTS])
    np.savez_compressed(references / "sd_tiny.states.npz", encoder_hidden_states=states.half().numpy())


def stable_diffusion_xl(folder: Path, references: Path) -> None:
    torch.manual_seed(21)
    tokenizers = [write_tokenizer(folder / "tokenizer", "<|endoftext|>"), write_tokenizer(folder / "tokenizer_2", "!")]
    encoders = [
        text_encoder(CLIPTextModel, 8, len(tokenizers[0]), 8),
        text_encoder(CLIPTextModelWithProjection, 16, len(tokenizers[1]), 12),
    ]
    network = unet(24, addition_embed_type="text_time", addition_time_embed_dim=4, transformer_layers_per_block=1,
                   projection_class_embeddings_input_dim=12 + 6 * 4, use_linear_projection=True)
    images = vae()
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading")
    for encoder, name in zip(encoders, ["text_encoder", "text_encoder_2"], strict=True):
        export_text_encoder(encoder, folder / name / "model.onnx", True)
    export_unet(network, folder / "unet" / "model.onnx", {"text_embeds": torch.randn(2, 12), "time_ids": torch.randn(2, 6)})
    export_vae(images, folder)
    # One VAE encoder in the repository is enough.
    shutil.rmtree(folder / "vae_encoder")
    pipeline = StableDiffusionXLPipeline(images, *encoders, *tokenizers, network, scheduler, add_watermarker=False)
    finish(folder, pipeline)
    with torch.no_grad():
        given = [pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False) for prompt in PROMPTS]
        sizes = pipeline._get_add_time_ids((32, 32), (0, 0), (32, 32), torch.float32, text_encoder_projection_dim=12)
    np.savez_compressed(
        references / "sdxl_tiny.states.npz", encoder_hidden_states=torch.cat([states for states, *_ in given]).half().numpy(),
        text_embeds=torch.cat([pooled for _, _, pooled, _ in given]).numpy(), time_ids=sizes.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, nargs="?", default=Path("fixtures/pipelines"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for make, name in [(stable_diffusion, "sd_tiny"), (stable_diffusion_xl, "sdxl_tiny")]:
        shutil.rmtree(output / name, ignore_errors=True)
        make(output / name, output)
        size = sum(path.stat().st_size for path in (output / name).rglob("*") if path.is_file())
        print(f"wrote {output / name}, {size} bytes")


if __name__ == "__main__":
    main()
