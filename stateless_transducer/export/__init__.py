"""Floor 4: models as ONNX graphs."""
