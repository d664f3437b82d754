"""Figures of a run: the pictures in its folder, drawn at its end; and drawn again for a paper or slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..config import Config
from ..core.environment import Environment
from ..core.log import undrawable
from ..errors import InputError, described
from ..files import write_output
from . import charts, pictures
from .results import Run, read_run
from .run_folder import RunFolder, make_folder
from .styles import SCREEN, STYLES, Drawing, Style, StyleName, content_of, in_style, write_drawing
from .weight_matrices import last_matrix


def draw(environment: Environment, folder: RunFolder) -> list[str]:
    """Draw the figures of a run into its folder, as PNG; return a text on each that cannot be drawn."""
    config = environment.config
    sets = config.data.set_names
    named = ", ".join(sets) if len(sets) < 3 else f"{sets[0]} and {len(sets) - 1} sets more"  # titles are short
    about = f"{config.strategy.name} on {named}, seed {config.seed}"
    title = f"{partition_name(config)}, seed {config.seed}" if config.data.partition is not None else ""
    run = Run(folder.path, {}, folder.lines(), None)
    lines = dict.fromkeys(text for line in run.lines for text in undrawable(line["log"]))
    problems = [f"{text}." for text in lines][:3]
    for name, make in _drawings(run, folder, environment.data.classes, about, title, SCREEN).items():
        try:
            write_picture(make, folder.figures / f"{name}.png")
        except Exception as error:  # no figure may cost a finished run
            problems.append(f"The figure {name} cannot be drawn: {described(error)}.")
    return problems


def redraw(path: Path, out: Path, style: StyleName) -> tuple[list[Path], list[str]]:
    """Draw the figures of a run again in a style, as PDF, SVG and PNG, with their numbers as CSV.

    Returns the paths, and a text on each figure that cannot be drawn. Raises InputError for a folder without a run, and
    if nothing can be drawn.
    """
    run = read_run(path)
    classes: list[str] = (run.partition() or {"classes": []})["classes"]
    drawings = _drawings(run, RunFolder(path), classes, "", "", STYLES[style])
    if (evaluated := run.evaluation()) is not None:  # not at the run's end, which stays fast
        drawings["calibration"] = partial(charts.calibration, evaluated, STYLES[style])
        for model in evaluated["models"]:
            drawings[f"confusion-{model}"] = partial(charts.confusion, evaluated, model, STYLES[style])
    return write_all(drawings, path, out, style)


def write_all(
    drawings: Mapping[str, Callable[[], Drawing | None]], path: Path, out: Path, style: StyleName
) -> tuple[list[Path], list[str]]:
    """Write drawings of the run in a folder, as `redraw`."""
    make_folder(out)
    paths: list[Path] = []
    problems: list[str] = []
    with in_style(STYLES[style]):
        for name, make in drawings.items():
            try:
                drawing = make()
            except Exception as error:  # such as a picture that is cut off; the others can still be drawn
                problems.append(f"The figure {name} cannot be drawn: {described(error)}.")
                continue
            if drawing is not None:
                paths += write_drawing(drawing, out, name)
    if not paths:
        raise InputError(" ".join([f"{path}: there is nothing to draw.", *problems]))
    return paths, problems


def figures_of(path: Path) -> dict[str, Callable[[], Drawing | None]]:
    """Return the figures of the run in a folder, each as a function that draws it in the style of run folders.

    Beside those of `figures/`: the curves of each kind of metric, such as `accuracy` and `loss`.
    """
    run = read_run(path)
    classes: list[str] = (run.partition() or {"classes": []})["classes"]
    found = _drawings(run, RunFolder(path), classes, run.strategy, "", SCREEN)
    for ending in sorted({name.rpartition("/")[2] for name in run.metrics()}):
        found[ending] = partial(charts.curves, run.lines, run.strategy, SCREEN, ending)
    return found


def write_picture(make: Callable[[], Drawing | None], path: Path) -> Path | None:
    """Draw a figure in the style of run folders and write it to a path, in the format of its ending; return the path.

    None if there is nothing to draw.
    """
    with in_style(SCREEN):
        drawing = make()
        if drawing is None:
            return None
        write_output(path, content_of(drawing.figure, path.suffix.lower().removeprefix(".")))
    return path


def _drawings(
    run: Run, folder: RunFolder, classes: Sequence[str], about: str, partition_title: str, style: Style
) -> dict[str, Callable[[], Drawing | None]]:
    """Return the figures of a run by their names, each as a function that draws it."""
    lines = run.lines
    found: dict[str, Callable[[], Drawing | None]] = {
        "curves": lambda: charts.curves(lines, about, style),
        "weights": lambda: charts.weights(last_matrix(lines, run.path), about, style),
        "ensemble": lambda: charts.ensemble(lines, classes, about, style),
        "features": lambda: charts.features(lines, classes, about, style),
    }
    if (kept := run.partition()) is not None:  # with real sites, the partition is not known
        found["partition"] = lambda: charts.partition(kept, partition_title, style)
    for images in folder.image_folders():
        found[images.name] = partial(pictures.over_rounds, images, f"{images.name}: {about}", style)
    return found


def check_picture(option: str, path: Path) -> None:
    """Raise InputError, which names the option, if no picture can be written to a path: a folder, an unknown ending."""
    valid = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in valid:
        raise InputError(f"{option} {path}: a picture needs one of the endings .{', .'.join(valid)}.")
    if path.is_dir():
        raise InputError(f"{option} {path}: this is a folder; name a file, such as partition.png.")
    make_folder(path.parent, option)


def partition_name(config: Config) -> str:
    """Return the partition as text, such as `dirichlet (clients 20, alpha 0.1)`."""
    partition = config.data.partition
    assert partition is not None, "a run has one"
    return _in_words({"scheme": partition.scheme, **(partition.model_extra or {})})


def _in_words(table: dict[str, Any]) -> str:
    parts = [
        f"{key} {_in_words(value) if isinstance(value, dict) else value}"
        for key, value in table.items()
        if key != "scheme"
    ]
    return " ".join([str(table["scheme"]), *([f"({', '.join(parts)})"] if parts else [])])
