"""The model of a run folder: of the last or the best round, of the server or of a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import RecordDict

from ..config import Config, SetsConfig, read_config
from ..core.chosen_model import chosen_model
from ..core.environment import Environment
from ..core.setup import Setup
from ..core.state import restore_state
from ..core.wrapper import make_strategy
from ..data.federation import federate
from ..errors import InputError, unknown
from ..runs import checkpoints
from ..runs.metrics import versions
from ..runs.run_folder import CONFIG, RunFolder, known_samples, refuse_odd_files
from .trained import About, TrainedModel

Which = Literal["last", "best"]


def model_of_run(path: Path, node: int | None = None, which: Which = "last") -> TrainedModel:
    """Return a model of the run in a folder: a node's, or without `node` the server's; the run's data are not needed.

    `which`: after the last round with a checkpoint, or after the best one by `checkpoint.best`. Raises InputError for a
    folder without a run, a node that is not there, and a method without such a model.
    """
    setup, state_of, number = _restored(path, which)
    return model_after(setup, state_of, path, number, node, which)


def models_of_run(path: Path, which: Which = "last") -> dict[int, TrainedModel]:
    """Return the model of each node of the run in a folder, as `model_of_run`."""
    setup, state_of, number = _restored(path, which)
    nodes = range(setup.environment.data.clients)
    return {node: model_after(setup, state_of, path, number, node, which) for node in nodes}


StateOf = Callable[[int], RecordDict | None]  # the state of a node; None if it has none


def _restored(path: Path, which: Which) -> tuple[Setup, StateOf, int]:
    folder = RunFolder(path)
    if which not in get_args(Which):
        raise unknown("which", str(which), get_args(Which))
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: there is no run; its {CONFIG} is missing.")
    refuse_odd_files(path)
    config = read_config(path / CONFIG)
    home = folder.best if which == "best" else folder.checkpoints
    if checkpoints.there_are_none(home):
        if which == "best":
            raise InputError(
                f"{path} has no best round: set checkpoint.best = 'auto', or a metric, in the run's config."
            )
        raise InputError(f"{path} has no checkpoint yet.")
    number, checkpoint = checkpoints.latest(home)
    strategy, table = make_strategy(config.strategy)
    restore_state(strategy, checkpoints.load_server(checkpoint))
    data = known_samples(path)

    def state_of(node: int) -> RecordDict | None:
        file = checkpoint / "nodes" / f"{node}.safetensors"
        return checkpoints.load_node(file) if file.exists() else None

    return Setup(strategy, Environment(config.model_copy(update={"strategy": table}), data)), state_of, number


def model_after(
    setup: Setup, state_of: StateOf, path: Path, number: int, node: int | None, which: Which = "last"
) -> TrainedModel:
    """Return a model of a run after round `number`, whose state the strategy has; `path`: the run's folder."""
    config, data = setup.environment.config, setup.environment.data
    chosen = chosen_model(setup, state_of, node)
    about = About(
        chosen.architecture,
        padded=data.padded,
        features=not setup.strategy.classifies,
        data=SetsConfig(**config.data.model_dump(include=set(SetsConfig.model_fields) - {"root", "download"})),
        card=_card(config, path, number, None if node is None else int(node), which),
    )
    return TrainedModel(chosen.module, data.codec, data.classes, about)


def real_samples(path: Path, most: int = 32) -> np.ndarray | None:
    """Return some raw test samples of the run in a folder; None if its data are not on this machine, or have none."""
    try:
        config = read_config(path / CONFIG)
        found = None if config.data.sites is not None else federate(config.data, config.seed).test.inputs[:most]
    except InputError:
        return None
    return found if found is not None and len(found) else None


def _card(config: Config, path: Path, number: int, node: int | None, which: Which) -> dict[str, Any]:
    """Return where a model comes from."""
    lines = [line for line in RunFolder(path).lines() if line["round"] <= number and line["metrics"]]
    measured = lines[-1] if lines else None
    metrics: dict[str, Any] = {}
    if measured is not None:
        of_node = {name: nodes[str(node)] for name, nodes in measured["nodes"].items() if str(node) in nodes}
        metrics = measured["metrics"] if node is None else of_node
    partition = config.data.partition
    return {
        "strategy": config.strategy.name,
        "strategy_options": config.strategy.options,
        "data": list(config.data.set_names) if config.data.sites is None else ["the sites' own samples"],
        "partition": None if partition is None else partition.model_dump(mode="json", exclude_none=True),
        "round": number,
        "which": which,
        "node": node,
        "seed": config.seed,
        "measured_in_round": None if measured is None else measured["round"],
        "metrics": metrics,
        "versions": versions(),
    }
