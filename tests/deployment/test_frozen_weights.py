"""Frozen weights are never sent, so the server compares a hash of them before round 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from helpers import Make, merged
from helpers.federations import IDS, events, metrics_of, partitioned, start
from helpers.loopback import Clock, Loopback

from fedkd import RunError
from fedkd.config import Config, parse_config, to_table
from fedkd.core.environment import Environment
from fedkd.data.spec import Form
from fedkd.deployment.introduction import JOIN
from fedkd.deployment.on_site import SiteApp
from fedkd.models.build import build
from fedkd.models.freezing import frozen_hash
from fedkd.runs.run import run
from fedkd.streams import default_stream, torch_stream


def weights(folder: Path, name: str, seed: int = 0, add: float = 0.0) -> str:
    """Write a file of an MLP's weights; `add` changes one number of its body."""
    with default_stream(torch_stream(seed, 0, "server", "pretrained")):
        state = build("mlp", {"hidden": [16]}, Form("image", (1, 8, 8)), 10).state_dict()
    next(iter(state.values())).view(-1)[3] += add
    torch.save(state, folder / name)
    return str(folder / name)


def with_other_file(grid: Loopback, config: Config, id: int, model: dict[str, Any]) -> None:
    """Let one site read the config with another `[model]`, as if its copy of a file were another one."""
    other = parse_config(merged(to_table(config), {"model": model}))
    grid.app = SiteApp(lambda run_config: other if run_config else config)
    grid.contexts[id].run_config = {"other": True}


def introductions(grid: Loopback) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []

    def keep(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == JOIN:
            heard.append({k: dict(v) for k, v in reply.content.config_records.items()})
        return reply

    grid.tampered = keep
    return heard


def test_a_site_with_other_frozen_weights_is_refused_by_name(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    model = {"name": "mlp", "hidden": [16], "weights": weights(tmp_path, "a.pt"), "train": "head"}
    config = tiny({"model": model, "timeout": 5.0})
    grid = partitioned(config)
    with_other_file(grid, config, IDS[2], {**model, "weights": weights(tmp_path, "b.pt", add=2**-20)})
    with pytest.raises(RunError, match=r"5 of 6 sites .* partition-2 refused: its frozen weights of mlp are not the"):
        start(config, grid, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()

    sent = partitioned(config)
    heard = introductions(sent)
    with_other_file(sent, config, IDS[2], {**model, "weights": weights(tmp_path, "c.pt")})  # an equal file
    start(config, sent, tmp_path / "good")
    assert len({str(one).split("frozen")[1] for one in heard}) == 1
    run(config, tmp_path / "simulated")
    mine, theirs = metrics_of(tmp_path / "good"), metrics_of(tmp_path / "simulated")
    assert [line["metrics"] for line in mine] == [line["metrics"] for line in theirs]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"model": {"name": "mlp", "hidden": [16], "weights": "a.pt"}}, False),  # all weights travel
        ({"strategy.name": "local"}, False),  # no weights travel, and none need be equal
        ({"strategy": {"name": "feddf"}, "data.public": {"size": 40}}, True),
    ],
)
def test_frozen_weights_are_compared_where_models_must_be_equal(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], refused: bool
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    monkeypatch.chdir(tmp_path)
    weights(tmp_path, "a.pt")
    weights(tmp_path, "b.pt", seed=1)
    config = tiny({"model": {"name": "mlp", "hidden": [16], "weights": "a.pt", "train": "head"}, **changes})
    config = config.model_copy(update={"timeout": 5.0})
    grid = partitioned(config)
    heard = introductions(grid)
    own = {**to_table(config)["model"], "weights": "b.pt"}
    with_other_file(grid, config, IDS[0], own)
    if refused:
        with pytest.raises(RunError, match="partition-0 refused: its frozen weights"):
            start(config, grid, tmp_path / "run")
    else:
        start(config, grid, tmp_path / "run")
        assert not [event for event in events(tmp_path / "run") if "refused" in event]
    assert ("frozen" in str(heard)) == ("train" in own)


def test_the_hash_is_of_names_shapes_and_bytes_of_what_is_frozen(tiny: Make, tmp_path: Path) -> None:
    def hash_of(**model: Any) -> str:
        return Environment(tiny({"model": {"name": "mlp", "hidden": [16], **model}})).frozen_hash(0)

    one, other = weights(tmp_path, "a.pt"), weights(tmp_path, "b.pt", add=1.0)
    assert hash_of() == ""
    assert hash_of(weights=one, train="head") == hash_of(weights=one, train="head") != ""
    assert hash_of(weights=one, train="head") != hash_of(weights=other, train="head")
    assert hash_of(train="head") == hash_of(train="head")  # drawn from the run's seed
    assert hash_of(weights=one, train="head") != hash_of(weights=one, train=["features.1"])
    model = Environment(tiny({"model": {"name": "mlp", "hidden": [16], "train": "head"}})).model(0)
    before = frozen_hash(model)
    model.classifier.weight.data += 1
    assert frozen_hash(model) == before
    dict(model.named_buffers())["features.1.weight"].data = dict(model.named_buffers())["features.1.weight"].T.clone()
    assert frozen_hash(model) != before
