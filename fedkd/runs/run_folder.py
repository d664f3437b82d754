"""The run folder: config.toml, metrics.jsonl, summary.json, checkpoints/ and figures/."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError

from ..config import Config, DistillConfig, to_table
from ..core.record import Captioned
from ..errors import InputError, RunError, on_one_line, reason_of
from ..masking import masked
from .origin import ORIGIN, Origin, write_origin

CONFIG, METRICS, SUMMARY, PARTITION = "config.toml", "metrics.jsonl", "summary.json", "partition.json"
MOST_ROWS = 1000  # the largest number of nodes whose label counts are stored and drawn


class RunFolder:
    """The folder of one run. A line is written to disk when its round ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"

    def create(self, config: Config | DistillConfig, origin: Origin) -> None:
        """Make the folder, and write what the run begins with and the config with all values but secrets.

        Raises InputError if the folder has other content, RunError if the files cannot be written.
        """
        refuse_used(self.path)
        for folder in (self.path, self.checkpoints, self.figures):
            make_folder(folder)
        with writing(self.path / CONFIG):
            (self.path / METRICS).touch()
            write_origin(self.path, origin)
            partial = self.path / f".{CONFIG}.partial"
            partial.write_text(tomli_w.dumps(masked(to_table(config))), encoding="utf-8")
            os.replace(partial, self.path / CONFIG)  # last, because with it the folder is a run that can be continued

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises RunError if it cannot be written."""
        path = self.path / METRICS
        with writing(path):
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "the file was removed during the run")
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl before the first damaged line."""
        return _read_lines(self.path / METRICS)[0]

    def keep_partition(self, classes: Sequence[str], counts: np.ndarray) -> None:
        """Write which node has which images: the classes, and the number of images of each, nodes x classes."""
        (self.path / PARTITION).write_text(
            json.dumps({"classes": list(classes), "counts": counts.tolist()}) + "\n", encoding="utf-8"
        )

    def keep_images(self, name: str, number: int, row: Captioned) -> None:
        """Write a round's row of images side by side as one PNG, without scaling; captions are the PNG's text.

        For images with neither 1 nor 3 channels, the first channel is shown.
        """
        home = self.figures / name
        home.mkdir(exist_ok=True)  # not its parents: a run folder that was removed does not come back
        strip = np.concatenate(list(row.images.transpose(0, 2, 3, 1)), axis=1)
        about = PngInfo()
        about.add_itxt("captions", json.dumps(row.captions))
        partial, final = home / f".round-{number:06d}.partial", home / f"round-{number:06d}.png"
        Image.fromarray(strip if strip.shape[2] == 3 else strip[:, :, 0]).save(partial, "PNG", pnginfo=about)
        os.replace(partial, final)

    def image_folders(self) -> list[Path]:
        """Return the folders in figures/ that contain images of rounds."""
        return sorted(path for path in self.figures.iterdir() if path.is_dir())

    def rewind(self, number: int, unit: str = "round") -> None:
        """Drop the summary, and lines of rounds (or iterations) after `number`: a resumed run writes them again.

        Raises InputError if earlier lines are missing or damaged.
        """
        kept = [line for line in self.lines() if line[unit] <= number]
        if number >= 0 and (not kept or kept[-1][unit] != number):
            reached = f"is whole up to {unit} {kept[-1][unit]}" if kept else "has no whole line"
            raise InputError(
                f"{self.path / METRICS} {reached}, its checkpoint is of {unit} {number}: what was measured between "
                "them is lost. Restore the file, or run the config again in a new folder."
            )
        with writing(self.path / METRICS):
            (self.path / SUMMARY).unlink(missing_ok=True)
            partial = self.path / f".{METRICS}.partial"
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(partial, self.path / METRICS)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json. Raises RunError if it cannot be written."""
        with writing(self.path / SUMMARY):
            partial = self.path / f".{SUMMARY}.partial"
            partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.path / SUMMARY)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl without an incomplete last line, which may be in the process of writing.

    Raises ValueError if another line is damaged.
    """
    lines, count = _read_lines(path)
    if len(lines) < count - 1:
        raise ValueError(f"line {len(lines) + 1} of {path.name} is damaged")
    return lines


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines before the first damaged line, and the number of lines of the file."""
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = []
    for text in texts:
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            break
    return lines, len(texts)


class NotWritten(RunError):
    """A file of a run that cannot be written: the disk is full, read-only, or its folder is gone."""


@contextlib.contextmanager
def writing(path: Path, size: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn what goes wrong with a disk inside the `with` block into `NotWritten` with the path and the space.

    `size`: a function that returns about how many bytes are needed; 0 if they are few.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        home = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))
        space = f"{shutil.disk_usage(home).free / 1e6:.1f} MB are free there"
        space += f", about {size() / 1e6:.1f} MB are needed" if size() else ""
        if not path.parent.is_dir():
            raise NotWritten(
                f"{path} cannot be written: the folder {path.parent} was removed during the run."
            ) from error
        raise NotWritten(
            f"{path} cannot be written: {reason_of(error)}; {space}. What was complete is kept: mend the disk or make "
            "space, then continue with --resume."
        ) from error


def make_folder(path: Path, option: str = "--out") -> None:
    """Make a folder for output, if it does not exist.

    Raises InputError, which names the option, if it cannot be made or is not writable.
    """
    said = f"{option} {on_one_line(str(path), 200)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{said}: the folder cannot be made: {reason_of(error)}.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{said}: the folder is not writable.")


@contextlib.contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises InputError if another process uses it."""
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
