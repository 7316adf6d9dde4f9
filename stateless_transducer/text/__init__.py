"""Floor 0: strings and ids; the standard library and small wheels only."""
