"""Floor 4: objective, optimizer, training loop, processes, progress."""
