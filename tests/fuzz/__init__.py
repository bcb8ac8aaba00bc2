"""Scripts that look for input that cytopipe cannot stand. No tests: they run for minutes."""
