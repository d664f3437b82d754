"""Distillation of one named set without a federation: from a config to a folder of virtual images, with resume."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..config import AnyGroup, DistillConfig, TrainConfig, read_distill_config
from ..core.record import Captioned
from ..core.state import State, pack, unpack
from ..data.named_sets import images_fingerprint, named_set
from ..data.portraits import portraits
from ..data.samples import Samples
from ..data.writing import frame_of
from ..distillation.distillers import DC, DM, Distiller, train_epoch
from ..distillation.matching import matched_parameters
from ..distillation.sample_generators import as_codes, takes_probabilities
from ..distillation.siamese_kinds import groups_of
from ..distillation.virtual_images import RealImages, Truth, Virtual, class_statistics, normal_samples, real_images
from ..errors import InputError, RunError, described
from ..files import NotWritten, write
from ..learning.batches import Preprocess
from ..learning.evaluation import evaluate
from ..learning.optimizers import make_optimizer
from ..learning.training import train_as
from ..models.build import build
from ..registry import find, options
from ..stopping import deferred, stoppable
from ..streams import default_stream, torch_stream
from . import checkpoints
from .forms import DistillLine
from .metrics import surroundings
from .origin import Origin, accepted_changes, go_on, known_files, note_files, origin_of, refuse_changes
from .run_folder import CONFIG, RunFolder, alone_in, refuse_odd_files, refuse_used

if TYPE_CHECKING:
    from .styles import Drawing, Style, StyleName

_log = logging.getLogger("fedkd")

VIRTUAL, ROWS = "virtual.safetensors", "virtual.csv"

OnIteration = Callable[[int, dict[str, float]], None]  # the number of finished iterations, and the metrics


def make_distiller(config: DistillConfig) -> tuple[Distiller, DistillConfig]:
    """Return the distiller of a config, and the config with all its options. Raises InputError for wrong ones."""
    kind = find("distillers", config.distiller.name, "distiller.name")
    if not (isinstance(kind, type) and issubclass(kind, Distiller)):
        raise InputError(f"distiller.name = {config.distiller.name!r} is not a Distiller.")
    distiller: Distiller = kind(**options(kind, config.distiller.options, "distiller"))
    table = config.distiller.model_copy(update=dataclasses.asdict(distiller))
    return distiller, config.model_copy(update={"distiller": table})


class Distillation:
    """One distillation: its data, its distiller, its virtual images, and the network under which they are matched.

    The constructor raises InputError for any error in the config.
    """

    def __init__(self, config: DistillConfig) -> None:
        self.distiller, self.config = make_distiller(config)
        if config.model.names is not None:
            raise InputError("model.names: a distillation uses one architecture; set model.name.")
        if self.distiller.truth == "gradient" and self.distiller.fresh_networks:
            raise InputError(
                f"distiller.name = {config.distiller.name!r}: to match a gradient, set fresh_networks = False."
            )
        self.data, codec = named_set(config.data)
        self.spec, self.form = codec.spec, codec.form
        if self.form.kind == "tokens" or self.spec.task != "classification":
            why = "token ids have no gradient" if self.form.kind == "tokens" else "samples are distilled class by class"
            raise InputError(
                f"data.name = {config.data.name!r}: it has {self.spec.noun(2)} for {self.spec.task}; {why}."
            )
        if isinstance(self.distiller, DM | DC):
            self.distiller.augment = groups_of(self.form.kind, self.distiller.augment, "distiller.augment")
        self.augment: list[AnyGroup] | Literal["dc"] = "dc"
        if config.evaluate.augment != "dc":
            self.augment = groups_of(self.form.kind, config.evaluate.augment, "evaluate.augment")
        elif self.form.kind != "image":
            raise InputError(f"evaluate.augment = 'dc' is for images; the samples are of kind {self.form.kind!r}.")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.preprocess = Preprocess(codec, "none", self.device)
        self.real = RealImages(self.data.train, self.preprocess)
        self.network = self.new_network(self.stream(0, "network"))
        if not takes_probabilities(self.network, self.form):
            raise InputError(
                f"model.name = {config.model.name!r}: virtual rows have categories as probabilities, which this model "
                "cannot take; set table_mlp."
            )
        self.truth: Truth = self.real
        self.virtual = self._first_images()

    def stream(self, number: int, purpose: str) -> torch.Generator:
        """Return the stream of an iteration for a purpose."""
        return torch_stream(self.config.seed, number, "server", f"distill/{purpose}")

    def new_network(self, stream: torch.Generator) -> nn.Module:
        """Return a network with new random weights."""
        (architecture,) = self.config.model.architectures
        with default_stream(stream):
            network = build(architecture.name, architecture.options, self.form, len(self.data.classes))
        return network.to(self.device)

    def _first_images(self) -> Virtual:
        config, form, stream = self.config, self.form, self.stream(0, "initial")
        if config.initial == "real":
            images, labels = real_images(self.real, config.ipc, stream, form)
        else:
            classes = len(self.data.classes)
            means, deviations, held = class_statistics(self.data.train, self.preprocess, classes, form)
            if config.initial == "noise":
                means, deviations = torch.zeros_like(means), torch.ones_like(deviations)
            images, labels = normal_samples(means, deviations, held, config.ipc, form, stream)
        return Virtual(images.to(self.device), labels.to(self.device), form=form)

    def iterate(self, number: int) -> float:
        """Run iteration `number`, counted from 1; return the distiller's loss. Raises RunError if it diverges."""
        with default_stream(self.stream(number, "default")):  # for networks with dropout
            if self.distiller.fresh_networks:
                self.network = self.new_network(self.stream(number, "network"))
            elif (number - 1) % self.config.network_every == 0:
                self._next_state(number)
            value = self.distiller.iterate(self.virtual, self.truth, self.network, self.stream(number, "iteration"))
        if not bool(torch.isfinite(self.virtual.images).all()):
            raise RunError(f"iteration {number}: the images have diverged; lower distiller.lr = {self.distiller.lr}.")
        return value

    def _next_state(self, number: int) -> None:
        """Train the network for one round of `[train]`. A gradient to match is the gradient of the next round.

        This corresponds to one node of FedLGD: images are matched under the model that trains on them (IDM), or with
        the change of a model that trains on real images (FGM).
        """
        settings = self._settings(number)
        self.virtual.rest()
        if self.distiller.truth == "images":
            if number > 1:
                self._train(self.network, self.virtual.as_data(), number)
            return
        if number > 1:
            self._train(self.network, self.data.train, number - self.config.network_every)
        following = self.new_network(self.stream(0, "network"))
        following.load_state_dict(self.network.state_dict())
        self._train(following, self.data.train, number)
        before, after = (matched_parameters(one, self.form).values() for one in (self.network, following))
        self.truth = [(a - b).detach() / settings.optimizer.lr for a, b in zip(before, after, strict=True)]

    def _settings(self, number: int) -> TrainConfig:
        return self.config.train.in_round((number - 1) // self.config.network_every + 1)

    def _train(self, network: nn.Module, data: Any, number: int) -> None:
        order = self.stream(number, "train")
        train_as(self._settings(number), network, data, preprocess=self.preprocess, order=order)

    def measure(self, number: int) -> list[float]:
        """Return the test accuracy of each of the new networks that are trained on the virtual images."""
        settings = self.config.evaluate
        found = []
        for trial in range(settings.networks):
            stream = self.stream(number, f"evaluate/{trial}")
            network = self.new_network(self.stream(number, f"evaluate/network-{trial}"))
            optimizer = make_optimizer(network, settings.optimizer)
            fixed = Virtual(self.virtual.images.detach(), self.virtual.labels, form=self.form)
            network.train()
            with default_stream(self.stream(number, f"evaluate/default-{trial}")):
                for epoch in range(settings.epochs):
                    if epoch == settings.epochs // 2 + 1:
                        optimizer.param_groups[0]["lr"] *= 0.1
                    train_epoch(network, fixed, optimizer, settings.batch_size, self.augment, stream)
            found.append(evaluate(network, self.data.test, self.preprocess)["accuracy"])
        return found

    def raw(self) -> np.ndarray:
        """Return the virtual samples as raw ones: pixels clipped to their range, of categories the likeliest code."""
        return self.preprocess.pixels(as_codes(self.virtual.images.detach(), self.form).clone())

    def pictures(self) -> np.ndarray:
        """Return pictures of the virtual samples, uint8, N x channels x height x width."""
        return portraits(self.spec, self.raw())

    def classes(self) -> np.ndarray:
        """Return the class of each virtual image; for soft labels, the most likely class."""
        labels = self.virtual.labels
        return (labels.argmax(1) if labels.dim() > 1 else labels).cpu().numpy()

    def origin(self, known: Iterable[str] = ()) -> Origin:
        """Return what this distillation begins with; `known` as in `origin_of`."""
        return origin_of(self.config, images_fingerprint([self.data]), known=known)

    def state(self, progress: _Progress) -> State:
        """Return the state that is needed to resume."""
        truth = None if isinstance(self.truth, RealImages) else list(self.truth)
        network = None if self.distiller.fresh_networks else dict(self.network.state_dict())
        tensors = {"virtual": self.virtual.tensors(), "network": network, "truth": truth}
        return pack({**tensors, "progress": dataclasses.asdict(progress)}, "the distillation")

    def restore(self, state: State) -> _Progress:
        """Restore what `state` returned; return the progress."""
        kept = unpack(state)
        try:
            self.virtual = Virtual.of(kept["virtual"], self.device, self.form)
            if kept["network"] is not None:
                self.network.load_state_dict(kept["network"])
            if kept["truth"] is not None:
                self.truth = [tensor.to(self.device) for tensor in kept["truth"]]
            return _Progress(**kept["progress"])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"The checkpoint is none of this distillation: {described(error)}.") from error


