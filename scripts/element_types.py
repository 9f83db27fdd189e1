"""Writes src/ops/element_types.txt: the inputs and outputs of every operator that may be float16 or bfloat16.

The types are those of the operators' schemas: of the standard operators from the onnx package, of ONNX Runtime's
operators from its library. Each line describes an operator from one version on: domain, name, version, its inputs, a
bar, its outputs. An input or output is "-" if it does not accept float32, else a letter for its type variable (one
letter, one type) and the alternatives to float32: "h" for float16, "b" for bfloat16. A star marks the last one of a
variadic list, a plus one whose types are independent.

    python scripts/element_types.py [--check]
"""

import argparse
import pathlib
import sys

import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

PATH = pathlib.Path(__file__).resolve().parent.parent / "src/ops/element_types.txt"


def tokens(formals, allowed, is_variadic, is_homogeneous):
    """Formats inputs or outputs as text."""
    letters, result = {}, []
    for formal in formals:
        kind = formal.typeStr
        types = allowed.get(kind, [kind])
        if "tensor(float)" not in types:
            result.append("-" + ("*" if is_variadic(formal) else ""))
            continue
        key = kind if kind in allowed else (kind, len(result))
        letter = letters.setdefault(key, chr(ord("a") + len(letters)))
        token = letter
        token += "h" if "tensor(float16)" in types else ""
        token += "b" if "tensor(bfloat16)" in types else ""
        if is_variadic(formal):
            token += "*" if is_homogeneous(formal) else "+"
        result.append(token)
    return letters, result


class Formal:
    """An input or output of a schema of the onnx package, with the attribute names of ONNX Runtime's schemas."""

    def __init__(self, formal):
        self.typeStr, self.option, self.isHomogeneous = formal.type_str, formal.option, formal.is_homogeneous


def line(domain, name, version, inputs, outputs, constraints):
    allowed = {constraint[0]: list(constraint[1]) for constraint in constraints}
    variadic = lambda formal: str(formal.option).endswith("Variadic")
    homogeneous = lambda formal: formal.isHomogeneous
    both = inputs + outputs
    _, texts = tokens(both, allowed, variadic, homogeneous)
    if all(text.startswith("-") for text in texts):
        return None
    left, right = texts[: len(inputs)], texts[len(inputs) :]
    return (domain or "ai.onnx", name, version, " ".join(left), " ".join(right))


def lines():
    found = []
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain != "":
            continue
        constraints = [(c.type_param_str, c.allowed_type_strs) for c in schema.type_constraints]
        inputs, outputs = [Formal(f) for f in schema.inputs], [Formal(f) for f in schema.outputs]
        found.append(line("", schema.name, schema.since_version, inputs, outputs, constraints))
    for schema in runtime.get_all_operator_schema():
        if schema.domain != "com.microsoft":
            continue
        constraints = [(c.type_param_str, c.allowed_type_strs) for c in schema.type_constraints]
        found.append(line(schema.domain, schema.name, schema.since_version, schema.inputs, schema.outputs, constraints))
    result, before = [], {}
    for domain, name, version, inputs, outputs in sorted(entry for entry in found if entry):
        # A version without changes here needs no line.
        if before.get((domain, name)) != (inputs, outputs):
            result.append(f"{domain} {name} {version} {inputs} | {outputs}".rstrip().replace("  ", " "))
        before[domain, name] = (inputs, outputs)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is not up to date")
    args = parser.parse_args()
    text = "\n".join(lines()) + "\n"
    if not args.check:
        PATH.write_text(text)
    elif PATH.read_text() != text:
        sys.exit(f"{PATH} differs from the schemas of onnx {onnx.__version__} and ONNX Runtime: run scripts/element_types.py")


if __name__ == "__main__":
    main()
