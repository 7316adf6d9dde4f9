"""Floor 5: one command a file; each reads as the story of one run."""
