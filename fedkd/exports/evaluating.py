"""A model's scores on labelled samples: of a named set, a file or folder, or the tests of a config's federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from ..config import SetsConfig, overridden, read_config
from ..data.alignment import in_kinds_of, in_spec
from ..data.classes import in_classes
from ..data.codec import unseen
from ..data.federation import federate
from ..data.named_sets import FILE, load_set
from ..data.samples import Dataset, Samples
from ..data.table_files import PARQUET_ENDINGS, TEXT_ENDINGS, from_frame, read_frame
from ..errors import InputError, on_one_line, some
from ..learning.evaluation import measured
from ..runs.run_folder import CONFIG, MOST_ROWS
from ..runs.scores import scores
from .trained import TrainedModel

_LEAST_SIDE = 4  # of `data.size`; smaller images must be as the model takes them
_TESTS = {"test", "testing", "val", "valid", "validation"}  # folders in a folder of images


class Labelled(NamedTuple):
    """Labelled raw samples, as the model takes them; who has which of them, by position; what was done to them."""

    samples: Samples
    nodes: dict[str, np.ndarray]
    notes: list[str]


def evaluate(model: TrainedModel, data: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a model's scores on labelled samples: `scores` of all, `nodes`: of those of each node, and `notes`.

    `data`: a run folder or a run file, whose test samples are taken; or a named set, a file or a folder: its test
    samples, or all of them if it has no test part of its own. `overrides`: `key=value` of `[data]`, such as
    `label=diagnosis`, or of the run file. Scores of classes: see `runs.scores`; of other tasks: see
    `learning.evaluation.measured`. Raises InputError for samples or classes that are not those of the model.
    """
    data = str(data)
    if model.about.features:
        raise InputError("this model is an encoder: its output are features, so there are no labels to compare.")
    found = _labelled(model, data, overrides)
    if not len(found.samples.labels):
        raise InputError(f"{on_one_line(data, 200)}: there is no labelled sample.")
    outputs = model.outputs(found.samples.inputs)
    if not bool(outputs.isfinite().all()):
        raise InputError("the model's outputs are not finite.")

    def of(positions: np.ndarray | slice) -> dict[str, Any]:
        some_labels = found.samples.labels[positions]
        if model.task == "classification":
            return scores(outputs[positions].numpy(), some_labels)
        part = Samples(found.samples.inputs[positions], some_labels)
        return {"samples": len(some_labels)} | measured(outputs[positions], part, model.codec)

    whole = of(slice(None))
    kept = ("samples", "accuracy", "balanced_accuracy", "macro_f1", "ece", "mse", "mae", "r2", "loss")
    nodes = {
        name: {key: value for key, value in of(positions).items() if key in kept}
        for name, positions in found.nodes.items()
        if len(positions)
    }
    return {"data": data, "classes": list(model.classes), "scores": whole, "nodes": nodes, "notes": found.notes}


def _labelled(model: TrainedModel, data: str, overrides: Sequence[str]) -> Labelled:
    path = Path(data).expanduser()
    if (path / CONFIG).is_file():
        path = path / CONFIG
    if path.suffix == ".toml":
        return _of_federation(model, path, overrides)
    return _of_set(model, data, path, overrides)


def _of_federation(model: TrainedModel, path: Path, overrides: Sequence[str]) -> Labelled:
    config = read_config(path, overrides)
    if config.data.sites is not None:
        raise InputError(
            f"{path}: its samples are at real sites; name a set, or a config with samples on this machine."
        )
    data = federate(config.data, config.seed)
    own = Dataset(data.test.take(np.arange(0)), data.test, data.classes, spec=data.spec)
    nodes = {}
    if data.clients <= MOST_ROWS:
        names = data.node_names or tuple(f"node {node}" for node in range(data.clients))
        nodes = {names[node]: np.asarray(data.test_parts[node]) for node in range(data.clients)}
    notes: list[str] = []
    return Labelled(_fitted(model, own, str(path), notes).test, nodes, notes)


