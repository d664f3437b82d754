"""The run folder: config.toml, metrics.jsonl, summary.json, checkpoints/ and figures/."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ..config import Config, DistillConfig, to_table
from ..core.record import Captioned
from ..data.agreement import Agreement, agreement_of, reason_in, to_json
from ..data.federated_data import FederatedData
from ..data.pictures import open_picture
from ..data.site_data import without_any
from ..errors import InputError, on_one_line, reason_of
from ..files import (
    NotWritten,
    append,
    as_json,
    leads_out,
    parse_json,
    read,
    reading,
    refuse_odd,
    refuse_shortage,
    write,
    writing,
)
from ..masking import masked
from ..stopping import deferred
from .forms import DistillLine, Line, SamplesFile, read_form, read_lines
from .origin import ORIGIN, Origin, write_origin

CONFIG, METRICS, SUMMARY, PARTITION = "config.toml", "metrics.jsonl", "summary.json", "partition.json"
SAMPLES = "samples.json"
EVALUATION = "evaluation.json"
_NOTHING = "Nothing had begun: make space, then give the command again."
_MOST_OF_IMAGES = 2**24  # bytes of a row of images
_OF_A_ROUND = re.compile(r"round-\d{6,9}\.png")
MOST_ROWS = 1000  # the largest number of nodes whose label counts are stored and drawn


class RunFolder:
    """The folder of one run. A line is written to disk when its round ends."""

    def __init__(self, path: Path, form: type[Line | DistillLine] = Line) -> None:
        self.path = path
        self._form = form
        self._unit = "round" if form is Line else "iteration"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best"  # those of the best rounds (`checkpoint.best`)
        self.figures = path / "figures"

    def create(self, config: Config | DistillConfig, origin: Origin) -> None:
        """Make the folder, and write what the run begins with and the config with all values but secrets.

        Raises InputError if the folder has other content, RunError if the files cannot be written.
        """
        refuse_used(self.path)
        there = self.path.is_dir()
        try:
            with deferred():  # a signal finds a run that can be continued, or nothing
                for folder in (self.path, self.checkpoints, self.figures):
                    make_folder(folder)
                write(self.path / METRICS, b"", _NOTHING)
                write_origin(self.path, origin, _NOTHING)
                # last, because with it the folder is a run that can be continued
                write(self.path / CONFIG, tomli_w.dumps(masked(to_table(config))).encode(), _NOTHING)
        except NotWritten:
            shutil.rmtree(self.path, ignore_errors=True)  # all of it was made here
            if there:
                self.path.mkdir()
            raise

    def change(self, config: Config) -> None:
        """Write the config with which the run goes on. Raises RunError if it cannot be written."""
        write(self.path / CONFIG, tomli_w.dumps(masked(to_table(config))).encode())

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises RunError if it cannot be written."""
        append(self.path / METRICS, as_json(line))

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl before the first damaged line. Raises OutOfReach if it cannot be read."""
        with reading(self.path / METRICS):
            return read_lines(self.path / METRICS, self._form)[0]

    def keep_partition(self, data: FederatedData) -> None:
        """Write which node has which training samples (see `forms.Partition`)."""
        write(self.path / PARTITION, as_json(partition_of(data)))

    def keep_samples(self, data: FederatedData) -> None:
        """Write how samples are encoded (see `known_samples`), so that a model can be used without the run's data."""
        agreed = to_json(Agreement(data.codec, data.classes)).decode()
        about = {"nodes": data.clients, "node_classes": list(data.node_classes), "padded": data.padded}
        write(self.path / SAMPLES, as_json({**about, "samples": agreed}))

    def keep_images(self, name: str, number: int, row: Captioned) -> None:
        """Write a round's row of images side by side as one PNG, without scaling; captions are the PNG's text.

        For images with neither 1 nor 3 channels, the first channel is shown.
        """
        home = self.figures / name
        with writing(home):
            home.mkdir(exist_ok=True)  # not its parents: a run folder that was removed does not come back
        strip = np.concatenate(list(row.images.transpose(0, 2, 3, 1)), axis=1)
        about = PngInfo()
        about.add_itxt("captions", json.dumps(row.captions))
        png = io.BytesIO()
        Image.fromarray(strip if strip.shape[2] == 3 else strip[:, :, 0]).save(png, "PNG", pnginfo=about)
        write(home / f"round-{number:06d}.png", png.getvalue())

    def image_folders(self) -> list[Path]:
        """Return the folders in figures/ that contain images of rounds."""
        return sorted(path for path in self.figures.glob("*") if path.is_dir() and not leads_out(path, self.path))

    def rewind(self, number: int) -> None:
        """Drop summary, evaluation, and lines of rounds (or iterations) after `number`: a resumed run makes them again.

        Raises InputError, which names the line, if earlier lines are missing or damaged.
        """
        path = self.path / METRICS
        try:
            lines, wrong = read_lines(path, self._form)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
        kept = [line for line in lines if line[self._unit] <= number]
        if number >= 0 and (not kept or kept[-1][self._unit] != number):
            reached = f"is whole up to {self._unit} {kept[-1][self._unit]}" if kept else "has no whole line"
            raise InputError(
                f"{path} {reached}, its checkpoint is of {self._unit} {number}: what was measured between them is "
                f"lost{f' ({wrong})' if wrong else ''}. Restore the file, or run the config again in a new folder."
            )
        for name in (SUMMARY, EVALUATION):
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)
        write(path, b"".join(as_json(line) for line in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json. Raises RunError if it cannot be written."""
        write(self.path / SUMMARY, as_json(summary, indent=2))


def known_samples(path: Path) -> FederatedData:
    """Return the data of the run in a folder without any sample: their form, how they are encoded, the classes.

    Raises InputError if the file is missing or damaged.
    """
    file = path / SAMPLES
    try:
        about = read_form(file, SamplesFile, path)
        agreed = agreement_of(about["samples"].encode())
    except FileNotFoundError:
        raise InputError(
            f"{path} has no {SAMPLES}: an earlier version of fedkd began this run; run it again."
        ) from None
    except (OSError, ValueError) as error:
        refuse_shortage(file, error)
        raise InputError(f"{file} cannot be read: {reason_in(error)}.") from error
    return without_any(agreed, tuple(about["node_classes"]), about["nodes"], padded=about["padded"])


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without an incomplete last one: it may be in the process of writing.

    Raises ValueError if another line is damaged.
    """
    lines, wrong = read_lines(path)
    if wrong is not None:
        raise ValueError(wrong)
    return lines


class Strip(NamedTuple):
    """A row of images side by side: the PNG, its pixels, and a caption for each image."""

    png: bytes
    pixels: np.ndarray
    captions: list[str]


def read_strip(path: Path, home: Path) -> Strip:
    """Return a row of images in a run folder `home`. Raises ValueError or OSError with the reason."""
    content = read(path, _MOST_OF_IMAGES, home)
    with open_picture(io.BytesIO(content), ("PNG",)) as picture:
        picture.load()
        captions = parse_json(picture.text.get("captions", "[]")) if isinstance(picture, PngImageFile) else None
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError("its captions are no list of texts")
        return Strip(content, np.asarray(picture), captions)


def rows_of_images(folder: Path) -> list[Path]:
    """Return the files of rounds (or iterations) in a folder of images, in their order."""
    return sorted(path for path in folder.iterdir() if _OF_A_ROUND.fullmatch(path.name))


def refuse_odd_files(path: Path) -> None:
    """Raise InputError for what a run never makes: a link out of its folder, a pipe, a device, a socket.

    A run that goes on writes to its folder, so a link could make it write, and delete, somewhere else. What is odd but
    no such link within a checkpoint damages it, and the one before is used (see `checkpoints.latest`).
    """
    one = path
    try:
        within = [one for name in ("checkpoints", "figures", "logs") for one in (path / name).rglob("*")]
        for one in (*path.iterdir(), *within):
            if leads_out(one, path):
                raise InputError(f"{one} is a link to a place outside of the run folder; put what it means there.")
            if one.exists() and not one.is_dir() and path / "checkpoints" not in one.parents[1:]:
                refuse_odd(one)
    except (OSError, ValueError) as error:
        raise InputError(f"{on_one_line(str(one), 200)}: {reason_of(error)}.") from error


def make_folder(path: Path, option: str = "--out") -> None:
    """Make a folder for output, if it does not exist.

    Raises InputError, which names the option, if it cannot be made or is not writable; NotWritten if the disk is full.
    """
    said = f"{option} {on_one_line(str(path), 200)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotWritten(f"{said}: the folder cannot be made: {reason_of(error)}. {_NOTHING}") from error
        raise InputError(f"{said}: the folder cannot be made: {reason_of(error)}.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{said}: the folder is not writable.")


@contextlib.contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises InputError if another process uses it, OutOfReach for a broken disk."""
    with reading(path):
        handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # for file systems without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock always ends with the process
            except BlockingIOError:
                raise InputError(f"{path}: another process uses this folder.") from None
        yield
    finally:
        os.close(handle)


def is_unborn(path: Path) -> bool:
    """Return whether a folder has only what a run makes before its config: the run was killed right after its start."""
    if (path / CONFIG).exists():
        return False
    made = {METRICS, "checkpoints", "figures", ORIGIN, f".{ORIGIN}.partial", f".{CONFIG}.partial"}
    found = list(path.rglob("*"))
    within = {str(entry.relative_to(path)) for entry in found}
    return within <= made and not any(entry.name == METRICS and entry.stat().st_size for entry in found)


def partition_of(data: FederatedData) -> dict[str, Any]:
    """Return which node has which training samples (see `forms.Partition`)."""
    return {
        "classes": list(data.counted),
        "counts": data.label_counts().tolist(),
        "sizes": data.train_parts.lengths().tolist(),
        "nodes": list(data.node_names),
        "noun": data.spec.noun(2),
        "columns": {"classification": "class", "multilabel": "label", "regression": data.classes[0]}[data.spec.task],
    }


def refuse_used(path: Path) -> None:
    """Raise InputError if `path` is a file, or a folder that is not empty."""
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise InputError(f"--out {on_one_line(str(path), 200)}: {reason_of(error)}.") from error
    if there and not path.is_dir():
        raise InputError(f"--out {path}: this is a file; name a folder.")
    if path.is_dir() and any(path.iterdir()):
        what = "another run" if (path / CONFIG).exists() else "other files"
        raise InputError(f"--out {path}: the folder contains {what}; name a new one, or continue a run with --resume.")


def free_folder(parent: Path, name: str) -> Path:
    """Return `parent/name`, or the first of `parent/name-2`, `-3`, ... that does not exist."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


def run_folder_of(config: Config) -> Path:
    """Return a new folder in `runs/` that is named after a config."""
    name = f"{config.strategy.name.rsplit(':', 1)[-1]}-{config.data.set_names[0].rsplit('/', 1)[-1]}"
    return free_folder(Path("runs"), f"{name.replace(':', '-')}-seed{config.seed}")
