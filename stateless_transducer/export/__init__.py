"""Floor 3: models as ONNX graphs."""
