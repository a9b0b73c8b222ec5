"""The arguments of `zfdist prepare`: a class for each kind of raw data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Place = Annotated[str, tyro.conf.arg(metavar="DIR")]
ListFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Lists:
    """The split by list files, all three or none: text files with a path below --source on each line.

    What is in no list is left out.
    """

    list_train: ListFile = None
    """What to train on."""
    list_valid: ListFile = None
    """What is for validation."""
    list_test: ListFile = None
    """What is for the test."""


@dataclass(frozen=True)
class Output:
    """What is written, and what may be left out."""

    append: tyro.conf.FlagCreatePairsOff[bool] = False
    """Add files to the finished data set in --out, as new shards; --source may hold the old ones too, unchanged."""
    max_bad: int = 0
    """Files that may be unreadable, cut short or empty; they are left out and reported."""
    shard_mb: int = 256
    """Size of a shard file, about, in MiB."""
    licence: str = ""
    """Licence of the data; default: the text of a LICENSE or COPYRIGHT file in --source."""


@dataclass(frozen=True)
class Machines:
    """Who does the work; the bytes are the same."""

    workers: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Processes of this machine, or with --address tasks at a time; default: this process alone."""
    address: str | None = None
    """With --workers: a running Ray cluster, "auto" or host:port, whose machines share --source and --out."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Convert a folder of WAV, FLAC, NIST SPHERE and MP3 files, at any depth, into Arrow shards.

    Channels are averaged, sound is resampled and kept as int16; a file is one recording. Files are known by their
    first bytes. Links to folders are followed, to each folder once. Hidden files and those of other kinds are left out
    and counted; a folder that cannot be read is an error. A WAV that does not tell its length, as one from a pipe, is
    read to its end. Floats have full scale 1: files of integers as floats are bad files.

    The split: u = sha256 of a file's path below --source, as a fraction of 1; test if 100 u is below --test-percent,
    valid if it is below the sum of both percentages, else train. It does not change when other files come or go.

    The same command goes on where an interrupted one stopped. The same input gives the same bytes.
    """

    source: Place
    """Folder with the audio files, or its URI in a store."""
    out: Place
    """Folder of the data set to write, e.g. data/speech, or its URI."""
    sample_rate: int = 16_000
    """Samples a second of the data set."""
    split_by: Annotated[str, tyro.conf.arg(metavar="file|folder|N|REGEX")] = "file"
    """What decides the split: a file's path, or that of the folder it lies in; N: its first N folders, which stay
    together with all below them (of LibriSpeech's SPEAKER/CHAPTER the speaker by 1); or what a regular expression
    finds in the path, in its parentheses. Where the folders fall is printed."""
    valid_percent: float = 10.0
    """Share of files (or folders) for validation."""
    test_percent: float = 10.0
    """Share of files (or folders) for the test."""
    lists: tyro.conf.OmitArgPrefixes[Lists] = Lists()
    output: tyro.conf.OmitArgPrefixes[Output] = Output()
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()


@dataclass(frozen=True, kw_only=True)
class Timit:
    """Convert a copy of TIMIT (LDC93S1): NIST SPHERE files TRAIN/DR1/FCJF0/SA1.WAV and so on, in any case.

    RIFF twins (SA1.WAV.wav) are passed over where the SPHERE file is there.

    The split: folder TEST is the test; of the speakers in TRAIN the --valid-percent with the smallest sha256 of the
    name are validation, so that nobody is in two splits. Or by list files, e.g. those of the STCN's authors for the
    split of the SRNN: a path a line, of which the last four parts count, in any case.
    """

    source: Place
    """Folder that holds TRAIN and TEST, or one above it."""
    out: Place = "data/timit"
    """Folder of the data set to write."""
    sample_rate: int = 16_000
    """Samples a second of the data set."""
    no_sa: bool = False
    """Leave out sentences SA1 and SA2, which every speaker reads."""
    valid_percent: float = 5.0
    """Share of the speakers in TRAIN for validation."""
    lists: tyro.conf.OmitArgPrefixes[Lists] = Lists()
    output: tyro.conf.OmitArgPrefixes[Output] = Output()
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()


