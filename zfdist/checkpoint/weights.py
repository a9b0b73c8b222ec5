"""The weights of a checkpoint or export, for whoever trusts neither: read from safetensors, which runs nothing."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError


def read(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint or export by name; raises CheckpointError if the file is of another kind."""
    path = folder / checkpoint.WEIGHTS
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: no safetensors ({error}); it is read as nothing else") from None
    return weights
