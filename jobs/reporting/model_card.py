"""The card beside an export, README.md: what the model is, its numbers, the data and their licence, how it was made."""

import textwrap
from collections.abc import Sequence

import yaml

from jobs.reporting.report_markdown import table
from jobs.reporting.run_history import title_of
from zfdist.checkpoint.folder import CheckpointManifest
from zfdist.data.store import Store


def markdown(manifest: CheckpointManifest, numbers: Sequence[tuple[str, str]], evaluated_on: Store) -> str:
    """Return the page, which begins with what model hubs read.

    Args:
        manifest: of the exported checkpoint.
        numbers: names and values of its evaluation.
        evaluated_on: the data of that evaluation; they are those of the training where the fingerprints are the same.
    """
    config, system = manifest.config, title_of(manifest.config.model.system)
    is_known = evaluated_on.fingerprint == manifest.data_fingerprint
    licence = evaluated_on.manifest.licence.strip() if is_known else ""
    head = yaml.safe_dump({"library_name": "zfdist", "tags": [config.model.system, evaluated_on.kind.name]})
    made = [
        ("data", f"`{config.data.root}`: {evaluated_on.kind.title}"),
        ("their fingerprint", f"`{manifest.data_fingerprint}`"),
        ("updates", f"{manifest.step:,} of {config.train.steps:,}, each on {config.data.global_batch} sequences"),
        ("workers", f"{manifest.world_size}, {manifest.precision}"),
        ("seed", str(config.train.seed)),
        *((f"version of {name}", version) for name, version in manifest.versions.items()),
    ]
    return "\n\n".join(
        [
            f"---\n{head}---",
            f"# {system} on {evaluated_on.kind.title}",
            "A stochastic recurrent network of the family of Z-Forcing (Goyal et al., NIPS 2017, "
            "<https://arxiv.org/abs/1711.05411>), trained by zfdist."
            if manifest.config.model.system != "rnn"
            else "A recurrent network without latents, trained by zfdist beside Z-Forcing.",
            "    zfdist evaluate DIR --split test           # DIR is this folder\n"
            "    zfdist generate DIR --what samples --out out",
            "## Numbers",
            table(("", ""), numbers),
            "## How it was made",
            table(("", ""), made),
            "## The licence of the data",
            textwrap.indent(licence, "    ")
            if licence
            else "Not recorded: ask whoever prepared them, before this model goes on to others.",
            "## Files",
            "All settings are in `config.json`. The weights are `model.safetensors`, without pickles.",
        ]
    ) + "\n"  # fmt: skip
