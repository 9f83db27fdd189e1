"""Builds an engine from an ONNX file with the Python bindings of TensorRT or TensorRT for RTX.

The first argument is the request, as JSON. The script prints lines of JSON: the version that was found, the progress of
the build, and its result. The process exits without the libraries' clean-up, which may crash on machines without a GPU.
"""

import ctypes
import glob
import importlib
import importlib.util
import json
import os
import sys

# Modules with bindings, and the libraries of other packages that must be loaded before them.
MODULES = {
    "tensorrt": [("tensorrt", ())],
    "tensorrt-rtx": [
        ("tensorrt_rtx", ()),
        ("tensorrt_rtx_bindings", ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")),
    ],
}


def report(**fields):
    print(json.dumps(fields), flush=True)


def end(code):
    sys.stdout.flush()
    os._exit(code)


def preload(library):
    for folder in sys.path:
        for path in sorted(glob.glob(os.path.join(folder, "*", library + "*")), reverse=True):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return


def bindings(target):
    failures = []
    for name, libraries in MODULES[target]:
        try:
            if libraries and importlib.util.find_spec(name):
                for library in libraries:
                    preload(library)
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            failures.append(f"{name}: {error}")
    raise ImportError("; ".join(failures))


def capability_of_gpu():
    """Returns the compute capability of the first GPU from the driver, 89 for 8.9."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name != "nt" else "nvcuda.dll")
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return None
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        for value, attribute in ((major, 75), (minor, 76)):
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return None
        return f"{major.value}{minor.value}"
    except OSError:
        return None


def monitor(trt):
    class Monitor(trt.IProgressMonitor):
        """Reports the progress of the outermost phase, which has few steps."""

        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.steps = {}
            self.outer = None

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.steps[phase_name] = num_steps
            if parent_phase is None:
                self.outer = phase_name
                report(done=0, total=num_steps)

        def step_complete(self, phase_name, step):
            if phase_name == self.outer:
                report(done=step, total=self.steps[phase_name])
            return True

        def phase_finish(self, phase_name):
            if phase_name == self.outer:
                report(done=self.steps[phase_name], total=self.steps[phase_name])

    return Monitor()


def main():
    request = json.loads(sys.argv[1])
    target = request["target"]
    try:
        trt = bindings(target)
    except ImportError as error:
        report(missing=str(error))
        end(0)
    report(version=trt.__version__, module=trt.__name__)
    if request.get("probe"):
        end(0)

    messages = []

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    def fail(what):
        report(error=what, messages=list(dict.fromkeys(messages))[:10])
        end(0)

    builder = trt.Builder(Logger())
    # In TensorRT 11, all networks are strongly typed, and there is no flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, builder.logger)
    # Parses by path, so that weights beside the file are found.
    if not parser.parse_from_file(request["onnx"]):
        messages.extend(parser.get_error(index).desc() for index in range(parser.num_errors))
        fail("TensorRT can't parse the file")
    # Attention without its own kernel is then computed by elementary operations; otherwise it would be rejected.
    attention = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers if attention is not None else 0):
        layer = network.get_layer(index)
        if layer.type == attention:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    capabilities = request["capabilities"]
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            known = getattr(trt.ComputeCapability, "SM" + capability, None)
            if known is None:
                names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
                fail(f"{trt.__name__} {trt.__version__} does not support SM{capability}, only {', '.join(names)}")
            config.set_compute_capability(known, index)
    if request["shapes"]:
        profile = builder.create_optimization_profile()
        for name, least, usual, largest in request["shapes"]:
            profile.set_shape(name, tuple(least), tuple(usual), tuple(largest))
        config.add_optimization_profile(profile)
    cache = None
    if request["timing_cache"]:
        known = b""
        if os.path.exists(request["timing_cache"]):
            with open(request["timing_cache"], "rb") as file:
                known = file.read()
        cache = config.create_timing_cache(known)
        config.set_timing_cache(cache, True)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = monitor(trt)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        fail("no engine was built")
    with open(request["engine"], "wb") as file:
        file.write(memoryview(engine))
    if cache is not None:
        with open(request["timing_cache"], "wb") as file:
            file.write(memoryview(config.get_timing_cache().serialize()))
    report(built=True, capability=capability_of_gpu())
    end(0)


main()
