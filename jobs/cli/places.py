"""Where runs and data of a cluster are, as its file or a command line says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.cli import command, sample
from jobs.cli.cluster_options import Doctor, Submit
from zfdist.recipes import RECIPES


def storage_of(options: Submit | Doctor) -> str:
    """Return where runs are kept: as told, or as the cluster file says."""
    if options.storage is not None:
        return options.storage
    from cluster.provision import cluster_file

    metadata = cluster_file.read(options.file, options.overlay).get("metadata") or {}
    if "storage" not in metadata:
        command.refuse(f"{options.overlay or options.file}: metadata.storage is missing; or pass --storage")
    return str(metadata["storage"])


def data_of(options: Submit, recipe: str, storage: str) -> str | None:
    """Return where the data of a recipe are, if the cluster file says it; None to leave it to the command.

    The sample that ships is brought along, so it has a place also where no file names one.
    """
    if recipe not in RECIPES:
        return None
    metadata: Mapping[str, str | None] = {}
    if options.storage is None:
        from cluster.provision import cluster_file

        metadata = cluster_file.read(options.file, options.overlay).get("metadata") or {}
    name = Path(RECIPES[recipe]().data.root).name
    if data := metadata.get("data"):
        return _below(data, name)
    return _below(storage, f".data/{name}") if recipe == sample.RECIPE else None


def _below(place: str, name: str) -> str:
    from zfdist import object_store as remote

    return remote.join(place, name) if remote.is_remote(place) else str(Path(place) / name)


def value_of(words: Sequence[str], flag: str) -> str | None:
    """Return what a command line gives for a flag, in either form."""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None
