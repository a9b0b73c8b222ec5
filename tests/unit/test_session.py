"""The sentence for an exception of Ray's."""

from cluster.session import _reason


def test_a_ring_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second.\nmore")
    first.__cause__, second.__cause__ = second, first
    assert _reason(first) == "second"
    assert _reason(OSError()) == "OSError"
