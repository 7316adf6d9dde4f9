"""Floor 2: network modules. Modules take numbers; only `build_model` knows the configuration."""
