"""The run file: one pydantic model for the whole of it, `--set` overrides, and the fully resolved form."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from .errors import InputError
from .registry import explain

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Group = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]  # of differentiable augmentations
GROUPS: tuple[Group, ...] = get_args(Group)
Kind = Literal[
    "weights",
    "control_variates",
    "logits",
    "prototypes",
    "images",
    "statistics",
    "generator",
    "indices",
]  # of arrays in a payload
KINDS: tuple[Kind, ...] = get_args(Kind)


class Limits(NamedTuple):
    """The bytes that one message may have: in all, and of a kind of arrays."""

    total: int
    kinds: Mapping[str, int]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


_TableKind = TypeVar("_TableKind", bound=_Table)


class NamedTable(_Table):
    """A table with a name, whose other keys belong to what the name stands for and are checked there."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())
    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """Return the keys other than the name."""
        return dict(self.model_extra or {})


Architecture = int | NamedTable  # a number in `model.names`, or a model of the method's own: its name and options


class PublicConfig(_Table):
    """`data.public`: the transfer set that the server and all nodes hold."""

    size: Count
    name: str | None = None  # another named set; by default images taken out of the training images
    labelled: bool = False
    own_classes: bool = False  # its labels are other classes than the nodes': models have outputs for both
    balanced: bool = True  # the same number of each class, as far as the images go

    @pydantic.model_validator(mode="after")
    def _labels_of_another_set(self) -> PublicConfig:
        if self.own_classes and not (self.labelled and self.name is not None):
            raise ValueError("own_classes = true: only another labelled set has them; give name and labelled = true")
        return self


class ValidationConfig(_Table):
    """`data.validation`: labelled images of the server's own, out of the training images, as many of each class."""

    size: Count


class PartitionConfig(_Table):
    """`data.partition`: a scheme and its options; `seed` is the run's unless given."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    scheme: str
    minimum: Count = 1
    seed: Annotated[int, Field(ge=0)] | None = None


class SetsConfig(_Table):
    """Where named sets are, and the form that their images are brought to."""

    root: str | None = None
    download: bool = False
    size: Annotated[int, Field(ge=4)] | None = None
    channels: Literal[1, 3] | None = None
    # of the pixels (0..1), a channel; by default the set's own, where it is known
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    deviation: list[Fraction] | None = None
    train_per_class: Count | None = None  # only the first so many images of each class and set
    test_per_class: Count | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of the sets: `data.root`, else $FEDKD_DATA, else `data`."""
        return Path(self.root or os.environ.get("FEDKD_DATA") or "data")


