"""Simple models that a reader expects beside ours, on the same sequences in the same units; exact likelihoods."""
