"""The machines: the only Python here that imports ray."""
