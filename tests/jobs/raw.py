"""Raw data as it is handed round, with real speech inside, and running `zfdist prepare` on it in this process."""

import contextlib
import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from jobs.prepare import main
from zfdist.data.sources.speech import SAMPLE

Pcm = NDArray[np.int16]


def speech() -> list[Pcm]:
    """Return the speech that ships, a recording a file."""
    return [soundfile.read(path, dtype="int16")[0] for path in sorted(SAMPLE.rglob("*.flac"))]


def write_sphere(path: Path, pcm: Pcm, *, coding: str = "") -> Path:
    """Write a file as TIMIT has them: a header of 1,024 bytes of text, then samples."""
    fields = {
        "database_id -s5": "TIMIT",
        "database_version -s3": "1.0",
        "utterance_id -s8": "cjf0_sa1",
        "channel_count -i": "1",
        "sample_count -i": str(len(pcm)),
        "sample_rate -i": "16000",
        "sample_min -i": str(pcm.min()),
        "sample_max -i": str(pcm.max()),
        "sample_n_bytes -i": "2",
        "sample_byte_format -s2": "01",
        "sample_sig_bits -i": "16",
    }
    if coding:
        fields[f"sample_coding -s{len(coding)}"] = coding
    header = "NIST_1A\n   1024\n" + "".join(f"{name} {value}\n" for name, value in fields.items()) + "end_head\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode().ljust(1024) + pcm.astype("<i2").tobytes())
    return path


def prepared(*arguments: object) -> None:
    """Run `zfdist prepare`, which must succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def refusal(*arguments: object) -> str:
    """Run `zfdist prepare`, which must refuse; return what it says."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main([str(argument) for argument in arguments]) in (1, 2)
    message = said.getvalue().removesuffix("\n")
    assert message.startswith("error: ")
    return message
