"""What several tests need: a tiny run on digits, what runs leave behind, and where things are."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedkd.config import Config
from fedkd.core.state import unpack
from fedkd.runs.checkpoints import latest, load_server
from fedkd.runs.run import resume, run
from fedkd.testing import merged as merged

HOME = Path(__file__).resolve().parents[2]
SETS = HOME / ".." / "shared" / "data"
PLUGINS = HOME / "tests" / "plugins"

Make = Callable[..., Config]  # the fixture `tiny`

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


def has_defaults(method: object, values: dict[str, Any]) -> None:
    """Check that a method, made without options, has these values, each of the same type."""
    found = {name: getattr(method, name) for name in values}
    assert [(name, type(value), value) for name, value in found.items()] == [
        (name, type(value), value) for name, value in values.items()
    ]


def default_signals() -> None:
    """Take signals in a child as a terminal's programs do (`preexec_fn`): a job in the background ignores some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


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
