"""A finished classifier as a file that runs without kdpl: ONNX, 8-bit ONNX, or a program of torch.export."""
