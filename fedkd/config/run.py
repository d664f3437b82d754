"""A run file: one pydantic model for the whole file."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Discriminator, Field, Tag

from .data import DataConfig
from .tables import (
    VALUE_LIMIT,
    Count,
    Fraction,
    Kind,
    Limits,
    Metric,
    NamedTable,
    NotNegative,
    Positive,
    Probability,
    Table,
    Whole,
)


class Sgd(Table):
    """Stochastic gradient descent, as torch.optim.SGD."""

    name: Literal["sgd"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Adam(Table):
    """Adam, or AdamW with decoupled weight decay, as in torch.optim."""

    name: Literal["adam", "adamw"]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class TorchOptimizer(NamedTable):
    """Any other optimiser of torch.optim, by its name in small letters, with its own options."""

    lr: Annotated[float, Field(gt=0)]


def _kind_of(table: Any) -> str:
    """Return which class a table of an optimiser is for: those of its own have faster code for these options only."""
    if isinstance(table, Sgd | Adam):
        return "sgd" if isinstance(table, Sgd) else "adam"
    if isinstance(table, dict):
        name, keys = table.get("name"), table.keys()
        if name == "sgd" and keys <= Sgd.model_fields.keys():
            return "sgd"
        if name in ("adam", "adamw") and keys <= Adam.model_fields.keys():
            return "adam"
    return "torch"


AnyOptimizer = Annotated[
    Annotated[Sgd, Tag("sgd")] | Annotated[Adam, Tag("adam")] | Annotated[TorchOptimizer, Tag("torch")],
    Discriminator(_kind_of),
]


class ScheduleConfig(Table):
    """`train.schedule`: the learning rate as a share of the optimiser's `lr`, by round, or by step within each round.

    It rises in `warmup` equal parts to the whole, then stays (constant), falls along half a cosine to `floor` (cosine),
    or is multiplied by `factor` after each `every` rounds or steps (step).
    """

    name: Literal["constant", "cosine", "step"]
    by: Literal["round", "step"] = "round"
    warmup: Whole = 0
    rounds: Count | None = None  # of a cosine by round: its length; by default the run's rounds
    floor: Annotated[float, Field(ge=0, lt=1)] | None = None  # by default 0
    every: Count | None = None
    factor: Fraction | None = None  # by default 0.1

    @pydantic.model_validator(mode="after")
    def _whole_form(self) -> ScheduleConfig:
        if self.name == "constant" and not self.warmup:
            raise ValueError("a constant schedule without warmup changes nothing; set warmup, or remove the schedule")
        if (self.name == "step") != (self.every is not None):
            raise ValueError("every belongs to name = 'step', which needs it")
        for key, home in (("rounds", "cosine"), ("floor", "cosine"), ("factor", "step")):
            if self.name != home and getattr(self, key) is not None:
                raise ValueError(f"{key} belongs to name = {home!r}")
        if self.rounds is not None and self.by == "step":
            raise ValueError("rounds belongs to by = 'round'; by step, a cosine takes the steps of each training")
        return self

    def share(self, number: int, total: int) -> float:
        """Return the share of the learning rate in round or step `number` of `total`; the first is 0."""
        if number < self.warmup:
            return (number + 1) / self.warmup
        number, total = number - self.warmup, total - self.warmup
        if self.name == "step":
            return float((self.factor or 0.1) ** (number // (self.every or 1)))
        if self.name == "cosine":
            passed = min(number / total, 1.0) if total > 0 else 1.0
            floor = self.floor or 0.0
            return floor + (1 - floor) * (1 + math.cos(math.pi * passed)) / 2
        return 1.0


class TrainConfig(Table):
    """`[train]`: local training. A client starts each round with a new optimiser."""

    epochs: Count = 1
    steps: Count | None = None  # train exactly this number of batches instead of whole epochs
    batch_size: Count = 32
    drop_last: bool = False  # leave out the last batch of an epoch if it is smaller
    continue_epoch: bool = False  # an epoch spans rounds: a node goes on where its last round stopped; needs `steps`
    loss: Literal["cross_entropy", "probability"] = "cross_entropy"  # of classes; probability: minimise 1 - p_y
    optimizer: AnyOptimizer = Sgd(name="sgd", lr=0.05)
    lr_decay: Fraction = 1.0  # the learning rate of round t is lr * lr_decay^(t - 1)
    # participation: t is the last round in which the node has trained; 1 in its first
    lr_decay_by: Literal["round", "participation"] = "round"
    # running statistics: averaged like weights; local: of each node; reset: averaged, but training starts with fresh
    batch_norm: Literal["averaged", "local", "reset"] = "averaged"
    schedule: ScheduleConfig | None = None  # a further factor of the learning rate
    clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of a step's gradient, without weight decay
    class_weights: Literal["none", "balanced"] = "none"  # balanced: a class weighs n / (classes x its samples)
    sampling: Literal["each", "balanced"] = "each"  # balanced: draw samples so that all classes are equally likely
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # tf32: of products on a GPU; 16: of the forward pass

    @pydantic.model_validator(mode="after")
    def _balanced_once(self) -> TrainConfig:
        if self.class_weights == self.sampling == "balanced":
            raise ValueError("class_weights and sampling both balance classes, together too much; remove one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _whole_batches(self) -> TrainConfig:
        if self.continue_epoch and (self.steps is None or not self.drop_last):
            raise ValueError(
                "continue_epoch = true needs steps (a round of whole epochs has nothing to continue) and "
                "drop_last = true (all its batches are whole)"
            )
        if self.continue_epoch and self.sampling == "balanced":
            raise ValueError(
                "continue_epoch and sampling = 'balanced': drawn samples have no order; remove one of them"
            )
        if self.loss != "cross_entropy" and self.class_weights == "balanced":
            raise ValueError("class_weights are of the cross-entropy; remove them, or loss")
        if self.lr_decay_by == "participation" and self.schedule is not None and self.schedule.by == "round":
            raise ValueError("lr_decay_by = 'participation' is not for a schedule by round; remove one of them")
        return self

    def decay(self, number: int) -> float:
        """Return the factor for the learning rates of a round."""
        before = max(number - 1, 0)
        factor = self.lr_decay**before
        if self.schedule is None or self.schedule.by == "step":
            return factor
        return factor * self.schedule.share(before, self.schedule.rounds or 0)

    def in_round(self, number: int) -> TrainConfig:
        """Return the settings with the learning rate of a round."""
        if self.lr_decay == 1.0 and self.schedule is None:
            return self
        rate = self.optimizer.lr * self.decay(number)
        return self.model_copy(update={"optimizer": self.optimizer.model_copy(update={"lr": rate})})

    @property
    def within_round(self) -> ScheduleConfig | None:
        """Return the schedule of the steps of a round's training, if there is one."""
        return self.schedule if self.schedule is not None and self.schedule.by == "step" else None

    def batches(self, images: int) -> int:
        """Return the number of steps of local training on this number of images."""
        return self.steps or self.epochs * len(batch_sizes(images, self.batch_size, self.drop_last))


