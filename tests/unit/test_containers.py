"""Headers of sound files that cannot be true: read as they are meant, or a bad file with the reason."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wav import LIST, TONE, floats, long_sizes, wav

from zfdist.data.sources.audio import AudioError, estimated_samples, read

STREAMED = ["its header does not tell its length; read to the end"]
RF64 = {"magic": b"RF64", "size": 0xFFFFFFFF}
SINE = np.sin(np.arange(8000) * 0.05)


def put(folder: Path, content: bytes) -> Path:
    path = folder / "a.wav"
    path.write_bytes(content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(AudioError) as bad:
        read(path, 16_000)
    assert estimated_samples(path, 16_000) < 1 << 24
    return str(bad.value)


@pytest.mark.parametrize(
    "content",
    [
        *(wav(size=size) for size in (0, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFF1000, 0xFFFFFFFF)),
        wav(size=0, riff_size=0),
        wav(size=100_000, riff_size=0xFFFFFFFF),
        wav(size=100_000, riff_size=0),
        wav(size=0, after=LIST),
        wav(size=0xFFFFFFFF, after=LIST),
        *(wav(**RF64, before=long_sizes(told)) for told in (0, (1 << 64) - 1)),  # type: ignore[arg-type]
        wav(**RF64),  # type: ignore[arg-type]
        wav(magic=b"BW64", size=0xFFFFFFFF, before=long_sizes(0)),
    ],
)
def test_streams_are_read_to_their_end(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    assert np.array_equal(read(put(tmp_path, content), 16_000, said), TONE) and said == STREAMED


@pytest.mark.parametrize(
    "content",
    [
        wav(after=LIST),
        wav(before=b"JUNK" + struct.pack("<I", 28) + bytes(28), after=LIST + LIST),
        wav(after=b"TAG" + bytes(125)),
        wav(after=bytes(100_000)),
        wav(**RF64, before=long_sizes(16_000)),  # type: ignore[arg-type]
        wav(magic=b"BW64", size=0xFFFFFFFF, before=long_sizes(16_000)),
        wav(frame_bytes=0),
    ],
)
def test_what_lies_around_the_sound_is_passed_over(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    assert np.array_equal(read(put(tmp_path, content), 16_000, said), TONE) and said == []


@given(size=st.integers(16_001, 0x7FFE0000))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_size_that_can_be_true_says_that_the_file_is_cut_short(tmp_path: Path, size: int) -> None:
    assert refused(put(tmp_path, wav(size=size))) == f"cut short: 16,000 of {size:,} bytes of sound are there"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav(**RF64, before=long_sizes(32_000)), "cut short: 16,000 of 32,000 bytes"),  # type: ignore[arg-type]
        (wav() + wav(), "16,044 more follow that are none of its chunks: two files in one"),
        (wav(size=4000), "its header counts 4,000 bytes of sound, 12,000 more follow"),
        (wav(b"", after=LIST), "holds no samples"),
        (wav()[:30], "no data chunk"),
        (wav(channels=0, frame_bytes=2), "0 channels, where 1 to 64 are read"),
        (wav(channels=1000), "1,000 channels"),
        *((wav(bits=bits), f"1 samples of {bits} bits") for bits in (0, 1, 255, 65_535)),
        (wav(frame_bytes=7), "in 7 bytes: its header is damaged"),
        *((wav(rate=rate), f"rate of {rate:,} Hz") for rate in (0, 1, 100, 1_048_573, 2_147_483_647, 4_294_967_295)),
        (wav(rate=192_001), "whose ratio to 16,000 Hz is 192,001 to 16,000: not resampled"),
        (floats(np.array([0.0, np.inf])), "not finite"),
        (b"RIFX" + wav()[4:], r"a big-endian WAV (RIFX) file, which is not read; convert it"),
        (b"OggS" + bytes(99), "an Ogg file"),
        (bytes(4) + b"ftypM4A " + bytes(99), "an MPEG-4 (M4A) file"),
    ],
)
def test_headers_that_cannot_be_true(tmp_path: Path, content: bytes, reason: str) -> None:
    begun = time.process_time()
    assert reason in refused(put(tmp_path, content))
    assert time.process_time() - begun < 1  # gigabytes of filter would take longer


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
@pytest.mark.parametrize(("peak", "scale"), [(100.0, 128), (20_000.0, 32_768), (8e6, 8_388_608), (2e9, 2_147_483_648)])
def test_floats_at_the_scale_of_integers_are_refused(tmp_path: Path, kind: str, peak: float, scale: int) -> None:
    said = refused(put(tmp_path, floats(peak * SINE, kind)))
    assert "float values up to" in said and f"divide them by {scale:,}, or write integers" in said
    rare = np.where(np.arange(8000) == 17, peak, 0.001 * SINE)
    assert f"divide them by {scale:,}" in refused(put(tmp_path, floats(rare, kind)))


def test_floats_beyond_full_scale_are_clipped_and_said_or_refused_where_they_are_most(tmp_path: Path) -> None:
    said: list[str] = []
    assert read(put(tmp_path, floats(1.2 * SINE)), 16_000, said).max() == 32_767
    assert said == ["37.2 % of its float values are beyond full scale, up to 1.2: clipped"]
    assert "66.6 % beyond full scale, 1: bring them to -1 to 1" in refused(put(tmp_path, floats(np.rint(3 * SINE))))
    said.clear()
    read(put(tmp_path, floats(SINE)), 16_000, said)
    assert said == []


def test_flac(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", TONE, 16_000)
    whole = (tmp_path / "a.flac").read_bytes()
    unknown = bytearray(whole)
    unknown[21] &= 0xF0  # the number of samples, 36 bits, as it is written to a pipe
    unknown[22:26] = bytes(4)
    tagged = b"ID3\3\0\0\0\0\0\x14" + bytes(20) + whole
    for content in (bytes(unknown), tagged):
        assert np.array_equal(read(put(tmp_path, content), 16_000), TONE)
    assert "2 FLAC files in one" in refused(put(tmp_path, whole + whole))
    assert "not decodable" in refused(put(tmp_path, bytes(unknown[:-500])))


def test_many_channels_and_legal_kinds_of_samples(tmp_path: Path) -> None:
    six = np.repeat(TONE[:, None], 6, axis=1)
    assert np.array_equal(read(put(tmp_path, wav(six, channels=6)), 16_000), TONE)
    for subtype, most in (("PCM_U8", 256), ("PCM_24", 1), ("PCM_32", 1), ("DOUBLE", 1), ("ALAW", 99), ("ULAW", 99)):
        soundfile.write(tmp_path / "a.wav", TONE / 32768, 16_000, subtype=subtype)
        assert np.abs(read(tmp_path / "a.wav", 16_000).astype(int) - TONE).max() <= most
    for subtype in ("IMA_ADPCM", "MS_ADPCM", "GSM610"):
        soundfile.write(tmp_path / "a.wav", TONE[:3001] / 32768, 16_000, subtype=subtype)
        assert len(read(tmp_path / "a.wav", 16_000)) >= 3001


def test_sphere_whose_count_is_not_that_of_its_bytes(tmp_path: Path) -> None:
    def sphere(count: int, rate: int = 16_000) -> bytes:
        fields = f"sample_count -i {count}\nsample_rate -i {rate}\nchannel_count -i 1\nsample_n_bytes -i 2\n"
        head = f"NIST_1A\n   1024\n{fields}sample_byte_format -s2 01\nend_head\n"
        return head.encode().ljust(1024) + TONE.tobytes()

    assert np.array_equal(read(put(tmp_path, sphere(8000)), 16_000), TONE)
    assert "8,000 more follow; mend its sample_count" in refused(put(tmp_path, sphere(4000)))
    assert "cut short" in refused(put(tmp_path, sphere(16_000)))
    assert "a sample rate of 0 Hz" in refused(put(tmp_path, sphere(8000, 0)))