@dataclass
class _Progress:
    """How far a distillation is: the finished iterations, whether the last is to be measured, the losses since a line.

    `line`: the iteration of the last line of metrics.jsonl. `seconds`: of the earlier parts.
    """

    done: int = -1
    pending: bool = False
    line: int = -1
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def distill(
    config: DistillConfig, out: Path, on_iteration: OnIteration = lambda number, metrics: None
) -> dict[str, Any]:
    """Distil a named set into a new folder; return the summary. Nothing is written before all input is accepted.

    The folder contains the config with all values, `metrics.jsonl`, checkpoints, figures and `virtual.safetensors`:
    `images` (float32, as models take them) and `labels`; of a table also `virtual.csv`. `on_iteration` is called after
    each iteration. Raises InputError for input that is refused, `Stopped` after a signal.
    """
    with stoppable():
        refuse_used(out)
        work = Distillation(config)
        folder = RunFolder(out, DistillLine)
        folder.create(work.config, work.origin())
        with alone_in(out):
            return _run(work, folder, _Progress(), on_iteration)


def resume(
    path: Path,
    on_iteration: OnIteration = lambda number, metrics: None,
    *,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Continue the distillation in a folder from its newest checkpoint; return the summary.

    The images are the same as without the interruption. `accept_changes` as in `fedkd.runs.run.resume`. Raises
    InputError like `distill`, and if images, files or versions have changed.
    """
    with stoppable():
        folder = RunFolder(path, DistillLine)
        if not (path / CONFIG).is_file():
            raise InputError(f"--resume {path}: there is no distillation; its {CONFIG} is missing.")
        refuse_odd_files(path)
        work = Distillation(read_distill_config(path / CONFIG))
        now = work.origin(known_files(path))
        if not accept_changes:
            refuse_changes(path, now)
        with alone_in(path):
            progress = _Progress()
            if not checkpoints.there_are_none(folder.checkpoints):
                owner = checkpoints.owner_of(work.config)
                _, checkpoint = checkpoints.latest(folder.checkpoints, owner=owner)
                progress = work.restore(checkpoints.load_server(checkpoint))
                checkpoints.drop_newer(checkpoint)
            go_on(path, now, progress.done + 1, accept_changes=accept_changes, unit="iteration")
            folder.rewind(progress.line)
            return _run(work, folder, progress, on_iteration)


def _run(work: Distillation, folder: RunFolder, progress: _Progress, on_iteration: OnIteration) -> dict[str, Any]:
    config, begin, before = work.config, time.perf_counter(), progress.seconds

    def seconds() -> float:
        return before + time.perf_counter() - begin

    def checkpoint() -> None:
        progress.seconds = seconds()
        number, keep = max(progress.done, 0), config.checkpoint.keep
        checkpoints.save(folder.checkpoints, number, work.state(progress), [], keep, checkpoints.owner_of(config))

    def summary(status: str, error: str | None = None) -> dict[str, Any]:
        lines = [line for line in folder.lines() if line["metrics"]]
        found = {
            "status": status,
            **({"error": error} if error else {}),
            "distiller": config.distiller.name,
            "iterations": lines[-1]["iteration"] if lines else 0,
            "seed": config.seed,
            "initial": lines[0]["metrics"] if lines else {},
            "final": lines[-1]["metrics"] if lines else {},
            "best": {"test/accuracy": max((line["metrics"]["test/accuracy"] for line in lines), default=0.0)},
            "seconds": {"total": seconds()},
            "changes": accepted_changes(folder.path),
            **surroundings(),
        }
        folder.write_summary(found)
        return found

    def end(status: str, error: str | None = None) -> None:
        """Save what is there, as far as possible: the reason for the end is more important."""
        try:
            note_files(folder.path, config)
            if progress.done >= 0:
                checkpoint()
            summary(status, error)
        except NotWritten:  # the message of the end says what is wrong with the disk
            return
        except InputError as failed:
            _log.warning("%s", failed)

    try:
        for number in range(progress.done + (not progress.pending), config.iterations + 1):
            if number and not progress.pending:
                with deferred():  # a signal waits until the images are whole again
                    progress.losses.append(work.iterate(number))
                    progress.done, progress.pending = number, True
            last = number == config.iterations
            metrics: dict[str, float] = {}
            networks: dict[str, list[float]] = {}
            if last or number % config.evaluate.every == 0:
                found = work.measure(number)
                metrics = {"test/accuracy": float(np.mean(found)), "test/deviation": float(np.std(found))}
                networks = {"test/accuracy": found}
            keep = last or number % config.checkpoint.every == 0
            with deferred():
                if metrics:
                    _show(work, folder, number)
                if metrics or keep:
                    mean = {"loss": float(np.mean(progress.losses))} if progress.losses else {}
                    line = {"iteration": number, **mean, "metrics": metrics, "networks": networks}
                    folder.append({**line, "seconds": seconds()})
                    progress.losses, progress.line = [], number
                progress.done, progress.pending = number, False
                if keep:
                    checkpoint()
            on_iteration(number, metrics)
    except KeyboardInterrupt:
        end("interrupted")
        raise
    except BaseException as error:
        end("failed", described(error))
        if isinstance(error, SystemExit):
            raise RunError(f"{config.distiller.name} has called sys.exit({error.code!r}).") from error
        raise
    _write_images(work, folder)
    note_files(folder.path, config)
    completed = summary("completed")
    _draw(work, folder)
    return completed


def _show(work: Distillation, folder: RunFolder, number: int) -> None:
    """Write the first virtual image of each class to the folder, for the figures."""
    labels = work.classes()
    classes, first = np.unique(labels, return_index=True)
    captions = tuple(work.data.classes[label] for label in classes)
    folder.keep_images("progress", number, Captioned(work.pictures()[first], captions))


def _write_images(work: Distillation, folder: RunFolder) -> None:
    plain: dict[str, Tensor] = {"images": work.virtual.inputs().detach().cpu(), "labels": work.virtual.labels.cpu()}
    write(folder.path / VIRTUAL, to_bytes({name: tensor.contiguous() for name, tensor in plain.items()}))
    if work.form.kind == "table":
        rows = frame_of({"train": Samples(work.raw(), work.classes())}, work.spec, work.data.classes)
        write(folder.path / ROWS, rows.iloc[:, :-1].to_csv(index=False).encode())  # all are of one part


def _draw(work: Distillation, folder: RunFolder) -> None:
    from . import figures  # imports matplotlib, which the run itself does not need
    from .styles import SCREEN

    config = work.config
    about = f"{config.distiller.name} on {config.data.name}, {config.ipc} a class, seed {config.seed}"
    try:
        for name, make in _drawings(work, folder, about, SCREEN).items():
            figures.write_picture(make, folder.figures / f"{name}.png")
    except Exception as error:  # no figure may cost finished work
        _log.warning("A figure cannot be drawn: %s.", described(error))


def _drawings(
    work: Distillation, folder: RunFolder, about: str, style: Style
) -> dict[str, Callable[[], Drawing | None]]:
    """Return the figures of a distillation by their names, each as a function that draws it."""
    from . import pictures

    tiles, classes, wide = work.pictures(), work.data.classes, work.form.kind != "image"
    found: dict[str, Callable[[], Drawing | None]] = {
        "virtual": partial(pictures.virtual, tiles, work.classes(), classes, about, style, wide=wide)
    }
    for path in folder.image_folders():
        title = f"{path.name}: {about}" if about else ""
        found[path.name] = partial(pictures.over_rounds, path, title, style, unit="iteration")
    return found


def redraw(path: Path, out: Path, style: StyleName) -> tuple[list[Path], list[str]]:
    """Draw the figures of the distillation in a folder again, as `figures.redraw` does those of a run.

    Raises InputError like `resume`: the pictures need the set that was distilled.
    """
    from . import figures
    from .styles import STYLES

    folder = RunFolder(path, DistillLine)
    refuse_odd_files(path)
    work = Distillation(read_distill_config(path / CONFIG))
    _, checkpoint = checkpoints.latest(folder.checkpoints, owner=checkpoints.owner_of(work.config))
    work.restore(checkpoints.load_server(checkpoint))
    return figures.write_all(_drawings(work, folder, "", STYLES[style]), path, out, style)
