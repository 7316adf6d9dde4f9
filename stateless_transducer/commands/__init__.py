"""Floor 7: one command per file; each reads as the story of one run."""
