"""Make `speech/` again from the Debian package asterisk-core-sounds-en-g722 (see speech/README.md).

    apt-get download asterisk-core-sounds-en-g722
    python -m zfdist.data.sources.sample.make_sample asterisk-core-sounds-en-g722_*_all.deb

The rule: of the recordings that are speech and last at most 32 seconds, in the order of the sha256 of their path, take
files until the next one would bring the sum of the FLAC files above 7,950,000 bytes.
"""

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path, PurePosixPath

import G722
import numpy as np
import soundfile

RATE = 16_000
MOST_BYTES = 7_950_000
MOST_SECONDS = 32
NOT_SPEECH = (
    "silence/",
    "ascending-2tone.",
    "descending-2tone.",
    "beep",
    "confbridge-join.",
    "confbridge-leave.",
    "tt-monkeys.",
)
"""How the paths of tones, silence and monkeys begin."""
TARGET = Path(__file__).parent / "speech"


def main() -> None:
    """Read the package named on the command line and write the chosen recordings beside this file."""
    if len(sys.argv) != 2:
        sys.exit("usage: make_sample PACKAGE.deb | ARCHIVE.tar.xz | FOLDER")
    chosen = choose(encoded(Path(sys.argv[1])))
    for name, flac in chosen.items():
        path = TARGET / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(flac)
    print(f"{len(chosen)} files, {sum(map(len, chosen.values())):,} bytes in {TARGET}")


def encoded(package: Path) -> dict[str, bytes]:
    """Return the G.722 recordings of the package by their path below the folder that holds them all."""
    if package.is_dir():
        files = {path.as_posix(): path.read_bytes() for path in package.rglob("*.g722")}
    else:
        content = package.read_bytes()
        tar = io.BytesIO(_deb_data(content) if content.startswith(b"!<arch>") else content)
        with tarfile.open(fileobj=tar) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".g722")]
            files = {member.name: _content(archive, member) for member in members}
    if not files:
        sys.exit(f"{package}: no .g722 file in it")
    root = os.path.commonpath([PurePosixPath(name).parent.as_posix() for name in files])
    return {PurePosixPath(name).relative_to(root).as_posix(): files[name] for name in files}


def choose(files: dict[str, bytes]) -> dict[str, bytes]:
    """Apply the rule; returns FLAC files by name."""
    speech = {name: pcm for name, pcm in files.items() if not name.startswith(NOT_SPEECH)}
    chosen: dict[str, bytes] = {}
    total = 0
    for name in sorted(speech, key=lambda name: hashlib.sha256(name.encode()).digest()):
        # G.722 at 64 kbit/s: one byte holds two samples.
        if 2 * len(speech[name]) > MOST_SECONDS * RATE:
            continue
        flac = _flac(speech[name])
        total += len(flac)
        if total > MOST_BYTES:
            break
        chosen[name.removesuffix(".g722") + ".flac"] = flac
    return chosen


def _flac(g722: bytes) -> bytes:
    samples = np.array(G722.G722(RATE, 64_000).decode(g722), dtype=np.int16)
    sink = io.BytesIO()
    soundfile.write(sink, samples, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
    return sink.getvalue()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _deb_data(content: bytes) -> bytes:
    """Return the data.tar.* member of a Debian package, which is an ar archive."""
    place = 8
    while place < len(content):
        name, size = content[place : place + 16].decode().strip(), int(content[place + 48 : place + 58])
        place += 60
        if name.startswith("data.tar"):
            return content[place : place + size]
        place += size + size % 2
    sys.exit("the package has no data.tar")


if __name__ == "__main__":
    main()
