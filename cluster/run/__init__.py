"""One training run on N workers: attempts, what ends them, and what comes next."""
