"""Network modules (floor 1). Modules take numbers; only `build_model` knows the configuration."""
