"""Fixtures of all tests: a tiny run on digits, the real sets beside the project, Ray, runs written by hand."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import tomli_w
import torch

from fedkd.config import Config, parse_config, to_table

pytest.register_assert_rewrite("helpers")

from helpers import HOME, TINY, merged  # noqa: E402
from helpers.runs_by_hand import Write, a_line  # noqa: E402
from helpers.sets import real_set  # noqa: E402
from helpers.shell import Shell  # noqa: E402


@pytest.fixture(autouse=True)
def _log_of_fedkd() -> None:
    """Let fedkd's log be heard, whatever a test before has done: Flower's databases turn off the logs of all others,
    `fedkd check` wants errors only, and an app of a deployment writes its log itself.
    """
    log = logging.getLogger("fedkd")
    log.disabled, log.propagate, log.handlers = False, True, []
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """Return a function that makes the tiny config with dotted keys changed."""

    def make(changes: dict[str, Any] | None = None) -> Config:
        return parse_config(merged(TINY, changes or {}))

    return make


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the path of a file with the tiny config."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with plain MNIST, USPS and SVHN."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("mnist", "usps", "svhn"):
        np.savez(root / f"{name}.npz", **real_set(name))
    return root


@pytest.fixture(autouse=True)
def _global_streams_stay_untouched() -> Iterator[None]:
    """Fail any test in whose course the project drew from, or seeded, a global generator."""
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """Wait for no disk: on a busy one that takes longer than the tests. The test of it puts its own in place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start Ray once for all tests that attach to a running cluster."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a run folder: accuracies of rounds 1, 2, ... of two nodes that are 0.2 apart."""

    def make(
        name: str,
        seed: int,
        accuracies: list[float],
        changes: dict[str, Any] | None = None,
        /,
        summary: dict[str, Any] | None = None,
        **origin: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = parse_config(merged(TINY, {"seed": seed, "rounds": len(accuracies), **(changes or {})}))
        (folder / "config.toml").write_text(tomli_w.dumps(to_table(config)))
        lines = [a_line(0, {}, {}, 0)]
        for number, value in enumerate(accuracies, 1):
            nodes = {"personal/accuracy": {"0": value - 0.1, "1": value + 0.1}}
            lines.append(a_line(number, {"personal/accuracy": value}, nodes, 500_000))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        about = {"status": "completed", "versions": {"fedkd": "0.1.0"}, **(summary or {})}
        (folder / "summary.json").write_text(json.dumps(about))
        began = {
            "images": "all",
            "partition": f"print of {seed}",
            "files": {"mine.py": "one"},
            "versions": {"torch": "2"},
            **origin,
        }
        (folder / "origin.json").write_text(json.dumps(began))
        return folder

    return make


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Return a shell in a folder that looks like the project's."""
    for name in ("configs", "deploy"):
        shutil.copytree(HOME / name, tmp_path / name)
    shell = Shell(tmp_path)
    yield shell
    shell.end()