def _of_set(model: TrainedModel, data: str, path: Path, overrides: Sequence[str]) -> Labelled:
    config = _with(model.about.data, model, overrides)
    own_tests = True
    if path.suffix.lower() in (*TEXT_ENDINGS, *PARQUET_ENDINGS) and path.is_file():
        frame = read_frame(path, texts=config.text is not None)
        columns = set(map(str, frame.columns))
        absent = {key: None for key in ("node", "split", "time") if getattr(config, key) not in columns}
        config = config.model_copy(update={**absent, "drop": [name for name in config.drop if name in columns]})
        own_tests = config.split is not None or config.time is not None
        dataset = from_frame(frame, config, str(path), model.classes if model.task == "classification" else None)
    else:
        name, own_tests = _name_of(data, path)
        dataset = load_set(config, name)
    notes = list(dataset.notes)
    dataset = _fitted(model, dataset, data, notes)
    parts = [dataset.test] if own_tests else [dataset.train, dataset.test]
    inputs, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "labels"))
    whole = Samples(inputs, labels)
    nodes: dict[str, np.ndarray] = {}
    if dataset.nodes is not None:
        holders = np.concatenate(dataset.nodes[1:] if own_tests else dataset.nodes)
        nodes = {str(name): np.flatnonzero(holders == name) for name in np.unique(holders)[:MOST_ROWS]}
    if not own_tests:
        notes.append("the set has no test part of its own: all of its samples are taken")
    return Labelled(whole, nodes, notes)


def _with(config: SetsConfig, model: TrainedModel, overrides: Sequence[str]) -> SetsConfig:
    """Return how the samples of the run were read, with changes, for other samples of the same form."""
    spec = model.codec.spec
    more: dict[str, Any] = {"train_per_class": None, "test_per_class": None, "classes": None}
    if spec.kind == "image" and spec.shape[1] == spec.shape[2] >= _LEAST_SIDE:
        more |= {"size": spec.shape[1]} | ({"channels": spec.shape[0]} if spec.shape[0] in (1, 3) else {})
    if spec.kind in ("series", "tokens"):
        more["length"] = spec.shape[-1]
    table = overridden(
        {**config.model_dump(exclude_none=True), **more}, [one.removeprefix("data.") for one in overrides]
    )
    try:
        return SetsConfig.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--set {'.'.join(map(str, first['loc']))}: {on_one_line(first['msg'])}.") from error


def _name_of(data: str, path: Path) -> tuple[str, bool]:
    """Return the name of a set by which it is loaded, and whether it has a test part of its own."""
    if not path.exists():
        return data, True
    if path.suffix == ".npz":
        return f"npz:{path.resolve()}", True
    folders = {one.name.lower() for one in path.iterdir() if one.is_dir()} if path.is_dir() else set()
    others = [*path.glob("*.npy"), *path.glob("*.parquet"), *path.glob("*.json")] if path.is_dir() else []
    if folders and not others:
        return f"images:{path.resolve()}", bool(_TESTS & folders)
    return f"{FILE}{path.resolve()}", True


def _fitted(model: TrainedModel, dataset: Dataset, data: str, notes: list[str]) -> Dataset:
    """Return a set in the model's description and classes. Raises InputError if it has others."""
    spec, said = model.codec.spec, on_one_line(data, 200)
    dataset = in_kinds_of(dataset, spec)
    if found := spec.misfit(dataset.about):
        raise InputError(f"{said} does not fit the model: {some(found, 5)}.")
    dataset = in_classes(dataset, model.classes, said, "the model's classes", "rename its classes")
    fitted = in_spec(dataset, spec)
    if spec.kind == "table":
        counts = unseen(model.codec, np.concatenate([fitted.train.inputs, fitted.test.inputs]))
        notes += [f"column {name!r}: {count} values are no category of the model" for name, count in counts.items()]
    return replace(fitted, train=_trimmed(fitted.train, spec.shape), test=_trimmed(fitted.test, spec.shape))


def _trimmed(samples: Samples, shape: tuple[int, ...]) -> Samples:
    """Return samples without steps or tokens behind those that the model takes, which `data.length` has cut already."""
    return samples if samples.inputs.ndim < 2 else samples._replace(inputs=samples.inputs[..., : shape[-1]])
