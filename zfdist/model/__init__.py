"""The networks of the paper and their objective; knows no ranks, files or clusters."""
