"""Where a tracker gets what a run folder says: one file each, `to_NAME.py`, found by its name."""
