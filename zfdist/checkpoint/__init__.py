"""Checkpoints of a run: their folders, who keeps them, and runs that live in an object store."""
