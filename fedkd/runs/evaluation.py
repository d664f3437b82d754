"""The evaluation at a run's end: scores of the server's model, and of the nodes' models together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import RecordDict

from ..core.client import MODEL, Client
from ..core.environment import Environment
from ..core.strategy import Strategy
from ..data.samples import Samples
from ..errors import described
from ..files import as_json, write
from ..learning.evaluation import predict
from ..messages.arrays import Tensors, tensors_of
from ..models.build import fill
from .run_folder import EVALUATION, MOST_ROWS, RunFolder
from .scores import scores


def keep_evaluation(
    strategy: Strategy, environment: Environment, states: Iterable[tuple[int, RecordDict]], folder: RunFolder
) -> list[str]:
    """Write the scores of a run's models to its folder, if they are classifiers; return a text on each without scores.

    `global`: the server's model on the global test set (of several models `global_<number>`). `personal`: of at most a
    thousand nodes, the model in each one's state on the node's own test samples, all predictions together. `states`:
    the nodes' states after the last round. Raises NotWritten if the disk refuses the file.
    """
    data, problems = environment.data, []
    if data.spec.task != "classification" or not strategy.classifies:
        return []
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, predictions: list[np.ndarray], labels: list[np.ndarray]) -> None:
        try:
            found[name] = scores(np.concatenate(predictions), np.concatenate(labels))
        except ValueError as error:  # such as a model that has diverged
            problems.append(f"{name}: no scores in {EVALUATION}: {error}.")

    try:
        models = strategy.global_models() if len(data.test.labels) else []
        for number, (architecture, weights) in enumerate(models):
            name = "global" if len(models) == 1 else f"global_{number}"
            add(name, [_logits(environment, architecture, weights, data.test)], [data.test.labels])
        if strategy.client_class().evaluate is Client.evaluate and data.clients <= MOST_ROWS:
            predictions, labels = [], []
            for node, state in states:
                test, weights_of_node = data.test_of(node), state.array_records.get(MODEL)
                if weights_of_node is not None and len(test.labels):
                    architecture = environment.architecture_of(node)
                    predictions.append(_logits(environment, architecture, tensors_of(weights_of_node), test))
                    labels.append(test.labels)
            if predictions:
                add("personal", predictions, labels)
                if "personal" in found:
                    found["personal"]["nodes"] = len(predictions)
    except Exception as error:  # no score may cost a finished run
        problems.append(f"{EVALUATION} lacks scores: {described(error)}.")
    if found:
        write(folder.path / EVALUATION, as_json({"classes": list(data.classes), "models": found}))
    return problems


def _logits(environment: Environment, architecture: Any, weights: Tensors, test: Samples) -> np.ndarray:
    model = environment.model(architecture)
    fill(model, weights)
    return predict(model, test, environment.preprocess).numpy()
