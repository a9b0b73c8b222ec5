"""The rules that cut text into sentences and words, and the vocabulary."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist.data.kinds import NO_LABEL, SPECIALS, UNKNOWN
from zfdist.data.sources.convert import named
from zfdist.data.sources.inputs import split_of_key
from zfdist.data.sources.rows import Labels
from zfdist.data.sources.words import Vocabulary, sentences, tokenised


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("It's GOOD, isn't it?!", ["it's", "good", ",", "isn't", "it", "?", "!"]),
        ("A well-made film... (1999)", ["a", "well-made", "film", "...", "(", "1999", ")"]),
        (
            "na\u00efve \u201cquote\u201d rock'n'roll 3.5",
            ["na\u00efve", "\u201c", "quote", "\u201d", "rock'n'roll", "3", ".", "5"],
        ),
        ("snake_case - dash", ["snake", "_", "case", "-", "dash"]),
        ("  ", []),
    ],
)
def test_words_version_1(sentence: str, words: list[str]) -> None:
    assert tokenised(sentence, "words") == words


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("One here. Two there!  Three?", ["One here.", "Two there!", "Three?"]),
        ("One.<br /><br />Two<BR>three", ["One.", "Two", "three"]),
        ('He said "no." Then he left.', ['He said "no.', "Then he left."]),
        ("It cost 3.5 million", ["It cost 3.5 million"]),
    ],
)
def test_marks_version_1(line: str, parts: list[str]) -> None:
    assert sentences(line, "marks") == parts and sentences(line, "lines") == [line]


@given(st.text())
@settings(deadline=None)
def test_words_lose_nothing_but_blanks_and_case(sentence: str) -> None:
    assert "".join(tokenised(sentence, "words")) == "".join(sentence.lower().split())
    assert all(not any(c.isspace() for c in word) for word in tokenised(sentence, "blanks"))


@given(st.lists(st.sampled_from(["a", "b", "c", "\U0001f600", "\uff21", *SPECIALS])), st.integers(1, 6), st.randoms())
@settings(deadline=None)
def test_the_vocabulary_does_not_depend_on_the_order_of_the_text(words: list[str], size: int, rng) -> None:  # type: ignore[no-untyped-def]
    one = Vocabulary.of(Counter(words), size)
    rng.shuffle(words)
    assert one.words == Vocabulary.of(Counter(words), size).words and len(one.words) <= size
    counts = [words.count(word) for word in one.words]
    assert counts == sorted(counts, reverse=True) and not set(one.words) & set(SPECIALS)
    assert all(a < b for a, b, m, n in zip(one.words, one.words[1:], counts, counts[1:], strict=False) if m == n)
    known = [i for word in words for i in [int(one.ids([word])[0])]]
    assert all((i == UNKNOWN) == (word not in one.words) for word, i in zip(words, known, strict=True))


@given(st.text(), st.floats(0, 40), st.floats(0, 40), st.floats(0, 9), st.floats(0, 9))
@settings(deadline=None)
def test_larger_shares_only_take_from_train(key: str, valid: float, test: float, more: float, less: float) -> None:
    before, after = split_of_key(key, valid, test), split_of_key(key, valid + more, test)
    assert before == after or (before, after) == ("train", "valid")
    assert split_of_key(key, valid, test) == before
    assert (split_of_key(key, valid, max(0.0, test - less)) == "test") <= (before == "test")


@pytest.mark.parametrize("value", ["0", '"0"', " '0' ", 0, 0.0, False, "neg", '"Negative"'])
def test_a_label_is_the_same_however_it_is_written(value: object) -> None:
    assert Labels().of(value, "row", "--label-field") == 0


@pytest.mark.parametrize("value", [None, "", '""', "  ", float("nan")])
def test_nothing_is_no_label(value: object) -> None:
    labels = Labels()
    assert labels.of(value, "row", "--label-field") == NO_LABEL and labels.unlabelled == 1


def test_what_is_said_of_many_inputs_is_said_once() -> None:
    said = {f"{i}.wav": "empty file" for i in range(50)} | {"x.wav": "cut short"}
    assert named(said) == "  0.wav, 1.wav, 2.wav and 47 more: empty file\n  x.wav: cut short"
    assert named({f"{i}": f"reason {i // 2}" for i in range(120)}).splitlines()[-1] == "  and 20 more"
