"""MP3 as taggers, cutters and joiners leave it: all of its sound, or a reason that is true."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from zfdist.data.sources import mpeg
from zfdist.data.sources.audio import AudioError, read

RATE = 16_000
DELAY = 529
"""Samples at its start that a decoder leaves out as its own."""
QUIET_THEN_LOUD = np.concatenate([np.zeros(30_000), 0.3 * np.random.default_rng(0).normal(size=30_000).clip(-3, 3)])


def encoded(sound: NDArray[np.float64], rate: int = RATE, channels: int = 1) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.stack([sound] * channels, 1), rate, format="MP3", bitrate_mode="VARIABLE")
    return target.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    return encoded(QUIET_THEN_LOUD)


@pytest.fixture(scope="module")
def uncounted(plain: bytes) -> bytes:
    """The same without the frame that counts the others."""
    frames, _, _ = mpeg._frames(plain)
    return plain[frames[1].at :]


def samples(folder: Path, content: bytes, name: str = "a.mp3") -> tuple[NDArray[np.int16], list[str]]:
    said: list[str] = []
    (folder / name).write_bytes(content)
    return read(folder / name, RATE, said), said


def id3(content: bytes) -> bytes:
    size = bytes(len(content) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + content


def test_what_taggers_put_around_it_changes_nothing(tmp_path: Path, plain: bytes) -> None:
    whole, said = samples(tmp_path, plain)
    assert len(whole) == len(QUIET_THEN_LOUD) and said == []
    art = id3(b"APIC" + b"\xff\xd8\xff\xe0" + b"\xff\xfb\x90\x64" * 50_000)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0x80000000) + bytes(8)
    for content in (
        art + plain,
        bytes(2000) + plain,
        b"\r\n\r\n" + plain,
        id3(b"") + bytes(2000) + plain,
        plain + ape + b"TAG" + bytes(125),
        plain + bytes(3000),
    ):
        again, said = samples(tmp_path, content)
        assert np.array_equal(again, whole) and said == []
    assert np.array_equal(samples(tmp_path, plain, "named.wav")[0], whole)


def test_joined_files_are_read_one_after_the_other(tmp_path: Path, plain: bytes) -> None:
    whole, _ = samples(tmp_path, plain)
    tagged = id3(bytes(100)) + plain + b"TAG" + bytes(125)
    for content in (plain + plain, tagged + tagged):
        twice, said = samples(tmp_path, content)
        assert np.array_equal(twice, np.concatenate([whole, whole])) and said == [
            "2 MP3 streams in one, read one after the other"
        ]


def test_rate_and_channels_may_change(tmp_path: Path, plain: bytes) -> None:
    other = encoded(QUIET_THEN_LOUD, 44_100, 2)
    both, said = samples(tmp_path, plain + other)
    assert abs(len(both) - 60_000 - 60_000 * RATE / 44_100) < 3 and said


def test_without_a_count_all_frames_are_read(tmp_path: Path, plain: bytes, uncounted: bytes) -> None:
    """The bit rate rises, so that a length guessed from the first frames is far off."""
    (stream,), _ = mpeg.streams(uncounted)
    got, said = samples(tmp_path, uncounted)
    assert len(got) == stream.samples - DELAY >= len(QUIET_THEN_LOUD) and said == []
    whole, _ = samples(tmp_path, plain)
    lags = [np.corrcoef(got[40_000 + lag : 50_000 + lag], whole[40_000:50_000])[0, 1] for lag in range(1500)]
    assert max(lags) > 0.99
    assert len(samples(tmp_path, uncounted + uncounted)[0]) == 2 * stream.samples - DELAY


def told(content: bytes, change: int) -> bytes:
    """Let the first frame count other than it does."""
    at = max(content.find(b"Xing"), content.find(b"Info")) + 8
    count = struct.unpack_from(">I", content, at)[0] + change
    return content[:at] + struct.pack(">I", count) + content[at + 4 :]


def test_a_count_that_is_wrong(tmp_path: Path, plain: bytes) -> None:
    (stream,), _ = mpeg.streams(plain)
    more, _ = samples(tmp_path, told(plain, -50))
    assert len(more) == stream.samples - DELAY
    with pytest.raises(AudioError, match=r"header counts 207 MPEG frames, 107 are there: .* if it is whole, write it"):
        samples(tmp_path, told(plain, 100))


def test_cut_files(tmp_path: Path, plain: bytes, uncounted: bytes) -> None:
    with pytest.raises(AudioError, match=r"cut short: \d+ of 107 MPEG frames are there"):
        samples(tmp_path, plain[: len(plain) // 2])
    with pytest.raises(AudioError, match=r"cut short: the last of 107 MPEG frames is not all there"):
        samples(tmp_path, uncounted[:-1])


def test_damage_within_is_said(tmp_path: Path, plain: bytes) -> None:
    middle = mpeg._frames(plain)[0][50].at
    _, said = samples(tmp_path, plain[:middle] + b"\x01" * 5000 + plain[middle:])
    assert said == ["5,000 bytes between its frames are no MPEG audio and were passed over"]
    for content in (b"\xff\xfb" + bytes(5000), id3(bytes(50))):
        with pytest.raises(AudioError, match="no MPEG layer III frames in it"):
            samples(tmp_path, content)
    with pytest.raises(AudioError, match="neither WAV, FLAC, NIST SPHERE nor MP3"):
        samples(tmp_path, b"not a sound")