def batch_sizes(count: int, size: int, drop_last: bool = False) -> list[int]:
    """Return the sizes of the batches of one epoch over `count` images.

    The last batch may be smaller, or with `drop_last` is left out. If one single image would be left over, it joins the
    batch before: batch norm has no statistics of one image.
    """
    whole, left = divmod(count, size)
    if drop_last:
        return [size] * whole
    if left == 1 and whole:
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + ([left] if left else [])


class EvaluateConfig(Table):
    """`[evaluate]`: measure after every `every` rounds, and after the last, on this fraction of the nodes."""

    every: Count = 5
    global_test: bool = True  # also on the global test set: the server's model, and each node's own
    mean_over: Literal["nodes", "samples"] = "nodes"  # samples: a node's metric counts as often as it has test samples
    fraction: Fraction | None = None  # by default all nodes, but at most 100


class FaultsConfig(Table):
    """`[faults]`: the faults of a simulation and their probabilities, drawn from the run's seed."""

    dropout: Probability = 0.0  # a node is absent for a whole round
    partial_work: Probability = 0.0  # a node does fewer epochs of local training in a round: 1 .. epochs - 1
    straggler: Probability = 0.0  # a node answers a request late, by simulated seconds
    delay: Annotated[float, Field(gt=0)] = 60.0  # the mean of these seconds (exponential); more than `timeout` fails
    error: Probability = 0.0  # a client raises an error before it does any work
    corrupted: Probability = 0.0  # a reply arrives with a NaN, with another shape, or with a header of a huge array
    lost: Probability = 0.0  # a client does its work, but its reply never arrives


