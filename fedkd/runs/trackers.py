"""Trackers: callbacks that send a run's metrics to TensorBoard, MLflow or Weights & Biases after each round."""

from __future__ import annotations

import importlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..config import Config, flattened, to_table
from ..errors import InputError
from ..files import read, write
from ..masking import is_hidden, masked, masked_text, without_hidden
from ..registry import errors_of, find, options

_log = logging.getLogger("fedkd")

# by default, MLflow blocks a run for minutes if its server does not answer
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}

_IDENTITY = "tracker-{name}.txt"  # a file in the run folder with the tracker's id of the run, for a resumed run


class Tracker(ABC):
    """Gets the events of a run: `begin` before its first round, `note` for each line of metrics.jsonl, `end` with its
    summary.

    Subclasses have their options as keyword-only parameters: the keys of their table in `trackers`.
    """

    @abstractmethod
    def begin(self, config: Config, folder: Path, first_round: int) -> None:
        """Begin, or continue from `first_round` in a folder whose later rounds run again."""

    @abstractmethod
    def note(self, line: dict[str, Any]) -> None:
        """Handle the line of a round."""

    @abstractmethod
    def end(self, summary: dict[str, Any], figures: Sequence[Path]) -> None:
        """Handle the summary and the PNG files of figures; the run has ended, successfully or not (then without)."""


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Return the single numbers of a line: metrics, bytes by direction, seconds, failures, logged numbers."""
    found: dict[str, float] = dict(line["metrics"])
    found |= {f"bytes/{way}": float(sum(kinds.values())) for way, kinds in line["bytes"].items()}
    found |= {f"seconds/{name}": value for name, value in line["seconds"].items()}
    found["failures"] = float(len(line["failures"]))
    found |= {f"log/{name}": float(value) for name, value in line["log"].items() if isinstance(value, int | float)}
    return found


def _identity(path: Path) -> str:
    """Return a tracker's id of a run, from a file in its folder."""
    return read(path, 1000, path.parent).decode().strip()


class TensorBoard(Tracker):
    """TensorBoard's event files, in the folder `tensorboard/` of the run folder."""

    def __init__(self) -> None:
        self._writer: Any = None
        need("tensorboard", "tensorboard")

    def begin(self, config: Config, folder: Path, first_round: int) -> None:
        """Open the event file; its old entries from `first_round` on become invalid."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_round)
        self._writer.add_text(
            "config", "\n".join(f"    {k} = {v}" for k, v in flattened(masked(to_table(config))).items())
        )

    def note(self, line: dict[str, Any]) -> None:
        """Write a round's scalars."""
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["round"])
        self._writer.flush()

    def end(self, summary: dict[str, Any], figures: Sequence[Path]) -> None:
        """Write the figures, and close the event file."""
        for path in figures:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._writer.add_image(f"figures/{path.stem}", pixels, summary["rounds"], dataformats="HWC")
        self._writer.close()


class MLflow(Tracker):
    """An MLflow run. `uri`: the tracking server or folder, by default MLflow's own; `experiment`: its name."""

    def __init__(self, *, uri: str | None = None, experiment: str = "fedkd") -> None:
        self.uri = uri
        self.experiment = experiment
        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        self._mlflow = need("mlflow", "mlflow")
        self._id = ""

    def begin(self, config: Config, folder: Path, first_round: int) -> None:
        """Create the run, or reopen the run of this folder."""
        self._client = self._mlflow.MlflowClient(tracking_uri=self.uri)
        kept = folder / _IDENTITY.format(name="mlflow")
        if kept.is_file():
            self._id = _identity(kept)
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self._id = self._client.create_run(number, run_name=folder.name).info.run_id
        for key, value in flattened(masked(to_table(config))).items():
            self._client.log_param(self._id, key, str(value)[:500])
        write(kept, f"{self._id}\n".encode())

    def note(self, line: dict[str, Any]) -> None:
        """Send a round's scalars."""
        for name, value in scalars(line).items():
            self._client.log_metric(self._id, name, value, step=line["round"])

    def end(self, summary: dict[str, Any], figures: Sequence[Path]) -> None:
        """Send the figures, and close the run."""
        for path in figures:
            self._client.log_artifact(self._id, str(path), "figures")
        status = {"completed": "FINISHED", "interrupted": "KILLED"}.get(summary["status"], "FAILED")
        self._client.set_terminated(self._id, status)


