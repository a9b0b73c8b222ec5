"""Every knob of a run, once: its name, default, range and unit.

A `Config` is a tree of frozen dataclasses, one section per part of the system. What is saved is what ran:
nothing writes to a config after it was made; `with_values` makes another. Sections check their own ranges,
so a bad value is refused where it enters, with the name of the flag.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from zfdist.config_base import Between, ConfigError, Section, build, flatten, kind_name, nest, unknown_name
from zfdist.model_config import Count, CountOrZero, ModelConfig

__all__ = ["Config", "ConfigError", "ModelConfig", "parse_value", "unknown_name"]


Weight = Annotated[float, Between(0.0, 1000.0)]


@dataclass(frozen=True, kw_only=True)
class KLConfig(Section):
    """The weight of the KL term over optimizer steps, and its floor."""

    PATH: ClassVar[str] = "loss.kl"

    kind: Literal["constant", "linear", "cyclical"] = "linear"
    """constant: 1 throughout. linear: start + increment * step, up to 1. cyclical: linear, anew each period."""
    start: Annotated[float, Between(0.0, 1.0)] = 0.2
    """Weight at step 0 (linear) or at the start of each period (cyclical)."""
    increment: Annotated[float, Between(0.0, 1.0)] = 5e-5
    """Added at each optimizer step until the weight is 1."""
    period_steps: Count = 20_000
    """Length of a period (cyclical only)."""
    free_nats_per_frame: Annotated[float, Between(0.0, 1e6)] = 0.0
    """KL of a time step below which it costs nothing in training; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """Weights of the objective, equation (10)."""

    PATH: ClassVar[str] = "loss"

    alpha: Weight = 0.0
    """Weight of the auxiliary cost log p(b_t | z_t)."""
    alpha_ramp_steps: CountOrZero = 0
    """Optimizer steps over which alpha rises linearly from 0; 0 for at once."""
    beta: Weight = 0.0
    """Weight of the backward prediction cost log p(x_t | b_t)."""
    beta_ramp_steps: CountOrZero = 0
    """Optimizer steps over which beta rises linearly from 0; 0 for at once."""
    label: Weight = 1.0
    """Weight of the label head's log-probability of a sequence's label (model.label_classes > 0 only)."""
    kl: KLConfig = field(default_factory=KLConfig)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which sequences, in which form and how many at a time."""

    PATH: ClassVar[str] = "data"

    root: str = "data/speech"
    """Folder that `zfdist prepare` wrote, or where it was copied to in a store: s3://BUCKET/PREFIX, gs://..."""
    cache: str = "~/.cache/zfdist"
    """Folder in which every machine keeps its copies of what is in a store: data and runs."""
    frame_samples: Count = 200
    """Samples of a frame x_t."""
    segment_frames: Count = 40
    """Scored frames of a training segment; a segment reads one frame more, the first input."""
    train_view: Literal["segments", "utterances"] = "segments"
    """What a training sequence is: a segment, or a whole recording."""
    eval_view: Literal["segments", "utterances"] = "utterances"
    """What a validation or test sequence is."""
    global_batch: Count = 32
    """Sequences of an optimizer step over all workers."""
    eval_batch: Count = 32
    """Sequences of an evaluation batch on one worker."""
    window_batches: Count = 64
    """Global batches that are sorted by length together; more means less padding, less mixing."""
    prefetch_batches: Annotated[int, Between(0, 64)] = 3
    """Batches prepared ahead of the one in use; 0 prepares each when asked."""
    verify: Literal["size", "first_use", "always"] = "first_use"
    """How shards are checked: file size only; hash once per machine; hash at each start."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """Adam (Kingma and Ba, 2015), without weight decay, with clipping by global norm."""

    PATH: ClassVar[str] = "optim"

    learning_rate: Annotated[float, Between(0.0, 10.0)] = 1e-3
    """Step size of Adam."""
    warmup_steps: CountOrZero = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    beta1: Annotated[float, Between(0.0, 0.999999)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Between(0.0, 0.999999)] = 0.999
    """Decay of the second moment."""
    adam_eps: Annotated[float, Between(1e-16, 1.0)] = 1e-5
    """Adam's epsilon."""
    clip_norm: Annotated[float, Between(0.0, 1e9)] = 100.0
    """Largest global norm of the gradient of the per-sequence loss; 0 for no clipping."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Section):
    """How DeepSpeed runs an update."""

    PATH: ClassVar[str] = "engine"

    zero_stage: Annotated[int, Between(0, 3)] = 1
    """ZeRO: 0 replicates, 1 shards the optimizer state, 2 also gradients, 3 also parameters."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """fp32, on a GPU too; tf32: a GPU rounds the operands of products to 10 bits; bf16, fp16: autocast over fp32
    weights, states and densities, with fp16 under a loss scale; auto: bf16 on a GPU, fp32 on a CPU."""
    matmul: Literal["auto", "torch"] = "auto"
    """Float32 products on a CPU: auto takes oneDNN where it is exact (it probes); or as torch."""
    accumulation_steps: Count = 1
    """Micro-batches that a worker's share of the global batch is cut into."""
    max_nonfinite_steps: Count = 20
    """Updates in a row that may be skipped for a non-finite loss or gradient before the run stops."""
    threads_per_worker: CountOrZero = 0
    """CPU threads of a worker; 0: as many of its CPUs as have enough to do."""

    def precision_on(self, device: str) -> str:
        """Return "fp32", "tf32", "bf16" or "fp16": what `precision` means on a "cpu" or "cuda" device.

        Raises:
            ConfigError: if the device cannot compute so.
        """
        if self.precision == "auto":
            return "bf16" if device == "cuda" else "fp32"
        if self.precision == "tf32" and device != "cuda":
            raise ConfigError(
                "engine.precision = tf32: only a GPU rounds so, and this worker has none; use fp32 or auto"
            )
        return self.precision

    def loading(self, saved_stage: int, saved_workers: int, workers: int) -> Literal["native", "converted"] | None:
        """Return how states that were saved at a ZeRO stage are loaded by `workers`; None if they cannot be.

        At the same stage and number bit by bit as they are, and at stage 0, which shards nothing, too; through
        DeepSpeed's universal checkpoint between the stages 1 and 2 and any numbers.
        """
        stages = {saved_stage, self.zero_stage}
        if stages == {0} or (len(stages) == 1 and saved_workers == workers):
            return "native"
        return "converted" if stages <= {1, 2} else None


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """When a checkpoint is written and which are kept."""

    PATH: ClassVar[str] = "checkpoint"

    every_steps: Count = 1000
    """Optimizer steps between checkpoints; the last step, and a validation that is among the best, write one too."""
    keep_last: Annotated[int, Between(1, 1_000_000)] = 2
    """Newest checkpoints that are kept."""
    keep_best: CountOrZero = 1
    """Best validations whose checkpoints are written, whenever they come, and kept as well."""
    keep_every_steps: CountOrZero = 0
    """Keep for good those whose step is a multiple of this; 0 for none."""
    max_failures: Annotated[int, Between(1, 1000)] = 10
    """Failures in a row (to send a file to a store, or for lack of space to write a checkpoint) that stop the run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """How long a run is, and how often it says something."""

    PATH: ClassVar[str] = "train"

    steps: Count = 20_000
    """Optimizer steps of the whole run."""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 1234
    """Root of all randomness: initial weights, order, noise."""
    log_every: Count = 50
    """Optimizer steps between lines of metrics."""
    validate_every: Count = 1000
    """Optimizer steps between validations; the last step always validates."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.engine.accumulation_steps > self.data.global_batch:
            raise ConfigError(
                f"engine.accumulation_steps = {self.engine.accumulation_steps}: must not exceed "
                f"data.global_batch = {self.data.global_batch}"
            )

    def with_values(self, values: Mapping[str, Any]) -> "Config":
        """Return a copy with dotted names replaced, e.g. `{"loss.alpha": 0.01}`.

        Raises ConfigError for an unknown name (with the nearest known one), a wrong type or a value out of range.
        """
        flat = self.flat()
        for name, value in values.items():
            if name not in flat:
                raise ConfigError(unknown_name(name, flat))
            flat[name] = value
        return build(Config, nest(flat), flat)

    def flat(self) -> dict[str, Any]:
        """Return all values by dotted name, e.g. `{"model.hidden": 1024, ...}`."""
        return flatten(dataclasses.asdict(self))

    def to_json(self) -> str:
        """Return the config as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """Read what `to_json` wrote; absent names take their defaults, unknown ones raise ConfigError."""
        try:
            tree = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"config is not JSON: {error}") from None
        if not isinstance(tree, dict):
            raise ConfigError("config is not a JSON object")
        return build(Config, tree, Config().flat())


class Only(NamedTuple):
    """Where a knob says anything: where another one has one of some values; with `unless`, none of them."""

    name: str
    values: tuple[Any, ...]
    unless: bool = False

    def holds(self, value: object) -> bool:
        """Return whether the knob says something beside this value of the other one."""
        return (value in self.values) != self.unless

    def __str__(self) -> str:
        return f"{self.name} is {'not ' * self.unless}{' or '.join(map(str, self.values))}"


ONLY_WHERE: Mapping[str, Only] = {
    "loss.kl.start": Only("loss.kl.kind", ("linear", "cyclical")),
    "loss.kl.increment": Only("loss.kl.kind", ("linear", "cyclical")),
    "loss.kl.period_steps": Only("loss.kl.kind", ("cyclical",)),
    "loss.alpha_ramp_steps": Only("loss.alpha", (0.0,), unless=True),
    "loss.beta_ramp_steps": Only("loss.beta", (0.0,), unless=True),
}
"""Knobs that change nothing beside some values of others: configs that differ in them alone train the same."""


def parse_value(name: str, text: str) -> Any:
    """Turn command-line text into the type of the named knob, e.g. `("loss.alpha", "0.01")` into 0.01.

    Raises ConfigError for an unknown name or a text that is not of that type.
    """
    known = Config().flat()
    if name not in known:
        raise ConfigError(unknown_name(name, known))
    kind = type(known[name])
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{name} = {text!r}: must be {kind_name(kind)}") from None
