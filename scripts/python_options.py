#!/usr/bin/env python3
"""Write python/onnx_diffprune/options.py: the options of the commands as typed dictionaries, from the command line.

The help text of an option becomes the docstring of its key, so that both are the same. Needs the installed package.
With --check, the file is compared and nothing is written (exit code 1 if it differs).
"""

import argparse
import re
import sys
import textwrap
from pathlib import Path

from onnx_diffprune import _native

OUTPUT = Path(__file__).resolve().parent.parent / "python/onnx_diffprune/options.py"

# Python types of values, by their names in the help.
TYPES = {
    "N": "int",
    "T": "int",
    "X": "float",
    "R": "float",
    "S": "float",
    "SHARE": "float",
    "HOURS": "float",
    "BYTES": "int | str",
    "LOW,HIGH": "tuple[float, float]",
    "NAME=N": "Mapping[str, int]",
    "NAME=R": "Mapping[str, float]",
    "REGEX=R": "Mapping[str, float]",
    "NAME=VALUE": "Mapping[str, str]",
    "NAME=SIZES,...": "Mapping[str, str]",
    "NAME,...": "str | Sequence[str]",
    "N,N,...": "int | Sequence[int]",
    "N.N,...": "str | Sequence[str]",
    "X,...": "float | Sequence[float]",
    "N or HxW": "int | str",
    "REGEX|auto": "str",
    "TARGET[:int8]": "str",
    "NAME": "str",
    "REGEX": "str",
    "DEVICE": "str",
    "BOOL": "bool",
    "PATH": "StrPath",
    "FILE": "StrPath",
    "FOLDER": "StrPath",
    "FILE.npz": "Inputs",
    "FILE.onnx": "ModelLike",
}
# Exceptions, by option.
OWN_TYPES = {"data": "Data", "eval_data": "Data", "max_loss_increase": "float | str"}
# Options that change the kind of result, or that the functions have as parameters.
LEFT_OUT = {"print_config", "dot", "format", "quiet", "verbose", "output"}

# The options of the steps of a cut, which are also options of the pruning command.
CUT = ["ratio", "target_macs", "target_params", "max_ratio", "round_to", "align", "scope", "keep", "ratio_for"]
STEPS = {
    "CutOptions": ("How much is removed, and from which groups: the keywords of `Scores.cut`.", [], CUT),
    "ScoreOptions": (
        "How channels are scored: the keywords of `Analysis.score`. With `adaptive`, those of `CutOptions` set the cut "
        "that has to be stable; `scope` sets whether groups are measured for comparison.",
        ["DiffusionOptions", "DataOptions", "CutOptions"],
        ["criterion", "norm", "group_reduction", "seed", "norm_groups", "attention", "size", "threshold", "threshold_mode",
         "timesteps", "micro_batch", "memory", "draw_sampler", "draw_steps", "members", "reference", "device", "precision",
         "allow_fallback", "adaptive"],
    ),
    "CheckOptions": (
        "How a pruned file is verified: the keywords of `Staged.check` and `Analysis.verify`.",
        [],
        ["rtol", "atol", "seed", "size", "pipeline"],
    ),
    "FitOptions": (
        "The data and device of a refit: the keywords of `Staged.refit`.",
        ["DiffusionOptions", "DataOptions", "RefittingOptions"],
        ["seed", "size", "device", "allow_fallback"],
    ),
    "NetworkOptions": (
        "The roles of a network's inputs and how it was trained: the keywords of `Network`.",
        ["DiffusionOptions", "DataOptions"],
        ["size"],
    ),
}

HEADER = '''"""The keywords of the commands and of the steps of a cut.

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

'''


