"""Floor 1: tensors in, tensors out. No modules, no configuration, no files."""
