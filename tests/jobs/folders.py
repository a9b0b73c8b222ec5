"""Folders of noise, and converting them."""

from pathlib import Path

import numpy as np
import soundfile

from zfdist.data.sources.speech import Options, prepare


def write(path: Path, samples: int, seed: int, level: int = 3000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pcm = np.random.default_rng(seed).integers(-level, level, samples, dtype=np.int16)
    soundfile.write(path, pcm, 16_000, subtype="PCM_16")
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def lists(folder: Path, **names: list[str]) -> dict[str, Path]:
    paths = {split: folder / f"{split}.txt" for split in names}
    for split, path in paths.items():
        path.write_text("# a comment\n\n" + "".join(f"{name}\n" for name in names[split]))
    return paths


def prepare_to(source: Path, out: Path, **options: object) -> Path:
    prepare(Options(source=source, **options), out)  # type: ignore[arg-type]
    return out
