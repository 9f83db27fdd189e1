"""Counts the public items of the library, as rustdoc lists them: `python3 scripts/count_public.py [FOLDER]`.

FOLDER is a checkout of the crate (default: this one). Rustdoc's JSON output needs RUSTC_BOOTSTRAP=1 on a stable
compiler. Items hidden from the documentation do not count. A re-exported item counts once, where it is reached first.
"""

import json
import os
import pathlib
import subprocess
import sys

# Declarations, as the issue tracker counts them. Their fields and methods are counted separately.
DECLARED = ["struct", "enum", "union", "trait", "function", "constant", "static", "type_alias", "macro"]


def documentation(folder):
    environment = {**os.environ, "RUSTC_BOOTSTRAP": "1"}
    command = ["cargo", "rustdoc", "--quiet", "--lib", "--", "-Z", "unstable-options", "--output-format", "json"]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    target = pathlib.Path(environment.get("CARGO_TARGET_DIR", folder / "target"))
    return json.loads((target / "doc" / "onnx_diffprune.json").read_text())


def count(document):
    index = document["index"]
    counts = dict.fromkeys([*DECLARED, "module", "field", "variant", "method"], 0)
    seen = set()

    def visit(key):
        item = index.get(str(key))
        if item is None or key in seen or item["crate_id"] != 0:
            return
        ((kind, inner),) = item["inner"].items()
        if kind == "use":
            target = inner["id"]
            if target is not None:
                if inner["is_glob"] and str(target) in index:
                    list(map(visit, index[str(target)]["inner"].get("module", {}).get("items", [])))
                else:
                    visit(target)
            return
        seen.add(key)
        if kind in counts:
            counts[kind] += 1
        if kind == "module":
            list(map(visit, inner["items"]))
        if kind == "enum":
            counts["variant"] += len(inner["variants"])
        if kind == "struct" and isinstance(inner["kind"], dict):
            fields = inner["kind"].get("plain", {}).get("fields") or inner["kind"].get("tuple") or []
            counts["field"] += sum(field is not None for field in fields)
        if kind == "trait":
            counts["method"] += len(inner["items"])
        for implementation in inner.get("impls", []):
            block = index.get(str(implementation))
            if block and block["inner"]["impl"]["trait"] is None:
                members = [index.get(str(member)) for member in block["inner"]["impl"]["items"]]
                counts["method"] += sum(member is not None and "function" in member["inner"] for member in members)

    visit(document["root"])
    # The crate root is a module too.
    counts["module"] -= 1
    return counts


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    counts = count(documentation(folder))
    declared = sum(counts[kind] for kind in DECLARED)
    print(f"{declared} declarations in {counts['module']} modules, {counts['method']} methods,", end=" ")
    print(f"{counts['field']} fields, {counts['variant']} variants")


if __name__ == "__main__":
    main()
