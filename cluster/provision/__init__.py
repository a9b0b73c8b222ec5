"""Clusters of machines: their file, bringing them up and down, checks, and jobs sent to them."""
