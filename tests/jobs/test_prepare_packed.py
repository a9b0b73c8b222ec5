"""`zfdist prepare text` on packed files, archives, other encodings and files that are no text."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from raw import prepared, refusal
from words_of import some_sentences

from zfdist.data.sources import packed
from zfdist.data.store import Store

LINES = some_sentences(150)
TEXT = ("\n".join(LINES) + "\n").encode()
SHARES = ("--valid-percent", "20", "--test-percent", "20")


def tarred(members: dict[str, bytes], mode: str = "w") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return made.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def fingerprint(tmp_path: Path, name: str, content: bytes, *flags: object) -> str:
    """Of the store of a file that is named itself."""
    source, out = tmp_path / name, tmp_path / f"{name}.out"
    source.write_bytes(content)
    prepared("text", "--source", source, "--out", out, *SHARES, *flags)
    return Store.open(out).fingerprint


def said_of(tmp_path: Path, name: str, content: bytes, *flags: object) -> str:
    """What is said of a file that is named itself and refused."""
    (tmp_path / name).write_bytes(content)
    return refusal("text", "--source", tmp_path / name, "--out", tmp_path / "refused", *flags)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fingerprint(tmp_path_factory.mktemp("plain"), "a.txt", TEXT)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt.gz", gzip.compress),
        ("a.txt", gzip.compress),
        ("a.dat", bz2.compress),
        ("a.xz", lzma.compress),
        ("a.lzma", lambda text: lzma.compress(text, lzma.FORMAT_ALONE)),
        ("a.gz", lambda text: gzip.compress(text[:1000]) + gzip.compress(text[1000:])),
        ("a.gz.gz", lambda text: gzip.compress(gzip.compress(text))),
        ("a.txt.gz", lambda text: text),
        ("a.tar", lambda text: tarred({"x/a.txt": text})),
        ("a.tgz", lambda text: tarred({"./a.txt": text, "._a.txt": b"none"}, "w:gz")),
        ("a.tar.xz", lambda text: tarred({"a.txt.gz": gzip.compress(text)}, "w:xz")),
        ("nosuffix", lambda text: zipped({"folder\\": b"", "folder\\a.txt": text})),
    ],
)
def test_packed_text_is_the_text(tmp_path: Path, plain: str, name: str, pack: Callable[[bytes], bytes]) -> None:
    assert fingerprint(tmp_path, name, pack(TEXT)) == plain


@pytest.mark.parametrize(
    ("encode", "flags"),
    [
        (lambda text: text.encode("utf-8-sig"), ()),
        (lambda text: text.encode("utf-16"), ()),
        (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), ()),
        (lambda text: text.encode("utf-32"), ()),
        (lambda text: b"\0\0\xfe\xff" + text.encode("utf-32-be"), ()),
        (lambda text: text.encode("utf-16-be"), ("--encoding", "utf-16-be")),
        (lambda text: text.encode("latin-1"), ()),
        (lambda text: text.encode("cp437"), ("--encoding", "cp437")),
        (lambda text: text.replace("\n", "\r").encode(), ()),
        (lambda text: text.replace("\n", "\r\n").encode(), ()),
        (lambda text: text.replace(" ", "\0").encode(), ()),
        (lambda text: text.encode() + b"\0" * 4096, ()),
        (lambda text: gzip.compress(text.encode("utf-16")), ()),
    ],
)
def test_other_encodings_and_line_ends_hold_the_text(
    tmp_path: Path, plain: str, encode: Callable[[str], bytes], flags: tuple[str, ...]
) -> None:
    assert fingerprint(tmp_path, "a.txt", encode(TEXT.decode()), *flags) == plain


def test_what_was_met_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = b"it\x92s a good film he says\nthe film\0is very\0good and not bad\n"
    odd += b"\xef\xbb\xbfa good<br />film is not a bad film\n"
    fingerprint(tmp_path, "a.txt", TEXT + odd)
    said = capsys.readouterr().out
    assert "1 lines are not UTF-8 and were read as Latin-1 (Windows-1252)" in said
    assert "3 NUL characters or byte-order marks within the text were read as blanks" in said
    assert "1 lines hold <br />" in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", TEXT.decode().encode("utf-16-le"), "a.txt: seems to be utf-16-le without a mark"),
        ("a.txt", TEXT.decode().encode("utf-32-be"), "a.txt: seems to be utf-32-be without a mark"),
        ("a.txt", "очень хороший фильм и сюжет\n".encode("koi8-r") * 90, "a.txt: neither UTF-8 nor Latin-1"),
        ("a.txt", "とても良い映画です\n".encode("shift_jis") * 90, "a.txt: neither UTF-8 nor Latin-1"),
        ("a.txt", b"a\n" * 40_000 + "очень хороший фильм\n".encode("cp1251"), "a.txt:40001: neither UTF-8 nor"),
        ("a.txt", TEXT + b"\xff" * 90, "a.txt:151: neither UTF-8 nor Latin-1"),
        ("a.txt", ("\ufeff" + TEXT.decode()).encode("utf-16-le")[:-1], "a.txt: not utf-16 after line"),
        ("a.txt", bytes(range(256)) * 50, "a.txt: binary, not text"),
        ("a.txt", b"\0" * 9000, "a.txt: more NUL bytes than others"),
        ("a.txt", b"%PDF-1.7\n" + TEXT, "a.txt: a PDF document; save it as text"),
        ("a.txt", b"\x80\x04\x95abc" + TEXT, "a.txt: a pickle"),
        ("a.txt", b"\xff\xd8\xff\xe0" + TEXT, "a.txt: an image"),
        ("a.txt", b'{"text": "x"}\n' * 9, "a.txt: holds lines of JSON; give it a name that ends in .jsonl"),
        ("a.xml", b"<?xml version='1.0'?>" + TEXT, "a.xml: XML; write its text"),
        ("a.html", b"<!DOCTYPE HTML><p>" + TEXT, "a.html: a page of HTML"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.txt: a pointer of Git LFS"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + TEXT, "a.7z: a 7z archive; unpack it"),
        ("a.txt", b"\x28\xb5\x2f\xfd" + TEXT, "a.txt: packed by zstd; unpack it (zstd -d)"),
        ("a.rar", b"Rar!\x1a\x07\x01\x00" + TEXT, "a.rar: a RAR archive; unpack it"),
        ("a.docx", zipped({"[Content_Types].xml": b"<x/>", "word/a.xml": b"<x/>"}), "a.docx: an Office document"),
        ("a.zip", TEXT, "a.zip: not readable as a zip archive"),
        ("a.gz", gzip.compress(TEXT)[:-200], "Compressed file ended"),
        ("a.xz", lzma.compress(TEXT)[:-90], "Compressed file ended"),
        ("a.bz2", bz2.compress(TEXT)[:-200], "Compressed file ended"),
        ("a.gz", gzip.compress(TEXT)[:-8] + b"\0" * 8, "CRC check failed"),
        ("a.tgz", tarred({f"{i}.txt": TEXT for i in range(9)}, "w:gz")[:-200], "a.tgz: not readable as a packed"),
        ("a.tar", tarred({"a.txt": TEXT, "b.txt": TEXT})[:2048], "a.tar"),
        (
            "a.tar",
            tarred({"a.txt": b"x" * 512, "b.txt": TEXT})[:1024],
            "a.tar: not readable as a packed archive (damaged",
        ),
        ("a.tar", tarred({"a.txt": TEXT}) + tarred({"b.txt": TEXT}), "more data after the end of the archive"),
        ("a.tar", tarred({"a.txt": TEXT, "b.zip": zipped({"c.txt": TEXT})}), "a.tar/b.zip: a zip archive in another"),
        ("a.zip", zipped({"a.txt": TEXT, "b.7z": b"7z\xbc\xaf\x27\x1c"}), "a.zip/b.7z: a 7z archive"),
        ("a.zip", zipped({"a\\b.txt": TEXT, "a/b.txt": TEXT}), "a.zip/a/b.txt: 2 times in the archive"),
        ("a.zip", zipped({"a.bin": TEXT}), "in it; left out: 1 of .bin"),
        (
            "a.csv",
            b"review,y\n" + TEXT,
            "a.csv: a table with the columns review, y; name that of the text by --text-column",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in said_of(tmp_path, name, content)


def test_locked_archives_and_links_in_archives(tmp_path: Path) -> None:
    locked = bytearray(zipped({"a.txt": TEXT, "b.txt": TEXT}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.find(mark) + offset] |= 1
    assert "a.zip/a.txt: encrypted; unpack it with its password" in said_of(tmp_path, "a.zip", bytes(locked))
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        archive.addfile(link)
    assert "a.tar/b.txt: a link or device in an archive" in said_of(tmp_path, "a.tar", made.getvalue())


def test_an_archive_that_holds_itself_comes_to_an_end(tmp_path: Path) -> None:
    content = TEXT
    for _ in range(packed.MOST_LAYERS + 1):
        content = gzip.compress(content)
    assert "packed more than 4 times over" in said_of(tmp_path, "a.gz", content)


def test_a_bomb_is_refused_after_little_of_it(tmp_path: Path) -> None:
    with lzma.open(tmp_path / "a.xz", "wb", preset=0) as bomb:
        for _ in range(40):
            bomb.write(b"a" * (1 << 20))
    said = refusal("text", "--source", tmp_path / "a.xz", "--out", tmp_path / "out")
    assert "a.xz: line 1 is longer than 33,554,432 characters: no text" in said


def test_a_folder_of_all_sorts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    reviews = {f"train/{('pos', 'neg')[i % 2]}/{i}.txt": LINES[i].encode() for i in range(120)}
    (folder / "more").mkdir(parents=True)
    (folder / "aclImdb.tar.gz").write_bytes(tarred(reviews | {"train/urls_pos.txt": b"x", "imdb.vocab": b"x"}, "w:gz"))
    (folder / "more" / "a.tok.bz2").write_bytes(bz2.compress(b"not text by its name"))
    (folder / "more" / "rt.pos.xz").write_bytes(lzma.compress(TEXT))
    (folder / "more" / "empty.txt").write_bytes(b"")
    (folder / "README").write_bytes(TEXT)
    prepared("text", "--source", folder, "--out", tmp_path / "out", *SHARES)
    store = Store.open(tmp_path / "out")
    names = [name for split in store.splits for name in store.names(split)]
    kept = [len(line.split()) < 16 for line in LINES]
    assert sum(name.startswith("aclImdb.tar.gz/train/") for name in names) == sum(kept[:120])
    assert sum(name.startswith("more/rt.pos.xz:") for name in names) == sum(kept)
    assert len(names) == sum(kept[:120]) + sum(kept)
    for split in store.splits:
        labels = store.labels(split)
        assert labels is not None and all(
            label == (0 if "/neg/" in name else 1) for name, label in zip(store.names(split), labels, strict=True)
        )
    said = capsys.readouterr().out
    for left in ("1 README or licence", "1 empty", "1 of .tok", "1 of .vocab", "1 of .txt outside of folders pos, neg"):
        assert left in said


def test_text_packed_and_unpacked_in_one_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "x").mkdir(parents=True)
    out = ("--out", tmp_path / "out")
    (tmp_path / "in" / "a.jsonl").write_bytes(b"{}")
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    said = refusal("text", "--source", tmp_path / "in", *out)
    assert "'a.jsonl' twice, the second time in 'a.jsonl.gz'" in said
    (tmp_path / "in" / "a.jsonl.gz").unlink()
    (tmp_path / "in" / "x" / "b.txt").write_bytes(TEXT)
    for name, member in (("b.tar.gz", "x/b.txt"), ("x.zip", "b.txt")):
        pack = tarred({member: TEXT}, "w:gz") if name.endswith("gz") else zipped({member: TEXT})
        (tmp_path / "in" / name).write_bytes(pack)
        assert f"'x/b.txt' twice, the second time in '{name}'" in refusal("text", "--source", tmp_path / "in", *out)
        (tmp_path / "in" / name).unlink()


def test_files_of_a_folder_that_cannot_be_used_are_named_or_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.pos").write_bytes(TEXT)
    (folder / "b.txt").write_bytes(b"%PDF-1.4 " + TEXT)
    (folder / "c.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    (folder / "d.txt").symlink_to(folder / "none")
    line = ("text", "--source", folder, "--out", tmp_path / "out", *SHARES)
    said = refusal(*line)
    assert "2 files cannot be used" in said and "c.7z: a 7z archive" in said and "d.txt: unreadable (No such" in said
    said = refusal(*line, "--max-bad", "2")
    assert "b.txt: a PDF document" in said
    prepared(*line, "--max-bad", "3")
    assert set(Store.open(tmp_path / "out").manifest.source["left_out"]) == {"b.txt", "c.7z", "d.txt"}
    for name in ("utf-3", "rot13", "zlib"):
        assert f"--encoding {name}: not known" in refusal(*line, "--encoding", name)
