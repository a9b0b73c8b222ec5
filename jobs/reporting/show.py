"""What a network generates, as files and as a part of a report: one function for each kind of data.

A further kind has a function that writes its pieces, and its line in `_WRITERS`; a report then shows samples,
continuations, reconstructions and mixtures with it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from jobs.reporting import audio, draw_samples, figures
from jobs.reporting.draw_samples import Piece, Request, What
from jobs.reporting.report_markdown import table
from zfdist import atomic_io
from zfdist.data.as_trained import unknown_words
from zfdist.data.kinds import BITS, END, PCM16, TOKENS
from zfdist.data.store import Store
from zfdist.data.views import sequences_of
from zfdist.evaluation import generate
from zfdist.evaluation.evaluate import EvaluationError, Loaded

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

_COLUMNS_OF_SOUND = 4
_SIDE = 28
_DRAWN, _COMPARED = 16, 8
"""Sequences of a report that are drawn, and that are gone on from or rebuilt."""
_CANDIDATES = 500
"""Sequences among which a report looks for such as differ."""
_TEST = "test"

Writer = Callable[[Path, Sequence[Piece], Loaded, Store], Iterator[Path]]
"""Writes pieces into a folder that is there, and yields the files."""


def write(out: Path, made: Sequence[Piece], loaded: Loaded, store: Store) -> list[Path]:
    """Write all pieces into the folder `out`; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    return list(_WRITERS[store.kind.name](out, made, loaded, store))


def section(out: Path, part: str, loaded: Loaded, store: Store, seed: int) -> Iterator[str]:
    """Write what a report shows of a network's own into `out`/samples/`part`; yield Markdown with links from `out`.

    Raises:
        EvaluationError: if the test split has too few sequences.
    """
    if store.kind == PCM16:
        yield from _speech(out, part, loaded, store, seed)
        return
    if store.kind.has_vocabulary:
        yield from _vocabulary(store)
    for title, text, request in _requests(loaded, store, seed):
        made = draw_samples.pieces(loaded, store, request)
        yield f"**{title}.** {text}"
        for path in write(out / "samples" / part / request.what, made, loaded, store):
            yield _embedded(path, path.relative_to(out).as_posix(), title)


def text(piece: Piece, words: Sequence[str]) -> str:
    """Return a sentence up to its `</s>`."""
    return " ".join(words[token] for token in itertools.takewhile(lambda token: token != END, piece.values_TX.tolist()))


def _sound(out: Path, made: Sequence[Piece], loaded: Loaded, store: Store) -> Iterator[Path]:
    """WAV files, and pictures of a few each."""
    units = loaded.manifest.normalisation
    sounds = [
        audio.Sound(piece.name, piece.title, "", generate.waveforms(piece.values_TX[:, None], units)[0])
        for piece in made
    ]
    yield from audio.write(out, sounds, store.sample_rate)
    for number, first in enumerate(range(0, len(sounds), _COLUMNS_OF_SOUND)):
        path = out / f"picture-{number}.png"
        shown = sounds[first : first + _COLUMNS_OF_SOUND]
        figures.speech(path, {sound.title: sound.wave for sound in shown}, store.sample_rate)
        yield path


def _images(out: Path, made: Sequence[Piece], loaded: Loaded, store: Store) -> Iterator[Path]:
    """A grid of binary images of 28 by 28 pixels: given pixels are blue, those that a piece has not are grey."""
    rows = [list(row) for _, row in itertools.groupby(made, key=lambda piece: piece.row)]
    columns = max(len(row) for row in rows)
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(0.75 * columns, 0.95 * len(rows)), dpi=200, squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, line in zip(rows, grid, strict=True):
        for piece, axes in zip(row, line, strict=False):
            colours = np.full((_SIDE * _SIDE, 3), 0.85)
            values = piece.values_TX.flatten().numpy()[: len(colours), None]
            colours[: len(values)] = 1 - values
            colours[: piece.given] = 1 - values[: piece.given] * (1 - np.array(to_rgb(figures.COLOURS[0])))
            axes.imshow(colours.reshape(_SIDE, _SIDE, 3), interpolation="nearest")
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="#BBBBBB", linewidth=0.4)
            axes.set_title(piece.title, fontsize=5, pad=2)
    path = out / "images.png"
    with atomic_io.replacing(path) as fresh:
        figure.savefig(fresh, format="png")
    plt.close(figure)
    yield path


def _sentences(out: Path, made: Sequence[Piece], loaded: Loaded, store: Store) -> Iterator[Path]:
    """A line of text for each sentence, after its title."""
    path, words = out / "sentences.txt", store.vocabulary()
    width = max(14, *(len(piece.title) for piece in made))
    atomic_io.write(path, "".join(f"{piece.title:<{width}} {text(piece, words)}\n" for piece in made))
    yield path


_WRITERS: dict[str, Writer] = {PCM16.name: _sound, BITS.name: _images, TOKENS.name: _sentences}


