"""Floor 2: searches for any model that encodes, predicts and joins."""
