"""Students: the causal networks that are aligned."""
