"""A search space to trials, each one a run."""
