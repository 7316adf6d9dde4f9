"""Floor 6: error rates of prepared test sets, and the report of an experiment."""
