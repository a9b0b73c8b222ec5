"""The data that ship, and how they were made."""