class WandB(Tracker):
    """A Weights & Biases run; `mode = "offline"` stores it in the run folder, for `wandb sync`."""

    def __init__(self, *, project: str = "fedkd", mode: Literal["online", "offline"] = "online") -> None:
        self.project = project
        self.mode = mode
        self._wandb = need("wandb", "wandb")
        self._run: Any = None

    def begin(self, config: Config, folder: Path, first_round: int) -> None:
        """Start the run, or continue the run of this folder."""
        kept = folder / _IDENTITY.format(name="wandb")
        name = _identity(kept) if kept.is_file() else None
        self._run = self._wandb.init(
            project=self.project, mode=self.mode, dir=str(folder), name=folder.name, id=name, resume="allow",
            config=masked(to_table(config)),
        )  # fmt: skip
        write(kept, f"{self._run.id}\n".encode())

    def note(self, line: dict[str, Any]) -> None:
        """Send a round's scalars."""
        self._run.log(scalars(line), step=line["round"])

    def end(self, summary: dict[str, Any], figures: Sequence[Path]) -> None:
        """Send the figures, and close the run."""
        if figures:
            images = {f"figures/{path.stem}": self._wandb.Image(str(path)) for path in figures}
            self._run.log(images, step=summary["rounds"])
        self._run.finish(exit_code=0 if summary["status"] == "completed" else 1)


def need(package: str, extra: str) -> ModuleType:
    """Import the package of a tracker. Raises InputError, which names the extra to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"trackers: {extra} needs the package {package}, which cannot be imported ({error}): "
            f"pip install 'fedkd[{extra}]'."
        ) from error


def make_trackers(config: Config) -> Trackers:
    """Return a config's trackers. Raises InputError for an unknown tracker, wrong options, a missing package."""
    made = []
    for number, table in enumerate(config.trackers):
        key = f"trackers.{number}"
        kind = find("trackers", table.name, key)
        chosen = options(kind, _known(table.options, key), key)
        with errors_of(table.name, f"{key}.name"):
            made.append((table.name, kind(**chosen)))
    return Trackers(made)


def _known(given: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a tracker's options without secrets that a copy of its config lacks, and say so."""
    known = dict(given)
    for name, value in given.items():
        if is_hidden(value):
            _log.warning(
                "%s.%s: its secret is not in this copy of the config. The tracker uses what the environment gives, "
                "such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or WANDB_API_KEY.", key, name,
            )  # fmt: skip
            rest = without_hidden(value)
            known = {**known, name: rest} if rest is not None else {n: v for n, v in known.items() if n != name}
    return known


class Trackers:
    """A run's trackers. A failing tracker, for example without a server, is reported once and does not end the run."""

    def __init__(self, named: Sequence[tuple[str, Tracker]]) -> None:
        self._named = list(named)

    def begin(self, config: Config, folder: Path, first_round: int) -> None:
        """Call `begin` of all trackers."""
        self._each(lambda tracker: tracker.begin(config, folder, first_round))

    def note(self, line: dict[str, Any]) -> None:
        """Call `note` of all trackers."""
        self._each(lambda tracker: tracker.note(line))

    def end(self, summary: dict[str, Any], figures: Sequence[Path] = ()) -> None:
        """Call `end` of all trackers."""
        self._each(lambda tracker: tracker.end(summary, figures))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._named):
            try:
                call(tracker)
            except Exception as error:  # an error of a third party's service must not end the run
                _log.warning(
                    "tracker %s failed and is not used any more: %s: %s",
                    name,
                    type(error).__name__,
                    masked_text(str(error)),
                )
                self._named.remove((name, tracker))
