"""Made-up sentences: common words, rare ones, and one that is spelled like a special one."""

import random

WORDS = ["the", "film", "is", "good", "bad", "very", "not", "a", "plot", "!", "na\u00efve", "<unk>"]


def some_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to 19 words, the first ones of WORDS often and rare ones of their own."""
    rng = random.Random(seed)

    def word() -> str:
        return rng.choice(WORDS[: rng.randint(1, len(WORDS))]) if rng.random() < 0.95 else f"rare{rng.randint(0, 50)}"

    return [" ".join(word() for _ in range(rng.randint(3, 19))) for _ in range(count)]
