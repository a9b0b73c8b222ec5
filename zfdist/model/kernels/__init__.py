"""Fast implementations of single operations, for CPU and GPU; they know no network."""