class CheckpointConfig(Table):
    """`[checkpoint]`: write one after every `every` rounds, and after the last; only the newest `keep` are kept."""

    every: Count = 10
    keep: Count = 2  # if the newest one is damaged, the one before is used
    # the metric whose best round is kept too; auto: the main one of the nodes' models, or of the server's
    best: Literal["auto"] | Metric | None = None


class StopConfig(Table):
    """`[stop]`: end the run early if a metric has not improved in `patience` measured rounds, one after another, or as
    soon as it has reached `target`.
    """

    metric: Metric
    target: float | None = None
    patience: Count | None = None  # by default 5, but without a limit if there is a target
    change: NotNegative = 0.0  # an improvement is more than this

    @property
    def limit(self) -> int | None:
        """Return after how many rounds without improvement the run ends, if it does."""
        return 5 if self.patience is None and self.target is None else self.patience


class ModelConfig(Table):
    """`[model]`: one architecture for all nodes, or several that the nodes have in turn; with the builder's options."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
    name: str | None = None
    names: Annotated[list[NamedTable], Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> ModelConfig:
        if (self.name is None) == (self.names is None):
            raise ValueError("set either name (one architecture) or names (several)")
        if self.names is not None and self.model_extra:
            key = next(iter(self.model_extra))
            raise ValueError(
                f"{key} is an option of one architecture: write names = [{{ name = ..., {key} = ... }}, ...]"
            )
        return self

    @property
    def architectures(self) -> list[NamedTable]:
        """Return the architectures; node i has number i modulo their count."""
        return list(self.names or [NamedTable(name=str(self.name), **(self.model_extra or {}))])


class Config(Table):
    """The whole config of a run."""

    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Count = 10
    cohort: Count | None = None  # nodes per round, sampled again in each round; by default all nodes
    min_replies: Count = 1  # if a request gets fewer good replies than this, the run ends with an error
    timeout: Annotated[float, Field(gt=0)] | None = None  # seconds to wait for the replies to one request
    payload_limit: Count = 2**30  # the largest number of bytes of one message
    payload_limits: dict[Kind, Count] = Field(default_factory=dict)  # the same for one kind of arrays in a message
    value_limit: Annotated[Positive, Field(le=1e30)] = VALUE_LIMIT  # the largest absolute value in a node's arrays
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    strategy: NamedTable
    engine: NamedTable = NamedTable(name="inline")
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopConfig | None = None
    faults: FaultsConfig = FaultsConfig()
    trackers: list[NamedTable] = Field(default_factory=list)  # services that get the record of each round

    @pydantic.model_validator(mode="before")
    @classmethod
    def _length_of_cosine(cls, value: Any) -> Any:
        """Write the run's rounds into a cosine's length: it stays as it is if the run later goes on for longer."""
        train = value.get("train") if isinstance(value, dict) else None
        schedule = train.get("schedule") if isinstance(train, dict) else None
        if not isinstance(train, dict) or not isinstance(schedule, dict) or schedule.get("name") != "cosine":
            return value
        if schedule.get("by", "round") != "round" or schedule.get("rounds") is not None:
            return value
        length = value.get("rounds", cls.model_fields["rounds"].default)
        return {**value, "train": {**train, "schedule": {**schedule, "rounds": length}}}

    @pydantic.model_validator(mode="after")
    def _simulated_faults(self) -> Config:
        if self.data.sites is not None and self.faults != FaultsConfig():
            raise ValueError("faults are only possible in a simulation, but data.sites are real sites; remove faults")
        if self.faults.partial_work and (self.train.epochs < 2 or self.train.steps is not None):
            raise ValueError(
                "faults.partial_work: a node does fewer epochs than train.epochs, but at least 1; set train.epochs to "
                "2 or more, and remove train.steps"
            )
        if self.data.sites is not None and self.evaluate.mean_over == "samples":
            raise ValueError(
                "evaluate.mean_over = 'samples': the server does not know how many test samples a site has"
            )
        return self

    @property
    def limits(self) -> Limits:
        """Return the largest number of bytes of one message."""
        kinds: dict[str, int] = {kind: limit for kind, limit in self.payload_limits.items()}
        return Limits(self.payload_limit, kinds, self.value_limit)
