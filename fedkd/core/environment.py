"""The environment of a process that runs clients or the server: the config, the data, models, a device."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Architecture, Config
from ..data.codec import Codec
from ..data.federated_data import FederatedData
from ..data.federation import federate
from ..data.samples import Samples
from ..errors import InputError
from ..learning.batches import Preprocess
from ..learning.evaluation import measured, predict
from ..learning.work import Work, alone
from ..messages.arrays import copied
from ..models.build import build, fill, fresh_statistics, refuse_short
from ..models.freezing import copy_frozen, frozen_hash, frozen_names
from ..registry import options
from ..streams import Node, default_stream, torch_stream
from .gpu_settings import precision_parts

Threads = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def prepare_process(threads: int, device: Device, gpu: bool) -> str:
    """Set the number of threads of a process that runs clients, and return its device.

    All engines use the same number of threads, because sums in torch may depend on it. `gpu`: whether `auto` means
    the GPU. Raises InputError for a GPU that is not there.
    """
    torch.set_num_threads(threads)
    _keep_freed_memory()
    if device == "auto":
        return "cuda" if gpu and torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} finds none" if torch.version.cuda else f"torch {torch.__version__} is for CPUs"
        )
        raise InputError(f"engine.device = 'cuda': there is no GPU here ({built}); set 'auto' or 'cpu'.")
    return device


def _keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for reuse. By default it returns them to the system. Then every 4 kB of the
    next model, gradient or payload causes a page fault: a third of the time of a training step of an MLP with
    11 million parameters.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**30)


def prepare_as_engine(config: Config) -> str:
    """Set the number of threads of the config's engine in a process that Flower started, and return the device.

    Raises InputError if `engine.threads` or `engine.device` is wrong.
    """
    given = {key: value for key, value in config.engine.options.items() if key in ("threads", "device")}

    def chosen(*, threads: Threads = 1, device: Device = "auto") -> str:
        return prepare_process(threads, device, gpu=True)

    return chosen(**options(chosen, given, "engine"))


class Environment:
    """The config, data, device and model objects of a process. Model objects are kept; only their weights change."""

    def __init__(self, config: Config, data: FederatedData | None = None, device: str = "cpu") -> None:
        """Make the environment of a config. `data`: the data, if it is loaded already. Raises InputError."""
        self.config = config
        self.data = data if data is not None else federate(config.data, config.seed)
        self.device = _ready(device, config.train.precision)
        self.architecture_numbers: dict[int, int] = {}  # of nodes that have reported their architecture
        self.do: Callable[[Work], Any] = alone  # an engine may take the work of several clients together
        self.lent: dict[str, nn.Module] = {}  # what `kept_object` has returned, since an engine last cleared it
        self._models: dict[str, nn.Module] = {}
        self._frozen: dict[str, nn.Module] = {}
        self._frozen_hashes: dict[int, str] = {}

    def use_codec(self, codec: Codec) -> None:
        """Encode samples by another codec from now on, and make models for what it encodes."""
        self.data = dataclasses.replace(self.data, codec=codec)
        self.use_device(str(self.device))

    def use_device(self, device: str) -> None:
        """Make models and batches on another device from now on."""
        self.device = _ready(device, self.config.train.precision)
        self._models.clear()
        self._frozen.clear()
        self.lent = {}
        self.__dict__.pop("preprocess", None)

    def architecture_of(self, node: int) -> int:
        """Return the number of a node's architecture in `model.names`.

        If the node has reported one, it is that one. Otherwise it is the node's number modulo their count.
        """
        return self.architecture_numbers.get(node, node % len(self.config.model.architectures))

    def new_model(self, architecture: Architecture) -> nn.Module:
        """Return a new model object of an architecture, on the device; draws from torch's default stream."""
        if isinstance(architecture, int):
            spec = self.config.model.architectures[architecture]
            key = self._key_of(architecture)
        else:
            spec, key = architecture, "strategy"

        def make() -> nn.Module:
            data = self.data
            return build(spec.name, spec.options, data.form, len(data.classes), key, padded=data.padded).to(self.device)

        model = make()
        if frozen_names(model):  # the same in all processes: such tensors are not sent
            copy_frozen(model, self._with_frozen(repr(architecture), make))
        return model

    def _with_frozen(self, key: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the model that has the run's frozen tensors of an architecture."""
        if key not in self._frozen:
            with default_stream(torch_stream(self.config.seed, 0, "server", "frozen-weights")):
                self._frozen[key] = make()
        return self._frozen[key]

    def model(self, architecture: Architecture) -> nn.Module:
        """Return this process's model object of an architecture. Its weights are those of its last use."""
        return self.kept_object(repr(architecture), lambda: self.new_model(architecture))

    def refuse_short(self, number: int) -> None:
        """Raise InputError if one of the run's architectures cannot take the shortest series or text that is here."""
        shortest, name = self.data.shortest, self.config.model.architectures[number].name
        if shortest is not None:
            with default_stream(torch_stream(self.config.seed, 0, "server", "shortest-sample")):
                refuse_short(self.model(number), self.data.form, shortest, f"{self._key_of(number)} = {name!r}")

    def _key_of(self, number: int) -> str:
        return "model.name" if self.config.model.name else f"model.names.{number}"

    @property
    def freezes(self) -> bool:
        """Return whether an architecture of the config has frozen weights, which no node sends."""
        tables = [one.options for one in self.config.model.architectures]
        return any(table.get("train", "all") != "all" or table.get("adapter") is not None for table in tables)

    def frozen_hash(self, number: int) -> str:
        """Return a hash of the frozen weights of one of the run's architectures; empty if it has none."""
        if number not in self._frozen_hashes:
            self._frozen_hashes[number] = frozen_hash(self.model(number))
        return self._frozen_hashes[number]

    def about_models(self) -> list[str]:
        """Return a line on each of the run's architectures: its head, the width of its features, its parameters."""
        return [str(self.model(number).fedkd_about) for number in range(len(self.config.model.architectures))]

    def kept_object(self, key: str, build: Callable[[], nn.Module]) -> nn.Module:
        """Return this process's object with a name; the first call builds it. Its weights are those of its last use."""
        if key not in self._models:
            with default_stream(torch_stream(self.config.seed, 0, "server", "model-object")):
                self._models[key] = build().to(self.device)
        self.lent[key] = self._models[key]
        return self._models[key]

    def score(self, architecture: Architecture, weights: dict[str, Tensor], images: Samples) -> dict[str, float]:
        """Return the metrics of a model on labelled images (see `evaluation.measured`)."""
        return measured(self.logits(architecture, weights, images), images, self.data.codec)

    def logits(self, architecture: Architecture, weights: dict[str, Tensor], images: Samples) -> Tensor:
        """Return the logits of a model on images, N x C, on the CPU."""
        model = self.model(architecture)
        fill(model, weights)
        return predict(model, images, self.preprocess)

    def initial_weights(self, architecture: Architecture = 0, node: Node = "server") -> dict[str, Tensor]:
        """Return fresh weights of an architecture, from the stream of this node (or of the server)."""
        with default_stream(torch_stream(self.config.seed, 0, node, "initial-weights")):
            model = self.new_model(architecture)
        return self.sent(model)

    def sent(self, model: nn.Module) -> dict[str, Tensor]:
        """Return copies, on the CPU, of what nodes and server send each other of a model."""
        state = model.state_dict()
        return copied({name: state[name] for name in self.sent_names(model)})

    def sent_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights and buffers that nodes and server send each other.

        With train.batch_norm = "local" these are all but the running statistics of batch norm.
        """
        kept = fresh_statistics(model) if self.config.train.batch_norm == "local" else {}
        return [name for name in model.state_dict() if name not in kept]

    @property
    def on_global_test(self) -> bool:
        """Return whether models are measured on the global test set: it is here, and `evaluate.global_test` is true."""
        return self.config.evaluate.global_test and len(self.data.test.labels) > 0

    @cached_property
    def public_fingerprint(self) -> int:
        """Return a fingerprint of the public images: equal for the same images in the same order in any process."""
        assert self.data.public is not None
        digest = hashlib.blake2b(np.ascontiguousarray(self.data.public.inputs).tobytes(), digest_size=6).digest()
        return int.from_bytes(digest, "little")  # 48 bits: exact as a float64

    @cached_property
    def preprocess(self) -> Preprocess:
        """Return the preprocessing that turns raw samples into batches."""
        wholes = [one.inputs for one in (self.data.train, self.data.public) if one is not None]
        return Preprocess(self.data.codec, self.config.data.augment, self.device, wholes)


def _ready(device: str, precision: str) -> torch.device:
    """Return a device that is ready: `default_stream` sets the generator of a GPU only when this process uses it.

    Products on a GPU keep all bits of float32, but for the precision tf32; torch's own default rounds convolutions.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.init()
        for part in precision_parts():
            part.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    return torch.device(device)
