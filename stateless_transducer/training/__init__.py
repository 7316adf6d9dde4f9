"""Floor 3: optimiser and schedule, the loop, processes, what a person sees of it."""
