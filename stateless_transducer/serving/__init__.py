"""Floor 4: a trained model at work."""
