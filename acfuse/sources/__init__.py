"""What can be fused: live models, bare tensors, ONNX files."""
