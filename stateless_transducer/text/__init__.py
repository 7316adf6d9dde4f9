"""Floor 1: strings and ids; the standard library and small wheels only."""
