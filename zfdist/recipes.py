"""Named complete configs. A recipe is a function, so that it is typed, greppable and easy to vary.

Sizes, learning rates and batch sizes are the paper's. What it does not print (clipping, Adam's epsilon) is from its
authors' code, and for `mnist` the sizes of z and the small nets are those of `timit`. KL annealing is on for speech
alone: the paper finds that it hurts on MNIST, and its Table 2 is without. Numbers of updates are ours, as the paper
prints none: for `timit` 100 passes over the data, fewer than a log of its authors shows (113, some 95,000 updates).
"""

from collections.abc import Callable

from zfdist.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    KLConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


def demo() -> Config:
    """A small network for the speech sample that ships: a minute on one CPU core."""
    return Config(
        # The sample has digital silence: a lower floor lets the density grow without bound there, and then miss onsets.
        model=ModelConfig(hidden=128, z_dim=32, mlp_dim=128, sigma_floor=0.1),
        loss=LossConfig(alpha=0.05, beta=0.05, kl=KLConfig(start=0.2, increment=2e-3)),
        data=DataConfig(root="data/demo", global_batch=8, window_batches=16),
        optim=OptimConfig(learning_rate=3e-3),
        checkpoint=CheckpointConfig(every_steps=100),
        train=TrainConfig(steps=1200, log_every=20, validate_every=100),
    )


def timit() -> Config:
    """TIMIT at the paper's size: 40-frame segments for training, whole utterances for the bound."""
    return Config(
        model=ModelConfig(hidden=1024, z_dim=256, mlp_dim=512),
        data=DataConfig(root="data/timit", global_batch=32),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(steps=84_200, log_every=50, validate_every=842),
        checkpoint=CheckpointConfig(every_steps=842),
    )


def blizzard() -> Config:
    """Blizzard at the paper's size: sequences of half a second throughout."""
    return Config(
        model=ModelConfig(hidden=2048, z_dim=256, mlp_dim=1024),
        data=DataConfig(root="data/blizzard", global_batch=128, eval_view="segments"),
        optim=OptimConfig(learning_rate=3e-4),
        train=TrainConfig(steps=160_000, log_every=50, validate_every=2000),
        checkpoint=CheckpointConfig(every_steps=2000),
    )


def mnist() -> Config:
    """Binarised MNIST at the paper's size, a pixel at a time (sizes of z and the small nets are TIMIT's)."""
    return Config(
        model=ModelConfig(density="bernoulli", hidden=1024, z_dim=256, mlp_dim=512),
        loss=LossConfig(kl=KLConfig(kind="constant")),
        data=DataConfig(
            root="data/mnist",
            frame_samples=1,
            train_view="utterances",
            eval_view="utterances",
            global_batch=32,
            eval_batch=100,
        ),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(steps=156_250, log_every=50, validate_every=1562),
        checkpoint=CheckpointConfig(every_steps=1562),
    )


def imdb() -> Config:
    """Sentences of reviews at the paper's size: fewer than 16 words, of a vocabulary of 16,000."""
    return Config(
        model=ModelConfig(density="categorical", hidden=500, z_dim=64, mlp_dim=500, embed_dim=300),
        loss=LossConfig(kl=KLConfig(kind="constant")),
        data=DataConfig(
            root="data/text",
            frame_samples=1,
            train_view="utterances",
            eval_view="utterances",
            global_batch=32,
            eval_batch=128,
        ),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(steps=100_000, log_every=50, validate_every=1000),
        checkpoint=CheckpointConfig(every_steps=1000),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "timit": timit,
    "blizzard": blizzard,
    "mnist": mnist,
    "imdb": imdb,
}
