"""Runs a network in ONNX Runtime Web, with the WebAssembly backend in a headless Chromium."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PAGE = Path(__file__).with_name("page.html")
SECONDS = 120
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


def browser() -> str | None:
    """Return the path of Chromium, if there is one."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def packed(array: numpy.ndarray) -> dict:
    data = base64.b64encode(array.tobytes()).decode()
    return {"type": str(array.dtype), "dims": list(array.shape), "data": data}


def unpacked(array: dict) -> numpy.ndarray:
    # Imported here because the environment has no NumPy while the clients are installed.
    import numpy

    return numpy.frombuffer(base64.b64decode(array["data"]), array["type"]).reshape(array["dims"])


class Server(ThreadingHTTPServer):
    """Serves the page, ONNX Runtime Web, and a model with its inputs, to this machine only. Receives the result."""

    def __init__(self, model: Path, external: list[str], inputs: dict[str, numpy.ndarray], runtime: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.runtime = model, runtime
        arrays = {name: packed(array) for name, array in inputs.items()}
        self.job = {"model": model.name, "external": external, "inputs": arrays}
        self.done, self.result = threading.Event(), {}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        folder, _, name = self.path.lstrip("/").rpartition("/")
        if self.path == "/job.json":
            return self.give(json.dumps(self.server.job).encode(), ".json")
        files = {"": PAGE, "ort": self.server.runtime / name, "model": self.server.model.parent / name}
        path = files.get(folder)
        if path is None or (folder == "" and name) or not path.is_file():
            return self.send_error(404)
        return self.give(path.read_bytes(), path.suffix)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.give(b"{}", ".json")
        self.server.result = json.loads(body)
        self.server.done.set()

    def give(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", TYPES.get(kind, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def run(model: Path, external: list[str], inputs: dict[str, numpy.ndarray], runtime: Path) -> dict[str, numpy.ndarray]:
    """Return the outputs of a model with the data files `external` beside it. `runtime` is the folder of ONNX Runtime Web's
    files.

    Raises RuntimeError if the browser returns none in two minutes, or an error."""
    with Server(model, external, inputs, runtime) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        # The shell waits for the page only if the command has something to wait for.
        flags += ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"]
        log = Path(profile) / "log"
        with log.open("w") as output:
            command = [browser() or BROWSERS[0], *flags]
            started = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            answered = server.done.wait(SECONDS)
        finally:
            # The program may be a script that starts the browser, so the whole process group is ended.
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            server.shutdown()
        if not answered:
            raise RuntimeError(f"the browser returned no result in {SECONDS} s: {log.read_text()[-500:]}")
        if "error" in server.result:
            raise RuntimeError(server.result["error"])
        return {name: unpacked(array) for name, array in server.result["outputs"].items()}
