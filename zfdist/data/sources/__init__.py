"""Converters from raw formats to shards, and the speech sample that ships."""
