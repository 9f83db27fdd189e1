//! Structural pruning of exported diffusion networks, on the ONNX graph itself.
