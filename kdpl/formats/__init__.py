"""Export of a classifier to files that run without kdpl: ONNX, OpenVINO and others."""