class RealSites(_Table):
    """`data.sites`: real sites bring images of their own, of this form; the server has none of them."""

    count: Count  # sites that a new federation waits for
    classes: Annotated[list[str], Field(min_length=2)]
    shape: tuple[Literal[1, 3], Count, Count]  # channels, height, width
    server: str | None = None  # a named set of the server's own: test images, and those of data.validation

    @pydantic.field_validator("shape", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class DataConfig(SetsConfig):
    """`[data]`: which images, of what form, and who holds them."""

    name: str | None = None
    names: Annotated[list[str], Field(min_length=1)] | None = None  # several sets, each a domain
    sites: RealSites | None = None  # neither: real sites bring their own
    partition: PartitionConfig | None = None
    public: PublicConfig | None = None
    validation: ValidationConfig | None = None
    node_test: Count = 200  # test images a node, drawn by its own label distribution
    augment: Literal["none", "crop_flip"] = "none"

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> DataConfig:
        if [self.name, self.names, self.sites].count(None) != 2:
            raise ValueError("set either name (one set), names (several sets, each a domain) or sites (real sites)")
        if self.sites is None and self.partition is None:
            raise ValueError("partition is missing: who holds what of the images")
        if self.sites is not None and self.partition is not None:
            raise ValueError("sites bring images of their own; there is nothing for partition to split")
        if self.sites is not None and self.public is not None and self.public.name is None:
            raise ValueError("public needs a name: a set that the server and all sites hold beside their own images")
        if self.sites is not None and self.validation is not None and self.sites.server is None:
            raise ValueError("validation is taken out of sites.server, a set of the server's own, which is missing")
        return self

    @property
    def set_names(self) -> list[str]:
        """Return the named sets, one or several; `sites` where real sites bring theirs."""
        return ["sites"] if self.sites is not None else list(self.names or [str(self.name)])


class Sgd(_Table):
    """Stochastic gradient descent, as torch.optim.SGD."""

    name: Literal["sgd"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Adam(_Table):
    """Adam, or AdamW with decoupled weight decay, as in torch.optim."""

    name: Literal["adam", "adamw"]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class TrainConfig(_Table):
    """`[train]`: local training. A client starts each round with a fresh optimiser."""

    epochs: Count = 1
    steps: Count | None = None  # exactly so many batches instead of whole epochs
    batch_size: Count = 32
    optimizer: Annotated[Sgd | Adam, Field(discriminator="name")] = Sgd(name="sgd", lr=0.05)
    lr_decay: Fraction = 1.0  # the learning rate of round t is lr * lr_decay^(t - 1)
    clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of a step's gradient, weight decay apart

    def decay(self, number: int) -> float:
        """Return what a round's learning rates are multiplied by."""
        return self.lr_decay ** max(number - 1, 0)

    def in_round(self, number: int) -> TrainConfig:
        """Return the settings with the learning rate of a round."""
        rate = self.optimizer.lr * self.decay(number)
        return self.model_copy(update={"optimizer": self.optimizer.model_copy(update={"lr": rate})})

    def batches(self, images: int) -> int:
        """Return how many steps local training on so many images takes."""
        return self.steps or self.epochs * -(-images // self.batch_size)


class EvaluateConfig(_Table):
    """`[evaluate]`: every so many rounds (and after the last), on this share of the nodes."""

    every: Count = 5
    fraction: Fraction | None = None  # by default all nodes, of a large federation a hundred


class FaultsConfig(_Table):
    """`[faults]`: what goes wrong in a simulation, drawn by the run's seed, with these probabilities."""

    dropout: Probability = 0.0  # a node is away for a whole round
    straggler: Probability = 0.0  # a node takes longer for a request, by simulated seconds
    delay: Annotated[float, Field(gt=0)] = 60.0  # their mean (an exponential distribution); `timeout` decides
    error: Probability = 0.0  # a client raises before it has done anything
    corrupted: Probability = 0.0  # a reply arrives with a NaN, in another shape, or with the claim to be huge
    lost: Probability = 0.0  # a client does its work, and its reply never arrives


class CheckpointConfig(_Table):
    """`[checkpoint]`: every so many rounds (and after the last); the newest `keep` stay."""

    every: Count = 10
    keep: Count = 2  # the one before is used where the newest is damaged


class ModelConfig(_Table):
    """`[model]`: one architecture for all, or several that the nodes take in turn; with options of the builder."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())
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
            raise ValueError(f"{key} belongs to one architecture: names = [{{ name = ..., {key} = ... }}, ...]")
        return self

    @property
    def architectures(self) -> list[NamedTable]:
        """Return the architectures; node i has number i modulo their count."""
        return list(self.names or [NamedTable(name=str(self.name), **(self.model_extra or {}))])


class Config(_Table):
    """A whole run."""

    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Count = 10
    cohort: Count | None = None  # nodes a round, drawn anew each round; all by default
    min_replies: Count = 1  # fewer good replies than this to one request end the run
    timeout: Annotated[float, Field(gt=0)] | None = None  # seconds to wait for the replies to one request
    payload_limit: Count = 2**30  # bytes of one message
    payload_limits: dict[Kind, Count] = {}  # of them, bytes of one kind of arrays
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    strategy: NamedTable
    engine: NamedTable = NamedTable(name="inline")
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    trackers: list[NamedTable] = []  # services that hear of each round

    @pydantic.model_validator(mode="after")
    def _simulated_faults(self) -> Config:
        if self.data.sites is not None and self.faults != FaultsConfig():
            raise ValueError("faults are of a simulation; data.sites are real sites, with faults of their own")
        return self

    @property
    def limits(self) -> Limits:
        """Return the bytes that one message may have."""
        return Limits(self.payload_limit, {kind: limit for kind, limit in self.payload_limits.items()})


class SetConfig(SetsConfig):
    """`[data]` of a distillation: one named set."""

    name: str


class ProbeConfig(_Table):
    """`[evaluate]` of a distillation: every so many iterations (and first and last), fresh networks train on it."""

    every: Count = 500
    networks: Count = 3
    epochs: Count = 300  # the learning rate falls to a tenth after half of them
    batch_size: Count = 256
    optimizer: Sgd = Sgd(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    augment: list[Group] = list(GROUPS)


class DistillConfig(_Table):
    """A whole distillation of one set: `fedkd distill`."""

    seed: Annotated[int, Field(ge=0)] = 0
    iterations: Annotated[int, Field(ge=0)] = 1000  # 0: measure how the images start
    ipc: Count = 10  # virtual images a class
    initial: Literal["real", "normal", "noise"] = "real"  # random real images, FedLGD's class statistics, or N(0, 1)
    data: SetConfig
    model: ModelConfig
    distiller: NamedTable
    network_every: Count = 100  # of distillers that want a trained network: iterations between two states of it
    train: TrainConfig = TrainConfig(optimizer=Sgd(name="sgd", lr=0.01))  # how that network is trained between them
    evaluate: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=100)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML run file and apply `key=value` overrides. Raises InputError for whatever is wrong with either."""
    return parse_config(_read_table(path, overrides), str(path))


def read_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read the TOML file of a distillation, as `read_config` does."""
    return _parsed(DistillConfig, _read_table(path, overrides), str(path))


def _read_table(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"There is no config {path}.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file that can be read: {error}") from error
    for override in overrides:
        _override(table, override)
    return table


def parse_config(table: dict[str, Any], source: str = "config") -> Config:
    """Return the config in a table. Raises InputError naming each wrong key, its value and what is valid."""
    return _parsed(Config, table, source)


def _parsed(kind: type[_TableKind], table: dict[str, Any], source: str) -> _TableKind:
    try:
        return kind.model_validate(table)
    except pydantic.ValidationError as error:
        raise InputError(f"{source}: {explain(error, kind.model_fields)}") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        raise InputError(f"--set {override!r}: write key=value, such as strategy.beta=3.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.split(".")
    for part in path:
        inner = table.get(part, {})
        if isinstance(inner, str):  # model = "mlp" is short for model = { name = "mlp" }
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override!r}: {part} is {inner!r}, not a table.")
        table[part] = dict(inner)
        table = table[part]
    table[last] = value


def to_table(config: Config | DistillConfig) -> dict[str, Any]:
    """Return the config as plain tables for TOML, without the keys that are unset."""
    return _plain(config.model_dump(mode="json"))


def flattened(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(before: dict[str, Any], now: dict[str, Any], apart: tuple[str, ...]) -> str | None:
    """Return the first key in which two configs differ, with both values; those that begin with `apart` may differ."""
    flat = [flattened(config) for config in (before, now)]
    for key in sorted(flat[0].keys() | flat[1].keys()):
        if flat[0].get(key) != flat[1].get(key) and not key.startswith(apart):
            return f"{key} was {flat[0].get(key)!r}, is {flat[1].get(key)!r}"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list) else value
