"""Predictions of many files, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import as_cell, write_output
from ..runs.run_folder import make_folder
from .new_samples import parts_of_files
from .trained import Predictions, TrainedModel


class Predicted(NamedTuple):
    """How many samples a file has, and what was done to those that are not as the model takes them."""

    samples: int
    notes: tuple[str, ...]


def write_predictions(model: TrainedModel, paths: Sequence[Path], out: Path, *, force: bool = False) -> Predicted:
    """Write the predictions for the samples in files and folders to a CSV file, a row for each.

    Columns: `sample`, its file, with its row; `label`, or several separated by `;`; `probability` of the label; then
    the probability of each class or label, `p:<name>`, or each target in its units. Raises InputError, which names
    the file, for samples that the model does not take, and for an `out` that is there, without `force`.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file.")
    if out.exists() and not force:
        raise InputError(f"{out} is there already; --force overwrites it.")
    if not out.parent.is_dir():
        make_folder(out.parent)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_header(model))
    samples = 0
    notes: dict[str, None] = {}
    for part in parts_of_files(paths, model.codec.spec, model.about.data):
        found = model.of_outputs(model.outputs(part.inputs), part.notes)
        rows.writerows(_rows(part.names, found))
        samples += len(found)
        notes |= dict.fromkeys(found.notes)
    write_output(out, text.getvalue().encode())
    return Predicted(samples, tuple(notes))


def _header(model: TrainedModel) -> list[str]:
    if model.task == "regression":
        return ["sample", *map(_text, model.classes)]
    chosen = ["label", "probability"] if model.task == "classification" else ["labels"]
    return ["sample", *chosen, *(f"p:{name}" for name in model.classes)]


def _text(name: str) -> str:
    """Return a name as a cell: of a file whose name is no UTF-8, and of one that a spreadsheet would compute."""
    plain = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        float(plain)
    except ValueError:
        return str(as_cell(plain))
    return plain


def _rows(names: Sequence[str], found: Predictions) -> list[list[str]]:
    if found.values is not None:
        return [
            [_text(name), *(f"{value:.6g}" for value in row)] for name, row in zip(names, found.values, strict=True)
        ]
    assert found.probabilities is not None
    rows = []
    for name, label, shares in zip(names, found.labels, found.probabilities, strict=True):
        chosen = [_text(";".join(label))] if isinstance(label, list) else [_text(label), f"{shares.max():.6f}"]
        rows.append([_text(name), *chosen, *(f"{share:.6f}" for share in shares)])
    return rows
