"""Floor 3: searches for any model that encodes, predicts and joins."""
