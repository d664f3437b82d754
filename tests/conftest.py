"""What several tests need: a tiny run on digits, and the real sets beside the project, where they are."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from fedkd.config import Config, parse_config
from fedkd.core.state import unpack
from fedkd.runs.checkpoints import latest, load_server
from fedkd.runs.run import resume, run

SETS = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
PLUGINS = Path(__file__).resolve().parent / "plugins"

TINY: dict[str, Any] = {
    "seed": 0,
    "rounds": 2,
    "data": {
        "name": "digits",
        "partition": {"scheme": "client_dirichlet", "clients": 6, "alpha": 0.5, "size": 24},
        "node_test": 20,
    },
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
    "strategy": {"name": "fedavg"},
    "evaluate": {"every": 1},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with dotted keys changed; None deletes."""
    table = copy.deepcopy(base)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return table


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """Return a function that makes the tiny config with dotted keys changed."""

    def make(changes: dict[str, Any] | None = None) -> Config:
        return parse_config(merged(TINY, changes or {}))

    return make


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with plain MNIST, USPS and SVHN."""
    if not SETS.is_dir():
        pytest.skip("the real image sets are not beside the project")
    spec = importlib.util.spec_from_file_location("load_sets", SETS / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("sets")
    for name in ("mnist", "usps", "svhn"):
        np.savez(root / f"{name}.npz", **module.load(SETS / f"{name}.npz"))
    return root


@pytest.fixture(autouse=True)
def _global_streams_stay_untouched() -> Iterator[None]:
    """Fail any test in whose course the project drew from, or seeded, a global generator."""
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start Ray once for all tests that attach to a running cluster."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        del line["seconds"]
    return found


def server_state(checkpoint: Path) -> dict[str, Any]:
    """Return the server's state in a checkpoint, or in the newest one of a run: the declared fields by name."""
    path = latest(checkpoint / "checkpoints")[1] if (checkpoint / "checkpoints").is_dir() else checkpoint
    state: dict[str, Any] = unpack(load_server(path))
    return state


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file of a run's newest checkpoint."""
    home = max((folder / "checkpoints").glob("round-*"))
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def halves_are_the_whole(config: Config, whole: Path, halves: Path) -> None:
    """Check that a run of six rounds ends as in `whole` where it is stopped after three and continued."""
    run(config.model_copy(update={"rounds": 3}), halves)
    resolved = halves / "config.toml"
    resolved.write_text(resolved.read_text().replace("rounds = 3", "rounds = 6"))
    resume(halves)
    assert lines(halves) == lines(whole)
    assert checkpoint_bytes(halves) == checkpoint_bytes(whole)
