"""Every public name of the package has a docstring, and the documentation can be built."""

from __future__ import annotations

import ast
import inspect
import typing
from pathlib import Path

import pdoc
import pdoc.doc
import pytest

import onnx_diffprune


def undocumented(module: pdoc.doc.Module) -> list[str]:
    """Returns the public names without a docstring: functions, classes, methods, properties, fields, keys."""
    found = [] if module.docstring else [module.fullname]

    def look(member: pdoc.doc.Doc[object]) -> None:
        if isinstance(member, pdoc.doc.Module):
            found.extend(undocumented(member))
            return
        is_inherited = member.taken_from[0] != module.modulename or member.name.startswith("_")
        if not is_inherited and not member.docstring.strip():
            found.append(member.fullname)
        if isinstance(member, pdoc.doc.Class):
            # The docstrings of inherited members are in the base class. A typed dictionary repeats the keys of its
            # bases, so its own keys are only known from the source.
            own = set(vars(member.obj).get("__annotations__", {})) | set(vars(member.obj))
            if typing.is_typeddict(member.obj):
                (source,) = ast.parse(inspect.getsource(member.obj)).body
                assert isinstance(source, ast.ClassDef)
                own = {line.target.id for line in source.body if isinstance(line, ast.AnnAssign)}
            for inner in member.members.values():
                if inner.name in own:
                    look(inner)

    for member in module.members.values():
        look(member)
    return found


@pytest.mark.filterwarnings("ignore:Cannot determine where:UserWarning")
def test_every_public_name_has_a_docstring() -> None:
    modules = [name for name, module in vars(onnx_diffprune).items() if inspect.ismodule(module) and name[0] != "_"]
    assert {"commands", "cuts", "errors", "models", "networks", "options", "progress", "runtimes"} <= set(modules)
    for name in modules:
        assert undocumented(pdoc.doc.Module(getattr(onnx_diffprune, name))) == [], name
    for name in onnx_diffprune.__all__:
        assert name == "__version__" or inspect.getdoc(getattr(onnx_diffprune, name)), name


@pytest.mark.filterwarnings("ignore:Cannot determine where:UserWarning")
def test_the_documentation_is_built(tmp_path: Path) -> None:
    pdoc.pdoc("onnx_diffprune", output_directory=tmp_path)
    page = (tmp_path / "onnx_diffprune/commands.html").read_text()
    assert "least important channels" in page and (tmp_path / "onnx_diffprune.html").is_file()
    options = (tmp_path / "onnx_diffprune/options.html").read_text()
    assert "target_macs" in options and "channel group" in options
