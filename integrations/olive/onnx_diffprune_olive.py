"""OnnxDiffPrune: an Olive pass that prunes a diffusion network with onnx-diffprune.

Olive finds passes through a package configuration. ``python -m onnx_diffprune_olive > passes.json`` writes Olive's
default one with this pass added:

    olive run --config recipe.json --package-config passes.json
"""

from __future__ import annotations

import json
import logging
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx_diffprune
from olive.common.config_utils import ParamCategory
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_file_names
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.resource_path import LocalFile, LocalFolder

__all__ = ["OnnxDiffPrune", "package_config"]

# Olive sets the level of its logger and prints its messages.
logger = logging.getLogger(f"olive.{__name__}")

# Keywords of `onnx_diffprune.prune` that are parameters of the pass: type, whether it is a path, description.
_KEYWORDS: dict[str, tuple[Any, bool, str]] = {
    "ratio": (float, False, "Share of the channels to remove from every channel group, in [0, 1)."),
    "target_macs": (float, False, "Share of the multiply-accumulate operations to keep at most, instead of a ratio."),
    "target_params": (float, False, "Share of the parameters to keep at most, instead of a ratio."),
    "criterion": (str, False, "Criterion: diff-pruning (the default), taylor, hessian, magnitude, random."),
    "scope": (str, False, "local (the default): every group loses the same share; global: groups compete."),
    "align": (str, False, "Align widths to a runtime: tensorrt, ort-cuda, openvino, cpu; append :int8 for int8."),
    "keep": (list[str], False, "Keep the groups with a weight or node whose name matches one of these."),
    "size": (dict[str, int], False, "Sizes of symbolic dimensions."),
    "data": (str, True, "Clean samples: a folder of images or latents, or an array file. Default: generated."),
    "scheduler_config": (str, True, "The scheduler_config.json of a network outside of a pipeline."),
    "pipeline": (str, True, "The folder of the network's pipeline, if the network is not in it."),
    "prompts": (str, True, "A text file with a prompt on each line, for the text encoders of the pipeline."),
    "device": (str, False, "Where gradients are computed: cpu (the default), cuda, cuda:N."),
    "seed": (int, False, "Seed of samples and noise."),
}  # fmt: skip

# Options that would leave Olive without a file, without its plan, or with an unverified network.
_REFUSED = ("dry_run", "no_verify", "plan")


class OnnxDiffPrune(Pass):
    """Removes the least important channels of a diffusion network and verifies the cut.

    The plan of the cut is beside the output (``model.plan.json``); later passes keep it as one of the model's
    additional files. A cut that fails verification raises ``onnx_diffprune.VerificationFailedError``.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        del accelerator_spec  # The cut does not depend on the accelerator.
        parameters = {
            name: PassConfigParam(
                type_=type_,
                default_value=None,
                category=ParamCategory.PATH if is_path else ParamCategory.NONE,
                description=description,
            )
            for name, (type_, is_path, description) in _KEYWORDS.items()
        }
        parameters["refit"] = PassConfigParam(
            type_=bool,
            default_value=None,
            description="Fit the kept weights by least squares. Default: if there are clean samples.",
        )
        parameters["options"] = PassConfigParam(
            type_=dict[str, Any],
            default_value=None,
            description="Further keywords of `onnx_diffprune.prune`, such as {'timesteps': 100}.",
        )
        return parameters

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        if not isinstance(model, ONNXModelHandler):
            raise TypeError(f"OnnxDiffPrune: expected an ONNXModel, found {type(model).__name__}: export it first")
        if model.external_initializers_path or model.constant_inputs_path:
            raise ValueError(
                f"OnnxDiffPrune: {model.model_path}: expected all weights in the model, found external initializers or "
                "constant inputs: run this pass before the one that extracts them"
            )
        output = Path(resolve_onnx_path(output_model_path))
        report = onnx_diffprune.prune(model.model_path, output, **_keywords(config))
        if not (report.get("verification") or {}).get("passed"):
            raise ValueError(f"OnnxDiffPrune: {output} was not verified: leave no_verify out of {config.options}")
        before, after = report["before"], report["after"]
        logger.info("%d of %d parameters are left", after["parameters"], before["parameters"])

        attributes = deepcopy(model.model_attributes or {})
        plan = output.with_suffix(".plan.json")
        attributes["additional_files"] = sorted({*(attributes.get("additional_files") or []), str(plan)})
        # For Olive, a model with data files is a folder and the name of the model in it.
        has_data = bool(get_external_data_file_names(output))
        return ONNXModelHandler(
            model_path=LocalFolder({"path": output.parent}) if has_data else LocalFile({"path": output}),
            onnx_file_name=output.name if has_data else None,
            inference_settings=model.inference_settings,
            use_ort_extensions=model.use_ort_extensions,
            model_attributes=attributes,
        )


def _keywords(config: type[BasePassConfig]) -> dict[str, Any]:
    """Returns the parameters of the pass as keywords of `onnx_diffprune.prune`.

    Raises:
            ValueError: ``options`` contains a parameter of the pass, or an option that a pass can't have.
    """
    keywords = {name: value for name in _KEYWORDS if (value := getattr(config, name)) is not None}
    if config.refit is not None:
        keywords["refit" if config.refit else "no_refit"] = True
    options = config.options or {}
    for name in options:
        if name in _REFUSED:
            raise ValueError(
                f"OnnxDiffPrune: options: {name} is not allowed: remove it. The pass always writes a verified network "
                "and its plan"
            )
        if name in _KEYWORDS or name in ("refit", "no_refit"):
            raise ValueError(f"OnnxDiffPrune: options: {name} is a parameter of the pass: set it outside of options")
    return {"no_latency": True, **keywords, **options}


def package_config() -> dict[str, Any]:
    """Returns the package configuration of the installed Olive with this pass added.

    It is the argument ``package_config`` of ``olive.run``.
    """
    known: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    known["passes"]["OnnxDiffPrune"] = {
        "module_path": "onnx_diffprune_olive.OnnxDiffPrune",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_not_required",
        "module_dependencies": ["onnx-diffprune"],
    }
    return known


if __name__ == "__main__":
    json.dump(package_config(), sys.stdout, indent=4)
    print()
