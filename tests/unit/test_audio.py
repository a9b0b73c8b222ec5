"""One audio file to int16: every format, resampling in blocks, and every way a file can be bad."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import resample_poly

from zfdist.data.sources.audio import AudioError, estimated_samples, is_audio, read, resampled

RATE = 16_000


def tone(samples: int, rate: int = RATE, seed: int = 0) -> NDArray[np.float64]:
    """A few partials and some noise, at most 0.5."""
    rng = np.random.default_rng(seed)
    times = np.arange(samples) / rate
    return np.asarray(
        0.2 * np.sin(2 * np.pi * 440 * times) + 0.1 * np.sin(2 * np.pi * 1234 * times) + 0.01 * rng.normal(size=samples)
    )


def pcm(samples: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-32768, 32768, samples, dtype=np.int16)


def sphere(path: Path, samples: NDArray[np.int16], **fields: str) -> Path:
    """Write a NIST SPHERE file as TIMIT has them."""
    values = {
        "sample_count": f"-i {len(samples)}",
        "sample_rate": "-i 16000",
        "channel_count": "-i 1",
        "sample_n_bytes": "-i 2",
        "sample_byte_format": "-s2 01",
        "sample_sig_bits": "-i 16",
    } | fields
    header = "NIST_1A\n   1024\n" + "".join(f"{k} {v}\n" for k, v in values.items()) + "end_head\n"
    path.write_bytes(header.encode().ljust(1024) + samples.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "A.WAV"])
def test_16_bit_mono_is_unchanged(tmp_path: Path, name: str) -> None:
    samples = pcm(70_001)
    samples[:2] = -32768, 32767
    soundfile.write(tmp_path / name, samples, RATE, subtype="PCM_16")
    assert np.array_equal(read(tmp_path / name, RATE), samples)
    assert estimated_samples(tmp_path / name, RATE) == 70_001


def test_sphere_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    samples = pcm(5000)
    path = sphere(tmp_path / "SA1.WAV", samples)
    assert np.array_equal(read(path, RATE), samples)
    assert is_audio(path.rename(tmp_path / "no-suffix"))


def test_mp3_is_close(tmp_path: Path) -> None:
    sound = tone(RATE * 2)
    soundfile.write(tmp_path / "a.mp3", sound, RATE, format="MP3")
    out = read(tmp_path / "a.mp3", RATE).astype(float) / 32768
    assert abs(len(out) - len(sound)) < 2400
    lags = [np.corrcoef(out[lag : lag + 20_000], sound[5000:25_000])[0, 1] for lag in range(3500, 7500)]
    assert max(lags) > 0.95


def test_stereo_44100_hz_is_averaged_and_resampled(tmp_path: Path) -> None:
    left, right = tone(44_100, 44_100, 1), tone(44_100, 44_100, 2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    expected = resample_poly((left.astype("f4") + right.astype("f4")) / 2 * 32768, 160, 441)
    out = read(tmp_path / "a.wav", RATE)
    assert len(out) == len(expected) == RATE and np.abs(out - expected).max() <= 0.51


def test_loud_sound_saturates(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([2.0, -2.0, 1.0, -1.0, 0.5]), RATE, subtype="FLOAT")
    assert read(tmp_path / "a.wav", RATE).tolist() == [32767, -32768, 32767, -32768, 16384]


def blocks(signal: NDArray[np.float64], cuts: list[int]) -> Iterator[NDArray[np.float64]]:
    yield from (part for part in np.split(signal, sorted(min(cut, len(signal)) for cut in cuts)))


@given(
    rate=st.sampled_from([8000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 16_001]),
    length=st.integers(1, 9000),
    cuts=st.lists(st.integers(0, 9000), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_resampling_in_blocks_equals_resampling_whole(rate: int, length: int, cuts: list[int]) -> None:
    signal = np.random.default_rng(length).normal(size=length)
    common = np.gcd(rate, RATE)
    whole = resample_poly(signal, RATE // common, rate // common)
    pieces = np.concatenate([np.empty(0), *resampled(blocks(signal, cuts), rate, RATE)])
    assert len(pieces) == len(whole) and np.abs(pieces - whole).max() < 1e-12


def write_wav(path: Path) -> bytes:
    soundfile.write(path, pcm(3000), RATE, subtype="PCM_16")
    return path.read_bytes()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n")


def page(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><html>404</html>")


def text(path: Path) -> None:
    path.write_bytes(b"once upon a time" * 9)


def header_only(path: Path) -> None:
    path.write_bytes(write_wav(path)[:20])


def cut_wav(path: Path) -> None:
    path.write_bytes(write_wav(path)[:-1])


def no_samples(path: Path) -> None:
    soundfile.write(path, pcm(0), RATE, subtype="PCM_16")


def cut_flac(path: Path) -> None:
    soundfile.write(path, pcm(60_000), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:-4000])


def cut_flac_at_half(path: Path) -> None:
    soundfile.write(path, pcm(60_000), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_mp3(path: Path) -> None:
    soundfile.write(path, tone(60_000), RATE, format="MP3")
    path.write_bytes(path.read_bytes()[:-1000])


def damaged_flac(path: Path) -> None:
    soundfile.write(path, pcm(60_000), RATE, format="FLAC")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def cut_sphere(path: Path) -> None:
    sphere(path, pcm(3000))
    path.write_bytes(path.read_bytes()[:-2])


def shorten(path: Path) -> None:
    sphere(path, pcm(3000), sample_coding="-s26 pcm,embedded-shorten-v2.00")


def uncounted_sphere(path: Path) -> None:
    sphere(path, pcm(3000), sample_count="-s1 x")


def not_finite(path: Path) -> None:
    soundfile.write(path, np.array([0.0, np.nan]), RATE, subtype="FLOAT")


def unknown_codec(path: Path) -> None:
    content = bytearray(write_wav(path))
    content[20:22] = struct.pack("<H", 0x7777)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty, "empty file"),
        (text, "neither WAV, FLAC, NIST SPHERE nor MP3"),
        (pointer, "a pointer of Git LFS in place of the sound; run git lfs pull"),
        (page, "a page of HTML, perhaps of a failed download"),
        (header_only, "no data chunk: cut short"),
        (cut_wav, r"cut short: 5,999 of 6,000 bytes"),
        (no_samples, "holds no samples"),
        (cut_flac, "cut short|not decodable"),
        (cut_flac_at_half, "cut short|not decodable"),
        (cut_mp3, r"cut short: 10\d of 107 MPEG frames"),
        (damaged_flac, "not decodable"),
        (cut_sphere, r"cut short: 5,998 of 6,000 bytes"),
        (shorten, "compressed by shorten; unpack it first"),
        (uncounted_sphere, "without a valid sample_count"),
        (not_finite, "not finite"),
        (unknown_codec, "not decodable"),
    ],
)
def test_bad_files_give_their_reason(tmp_path: Path, spoil: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "a.wav"
    spoil(path)
    with pytest.raises(AudioError, match=reason) as caught:
        read(path, RATE)
    assert str(tmp_path) not in str(caught.value)
    assert estimated_samples(path, RATE) >= 0


def test_a_link_to_nowhere_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.wav").symlink_to(tmp_path / "gone")
    with pytest.raises(AudioError, match="unreadable: No such file"):
        read(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 6000])
def test_streamed_wav_does_not_know_its_length(tmp_path: Path, length: int) -> None:
    content = bytearray(write_wav(tmp_path / "a.wav"))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", length)
    (tmp_path / "a.wav").write_bytes(content)
    assert np.array_equal(read(tmp_path / "a.wav", RATE), pcm(3000))


@pytest.mark.parametrize("content", [b"\xff\xfeh\x00i\x00", b"hello", b""])
def test_other_files_are_no_audio(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    assert not is_audio(tmp_path / "notes.txt")
