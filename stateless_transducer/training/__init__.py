"""Floor 3: optimizer and schedule, the loop, processes, what a person sees of it."""