def _speech(out: Path, part: str, loaded: Loaded, store: Store, seed: int) -> Iterator[str]:
    """One utterance as it was recorded and rebuilt, and as much that is drawn: each a sound and its picture."""
    sounds = audio.speech(loaded, store, _TEST, seed)
    waves = [sound.wave for sound in sounds]
    rows = []
    for sound, file in zip(sounds, audio.write(out / "samples" / part, sounds, store.sample_rate), strict=True):
        picture = file.with_suffix(".png")
        figures.speech(picture, {sound.title: sound.wave}, store.sample_rate, beside=waves)
        heard, seen = (path.relative_to(out).as_posix() for path in (file, picture))
        length = f"{len(sound.wave) / store.sample_rate:.2f}"
        rows.append((f"![Waveform and spectrogram]({seen})", f"[{sound.title}]({heard})", sound.what, length,
                     f"{sound.clipped_percent:.2g} %"))  # fmt: skip
    yield table(("", "sound", "what it is", "seconds", "clipped"), rows)


def _vocabulary(store: Store) -> Iterator[str]:
    """The words that are known, and how much of each split they cover."""
    rows = []
    for name, split in store.manifest.splits.items():
        unknown = 100 * unknown_words(store, name) / split.samples
        mean = split.samples / split.recordings
        rows.append((name, f"{split.recordings:,}", f"{split.samples:,}", f"{mean:.1f}", f"{unknown:.2f} %"))
    yield f"{len(store.vocabulary()):,} words are known, <pad>, <s>, </s> and <unk> among them."
    yield table(("split", "sentences", "words", "words a sentence", "of them <unk>"), rows)
    yield (
        "A word that is not known is scored as <unk>, and each sentence's end as a word: perplexities compare only "
        "under the same vocabulary. Below, <unk> is left out of what the network writes."
    )


def _requests(loaded: Loaded, store: Store, seed: int) -> Iterator[tuple[str, str, Request]]:
    """Yield what a report shows: a title, what it is, and what to ask for."""
    data, kind = loaded.config.data, store.kind
    shown: list[tuple[What, str, str]] = [
        ("samples", "Drawn", f"Each {kind.frame} drawn and fed back."),
        ("continuations", "Going on", "Each begins as an original of the test split does; the rest is drawn."),
    ]
    if loaded.model.has_latents:
        shown[0] = ("samples", "Drawn", f"z from the prior, each {kind.frame} drawn given z and fed back.")
        given = f"Each {kind.frame}'s likeliest value, given the true ones before it and z from the posterior's mean."
        shown.insert(1, ("reconstructions", "Rebuilt", given))
        mixed = "Posterior samples of two originals, mixed step by step with the second's weight beside each, decoded "
        shown.append(("interpolation", "Between two", f"{mixed}by the likeliest {kind.frame} and by drawing."))
    for what, title, explanation in shown:
        prefix, new = draw_samples.usual_frames(store, data, what)
        chosen = _different(loaded, store, _COMPARED, at_least=prefix)
        if len(chosen) < 2:
            raise EvaluationError(f"the {_TEST} split has fewer than 2 sequences of {prefix} {kind.frame}s or more")
        request = Request(
            what=what,
            split=_TEST,
            num=_DRAWN if what == "samples" else len(chosen),
            frames=new,
            prefix_frames=prefix,
            between=(chosen[0], chosen[1]) if what == "interpolation" else None,
            chosen=tuple(chosen),
            with_unknown=False,
            seed=seed,
        )
        yield title, explanation, request


def _different(loaded: Loaded, store: Store, num: int, at_least: int) -> list[int]:
    """Return sequences of the test split that differ: of all labels in turn, or of rows of one width those far apart.

    Without labels and of several widths they are the first ones. There may be fewer than `num`.
    """
    data = loaded.config.data
    sequences = sequences_of(store, data, _TEST, data.eval_view).all()
    ids = np.flatnonzero(sequences.frames >= at_least)
    ids = ids[:: -(-len(ids) // _CANDIDATES)] if len(ids) else ids  # over the whole split, which may be sorted
    labels = store.labels(_TEST)
    if labels is not None:
        own = labels[sequences.recordings[ids]].tolist()
        place = [own[:i].count(label) for i, label in enumerate(own)]  # among those of the same label
        ids = ids[np.lexsort((own, place))]
    elif store.kind.width is not None:
        rows = store.gather(_TEST, sequences.recordings[ids], sequences.starts[ids], store.kind.width)
        ids = ids[_far_apart(rows.astype(np.float32), num)]
    found: list[int] = ids[:num].tolist()
    return found


def _far_apart(rows_NS: NDArray[np.float32], num: int) -> list[int]:
    """Return `num` rows, each the one farthest from those before it (Gonzalez, 1985); the first is row 0."""
    chosen = [0]
    nearest_N = np.full(len(rows_NS), np.inf, np.float32)
    while len(chosen) < min(num, len(rows_NS)):
        nearest_N = np.minimum(nearest_N, np.square(rows_NS - rows_NS[chosen[-1]]).sum(1))
        chosen.append(int(nearest_N.argmax()))
    return chosen


def _embedded(path: Path, link: str, title: str) -> str:
    """Return what shows a file within a page: a picture, the text itself, or a link to hear it."""
    if path.suffix == ".txt":
        return f"```\n{path.read_text()}```"
    return f"{'!' * (path.suffix == '.png')}[{title}]({link})"
