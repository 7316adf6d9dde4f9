"""Floor 1: the network. Each module takes numbers; only `build_model` knows the configuration."""
