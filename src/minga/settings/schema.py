"""The settings of a run: frozen dataclasses with defaults and ranges.

The ps resolves one :class:`Settings` (defaults < ``train.yaml`` < environment < flags) and
hands it to every worker that joins, so only the ps's PC needs an edited file. The range of a
value is in its annotation; :mod:`minga.settings.fields` reads it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

Codec = Literal["int8", "bf16", "none"]
DataFormat = Literal["auto", "folders", "tiny-imagenet", "webdataset"]
Augment = Literal["none", "crop-flip"]
InFlight = Literal["train", "wait"]
Mode = Literal["async", "sync", "safe"]
Schedule = Literal["cosine", "constant"]
Stem = Literal["auto", "stock", "small"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The range of a number, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


ABOVE_0 = Rule("above 0", lambda number: number > 0)
FROM_0 = Rule("from 0 up", lambda number: number >= 0)
FROM_1 = Rule("from 1 up", lambda number: number >= 1)
SHARE = Rule("from 0 to below 1", lambda number: 0 <= number < 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network."""

    name: str = "resnet18"
    """Any torchvision classification model, or ``small-cnn``."""
    stem: Stem = "auto"
    """First layers: ``small`` is 3x3, stride 1, no max-pool; ``auto`` takes it up to 64 px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The images on each worker, and their preprocessing."""

    path: str = "data/tiny-imagenet-200"
    """Training data: a folder (with train/ and val/) or WebDataset shards (folder, braces, URL)."""
    val_path: str | None = None
    """Validation data, if they are not beside the training data."""
    format: DataFormat = "auto"
    """Layout of ``path``; ``auto`` detects it."""
    image_size: Annotated[int | None, FROM_1] = None
    """Side in pixels; none keeps the size of images up to 64 px and takes 224 above."""
    augment: Augment = "crop-flip"
    """Training augmentation: padded random crop and horizontal flip, or none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The length of the training."""

    epochs: Annotated[int, FROM_1] = 30
    """Passes over the training set, all workers together."""
    batch_size: Annotated[int, FROM_1] = 128
    """Images per local optimizer step; a worker may have its own."""
    seed: Annotated[int, FROM_0] = 0
    """Seeds initial weights, the epochs' permutations and augmentation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The worker's Nesterov SGD and its schedule."""

    lr: Annotated[float, ABOVE_0] = 0.1
    """Learning rate of one worker at batch 128; scaled by batch/128 and sqrt(workers expected)."""
    schedule: Schedule = "cosine"
    """``cosine``: warm-up, then to 0 by the last sample; ``constant``: no scale, no warm-up."""
    warmup_epochs: Annotated[float, FROM_0] = 5.0
    """Epochs of linear warm-up; at most a fifth of the run."""
    momentum: Annotated[float, SHARE] = 0.9
    """Nesterov momentum, on the worker; there is none at the ps."""
    weight_decay: Annotated[float, FROM_0] = 5e-4
    """L2 penalty; never on BatchNorm and biases."""
    clip_norm: Annotated[float | None, ABOVE_0] = 5.0
    """Gradient norm limit before momentum; none switches it off."""
    label_smoothing: Annotated[float, SHARE] = 0.1
    """Share of the target spread over all classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeConfig:
    """What is exchanged, and how often."""

    mode: Mode = "async"
    """``async``; ``sync``: rounds that wait for all pushes; ``safe``: for all but one."""
    aggregate: Annotated[int | None, FROM_1] = None
    """Pushes in one round of mode sync (K); none takes all active workers."""
    local_steps: Annotated[int | None, FROM_1] = None
    """Local optimizer steps between two exchanges (H); none balances compute and exchange."""
    in_flight: InFlight = "train"
    """A worker trains, or waits, while a push and its reply are in flight."""
    codec: Codec = "int8"
    """Encoding of pushes and replies, both with error feedback."""
    gain: Annotated[float, ABOVE_0] = 1.0
    """Kappa: a push moves the weights by gain / active workers."""
    max_staleness: Annotated[int | None, FROM_0] = None
    """Pushes staler than this are refused; none takes max(64, 8 x active workers)."""


MODE_IMPLIES: dict[str, dict[str, str]] = {
    "async": {},
    "sync": {"exchange.in_flight": "wait"},
    "safe": {"exchange.in_flight": "wait", "exchange.codec": "bf16"},
}
"""Settings that a mode fixes, overriding all other sources."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerConfig:
    """How samples are leased to workers."""

    chunk: Annotated[int | None, FROM_1] = None
    """Samples per lease; none takes about 1/100 of the set, at least four batches."""
    lease_s: Annotated[float, ABOVE_0] = 60.0
    """Seconds without progress after which a lease goes to another worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When and how accuracy is measured."""

    every_epochs: Annotated[float, ABOVE_0] = 1.0
    """Epochs between two validations; the last one always runs."""
    recalibration_images: Annotated[int, FROM_0] = 25_600
    """Training images for recomputing BatchNorm statistics before an evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often a checkpoint is written."""

    every_s: Annotated[float, ABOVE_0] = 30.0
    """Seconds between two writes of ``last.pth``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of a run; JSON-able through :meth:`to_dict` and :meth:`from_dict`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Settings:
        """Rebuild what :meth:`to_dict` gave. Raises TypeError on an unknown key."""
        return cls(
            model=ModelConfig(**plain.get("model", {})),
            data=DataConfig(**plain.get("data", {})),
            train=TrainConfig(**plain.get("train", {})),
            optimizer=OptimizerConfig(**plain.get("optimizer", {})),
            exchange=ExchangeConfig(**plain.get("exchange", {})),
            ledger=LedgerConfig(**plain.get("ledger", {})),
            evaluation=EvaluationConfig(**plain.get("evaluation", {})),
            checkpoint=CheckpointConfig(**plain.get("checkpoint", {})),
        )
