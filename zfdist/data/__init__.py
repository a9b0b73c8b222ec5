"""Sequence data: Arrow shards, order and batches; knows no model."""