@dataclass(frozen=True, kw_only=True)
class Blizzard:
    """Convert the chapters of Blizzard 2013 (WAV, MP3 and so on, at any depth); training cuts them to half seconds.

    --split chapters: a chapter is a file (or a folder of files, --chapter folder); sha256 of its path decides the
    split, as for speech. Or give list files.

    --split rows: the published row split. The files of --order-list are joined in that order, --group-files at a time
    (an empty line ends a group early), and cut into 128 streams of rows of 8,000 samples; rows below --valid-row are
    training, those below --test-row validation, those below --end-row the test. The default boundaries are those of
    the whole published set. A recording is a stream's part in a split: the target of a row's last frame is the next
    frame of its own stream.
    """

    source: Place
    """Folder with the chapters."""
    out: Place = "data/blizzard"
    """Folder of the data set to write."""
    sample_rate: int = 16_000
    """Samples a second of the data set."""
    split: Literal["chapters", "rows"] = "chapters"
    """Whole chapters to each split, or the published rows."""
    chapter: Literal["file", "folder"] = "file"
    """What a chapter is (--split chapters)."""
    valid_percent: float = 5.0
    """Share of the chapters for validation."""
    test_percent: float = 5.0
    """Share of the chapters for the test."""
    lists: tyro.conf.OmitArgPrefixes[Lists] = Lists()
    order_list: ListFile = None
    """Text file with the paths below --source in their order (--split rows)."""
    group_files: int = 200
    """Files that are joined before they are cut into streams (--split rows)."""
    streams: int = 128
    """Streams that a group is cut into (--split rows)."""
    valid_row: int = 2_040_064
    """First row of validation (--split rows)."""
    test_row: int = 2_152_704
    """First row of the test (--split rows)."""
    end_row: int = 2_266_880
    """First row that is left out (--split rows)."""
    output: tyro.conf.OmitArgPrefixes[Output] = Output()
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()


@dataclass(frozen=True)
class Mnist:
    """Convert binary MNIST: a row of 784 pixels 0 or 1 an image.

    From text, MATLAB or .npy files with train, valid and test in their names (binarized_mnist_train.amat ..., the
    standard fixed binarisation), or from grey images, of which each pixel is drawn once, as 1 with probability
    grey / 255: IDX files (train-images-idx3-ubyte and t10k- or test-), mnist.npz of Keras, or train.csv and test.csv
    of Kaggle. All may be packed; equal content counts once. Labels are kept where there are any.
    """

    source: Place
    """Folder with the files."""
    out: Place = "data/mnist"
    """Folder of the data set to write."""
    binarise_seed: int = 0
    """Fixes which pixels of grey images are 1."""
    idx_valid: int = 10_000
    """Images at the end of the training file of grey images that are validation."""
    licence: str = ""
    """Licence of the data; default: the text of a LICENSE or COPYRIGHT file in --source."""
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()


@dataclass(frozen=True)
class Text:
    """Convert text: a row of word ids a sentence, between --min-tokens and --max-tokens words.

    A source is a file (a sentence a line; .jsonl: an object a line; .csv, .tsv, .parquet: a table of which
    --text-column names a column; .pos, .neg: with that label), a zip or tar archive, or a folder of such files; all may
    be packed by gzip, bzip2 or xz, which is told by their first bytes. Of several texts in a folder
    or archive a .txt file is a review, labelled if its folder is pos or neg.

    The split: u = sha256 of the review's name or id, or of the sentence's words where there is none, as a fraction of
    1; test if 100 u is below --test-percent, valid if it is below the sum of both percentages, else train.
    The vocabulary is of the training split; other words become <unk>.
    """

    source: tuple[Place, ...]
    """Files, folders and archives."""
    out: Place = "data/text"
    """Folder of the data set to write."""
    tokenizer: Literal["blanks", "words"] = "blanks"
    """blanks: tokenised already. words: lower case; runs of letters and digits (with ' or - inside), and all marks."""
    sentences: Literal["lines", "marks"] = "lines"
    """lines: a sentence a line. marks: lines are cut after . ! ? and a blank, and at <br />."""
    min_tokens: int = 1
    """Shortest sentence that is kept, in words."""
    max_tokens: int = 15
    """Longest sentence that is kept, in words."""
    vocab: int = 16_000
    """Most frequent words that are known, besides <pad>, <s>, </s> and <unk>; ties by code point."""
    valid_percent: float = 5.0
    """Share of the reviews (or sentences) for validation."""
    test_percent: float = 10.0
    """Share of the reviews (or sentences) for the test."""
    text_field: Annotated[str, tyro.conf.arg(aliases=("--text-column",))] = ""
    """Field of a JSON line, or column of a table, that holds the text; default: text in JSON lines."""
    review_field: Annotated[str, tyro.conf.arg(aliases=("--review-column",))] = ""
    """The one that holds the id of the review; default: none, each sentence for itself."""
    label_field: Annotated[str, tyro.conf.arg(aliases=("--label-column",))] = ""
    """The one that holds the label: a whole number (4, 4.0), pos, positive, neg or negative; default: none."""
    encoding: str = ""
    """Encoding of text without a mark, e.g. cp1251, shift_jis, utf-16-le; default: UTF-8, and Latin-1 (Windows-1252)
    for lines that are not."""
    max_bad: int = 0
    """Lines and files that may be unreadable; they are left out and reported."""
    licence: str = ""
    """Licence of the data; default: the text of a LICENSE or COPYRIGHT file beside the first source."""
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()


@dataclass(frozen=True)
class Verify:
    """Check every hash of a data set, and that all that its manifest says follows from its samples."""

    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|URI")]
    """Folder that zfdist prepare wrote, or its URI in a store."""


@dataclass(frozen=True)
class Info:
    """Say what is in a data set: splits, hours, lengths, speakers where they are known."""

    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|URI")]
    """Folder that zfdist prepare wrote, or its URI in a store."""


Command = Speech | Timit | Blizzard | Mnist | Text
Verb = Verify | Info
