"""Data that do not do for a run are refused before it starts, rather than by its workers or at its first validation."""

from pathlib import Path

import harness
import numpy as np
import pytest
import stores

from zfdist.data.order import OrderError
from zfdist.data.store import Store, StoreError
from zfdist.data.views import refuse_unfit


@pytest.mark.parametrize(
    "value, sentence",
    [
        ({"data.global_batch": 1000}, "data.global_batch = 1000: the training split has but"),
        ({"data.frame_samples": 100_000}, "the training split has but 0 sequences"),
    ],
)
def test_too_few_sequences_are_refused(store: Path, value: dict[str, int], sentence: str) -> None:
    config = harness.tiny_config(store).with_values(value)
    with pytest.raises(OrderError, match=sentence):
        refuse_unfit(Store.open(store), config.data)


def test_a_store_without_validation_split_is_refused(store: Path) -> None:
    config, opened = harness.tiny_config(store).data, Store.open(store)
    refuse_unfit(opened, config)
    del opened._splits["valid"]
    with pytest.raises(StoreError, match="no split 'valid'"):
        refuse_unfit(opened, config)


def test_a_validation_split_without_sequences_is_refused(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).integers(-99, 99, 400).astype(np.int16)
    root = stores.make(tmp_path / "few", [[sound] * 8], held_out=sound[: harness.FRAME])
    with pytest.raises(OrderError, match=r"the validation split of .* has no sequence of two frames"):
        refuse_unfit(Store.open(root), harness.tiny_config(root).data)