def type_of(argument):
    """Return the Python type of an option's value."""
    name, value = argument["name"], argument["value"]
    if not argument["takes_value"]:
        return "bool"
    if name in OWN_TYPES:
        return OWN_TYPES[name]
    if value == "BOOL":
        return "bool"
    if argument["choices"]:
        return "Literal[" + ", ".join(f'"{choice["name"]}"' for choice in argument["choices"]) + "]"
    if value in TYPES:
        found = TYPES[value]
    elif value.endswith(".onnx"):
        found = "ModelLike"
    elif value.startswith("FILE."):
        found = "StrPath"
    else:
        sys.exit(f"python_options.py: no type is known for --{argument['option']} {value}")
    return f"{found} | Sequence[{found}]" if argument["repeats"] and found == "str" else found


def key(argument):
    """Return an option as a key with its docstring."""
    text = " ".join((argument["help"] or "").split())
    if not text.endswith((".", "]")):
        text += "."
    if argument["choices"] and argument["takes_value"]:
        told = [f"``{choice['name']}``: {choice['help'].rstrip('.')}" for choice in argument["choices"] if choice["help"]]
        if told:
            text += " Choices: " + "; ".join(told) + "."
    if argument["defaults"] and argument["takes_value"] and "[default" not in text:
        text += f" [default: {argument['defaults'][0]}]"
    text = re.sub(r"--([a-z][a-z-]+)", lambda match: "`" + match[1].replace("-", "_") + "`", text).replace("\\", "\\\\")
    lines = textwrap.wrap(f'"""{text}"""', 116, break_long_words=False, break_on_hyphens=False)
    return f"    {argument['name']}: {type_of(argument)}\n" + textwrap.indent("\n".join(lines), "    ") + "\n"


def dictionary(name, bases, about, arguments):
    """Return a typed dictionary whose keys are all optional."""
    lines = "\n".join(textwrap.wrap(f'"""{about}"""', 116))
    keys = "".join(f"\n{key(argument)}" for argument in arguments)
    of = ", ".join([*bases, "total=False"] if bases else ["TypedDict", "total=False"])
    return f"\nclass {name}({of}):\n{textwrap.indent(lines, '    ')}\n{keys}\n"


def written():
    """Return the text of the file."""
    commands = _native.commands()
    of = {
        command: {
            argument["name"]: argument
            for argument in told["arguments"]
            if argument["option"] is not None and argument["name"] not in LEFT_OUT
        }
        for command, told in commands.items()
    }
    prune = of["prune"]
    shared = {name: argument for name, argument in of["runtime"].items() if argument["is_global"]}
    data = {name: prune[name] for name in ("data", "data_range")}
    diffusion = {
        name: argument for name, argument in prune.items() if argument["heading"] == "Diffusion" and name not in data
    }
    refitting = {name: argument for name, argument in prune.items() if name.startswith("refit_")}
    bases = {
        "CommonOptions": ("The options of every command.", shared),
        "DiffusionOptions": ("How a network was trained, and the pipeline around it.", diffusion),
        "DataOptions": ("Clean samples.", data),
        "RefittingOptions": ("How weights are fitted after a cut.", refitting),
    }
    text = HEADER
    for name, (about, arguments) in bases.items():
        text += dictionary(name, [], about, arguments.values())
    for name, (about, of_bases, names) in STEPS.items():
        text += dictionary(name, of_bases, about, [prune[option] for option in names])
    for command, arguments in of.items():
        own = {name: argument for name, argument in arguments.items() if not argument["is_global"]}
        inherited = ["CommonOptions"]
        for name, (_, shared_keys) in bases.items():
            same = name != "CommonOptions" and all(
                option in own and own[option]["help"] == argument["help"] for option, argument in shared_keys.items()
            )
            if same:
                inherited.append(name)
                own = {option: argument for option, argument in own.items() if option not in shared_keys}
        title = f"{command.capitalize()}Options"
        about = f"{commands[command]['about'].rstrip('.')}: the keywords of `{command}`."
        text += dictionary(title, inherited, about, own.values())
    return text.rstrip("\n") + "\n"


def main():
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare the file and write nothing")
    check = parser.parse_args().check
    text = written()
    if not check:
        OUTPUT.write_text(text)
    elif OUTPUT.read_text() != text:
        sys.exit(f"{OUTPUT.name} differs from the command line: run scripts/python_options.py")


if __name__ == "__main__":
    main()
