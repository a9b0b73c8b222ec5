"""What a trained network is worth and what it makes: bounds over a split, samples, continuations."""
