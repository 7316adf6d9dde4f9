"""Models for training, rebuilt from ONNX graphs."""
