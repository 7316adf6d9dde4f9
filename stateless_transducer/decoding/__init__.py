"""Floor 2: search over anything that can encode, predict and join."""
