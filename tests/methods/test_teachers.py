"""Many teachers in one call, and those that are left where a client fails."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from helpers import Make, lines
from helpers.bases import SMALL
from helpers.formulas import normal
from helpers.published import checksum, net

from fedkd.data.spec import Form
from fedkd.methods.teachers import Teachers
from fedkd.models.build import build
from fedkd.runs.run import run


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterable[None]:
    with torch.random.fork_rng():
        yield


def test_many_teachers_in_one_call_are_the_loop_and_pass_gradients() -> None:
    template = net(0.1, torch.float64)
    weights = [net(p, torch.float64).state_dict() for p in (1.0, 2.0, 3.0)]
    loop, batched = Teachers(template, weights), Teachers(template, weights, batched=True)
    assert not loop.batched  # on a CPU
    images = normal(5, 3, 8, 8)
    results = []
    for teachers in (loop, batched):
        x = images.clone().requires_grad_()
        logits = teachers(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        results.append((logits.detach(), gradient))
        assert all(not tensor.requires_grad for w in teachers.weights for tensor in w.values())
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    for k, state_ in enumerate(weights):
        model = net(0.0, torch.float64).eval()
        model.load_state_dict(state_)
        torch.testing.assert_close(results[0][0][k], model(images).detach())
    before = [checksum(w.values()) for w in loop.weights]
    loop(images)
    assert [checksum(w.values()) for w in loop.weights] == before  # eval mode: statistics stay


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention, on a CPU only
@pytest.mark.parametrize("name", ["text_cnn", "text_transformer"])
def test_teachers_of_texts_in_one_call_are_the_loop_and_pass_gradients(name: str) -> None:
    models = [build(name, {"width": 8}, Form("tokens", (6,), vocabulary=9), 3).double() for _ in range(3)]
    weights = [model.state_dict() for model in models]
    texts, results = torch.softmax(normal(4, 6, 9), 2).requires_grad_(), []
    for batched in (False, True):
        teachers = Teachers(models[0], weights, batched=batched)
        logits = teachers(texts)
        (gradient,) = torch.autograd.grad(logits.square().sum(), texts)
        with torch.no_grad():
            torch.testing.assert_close(teachers(texts), logits)
        results.append((logits, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_base_whose_clients_fail_keeps_the_others_as_teachers(tiny: Make, tmp_path: Path) -> None:
    plugin = tmp_path / "shy.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from fedkd import GlobalModelClient\n"
        "from fedkd.strategies.fedavg import FedAvg\n"
        "class Client(GlobalModelClient):\n"
        "    def fit(self, request):\n"
        "        if self.node == 2:\n"
        "            raise ValueError('no')\n"
        "        return super().fit(request)\n"
        "@dataclass(kw_only=True)\n"
        "class Shy(FedAvg):\n"
        "    client = Client\n"
    )
    run(tiny({"strategy": {"name": "fedftg", **SMALL, "base": f"{plugin}:Shy"}, "rounds": 1}), tmp_path / "run")
    line = lines(tmp_path / "run")[1]
    assert line["log"]["teachers"] == [0, 1, 3, 4, 5]
    assert [f["node"] for f in line["failures"]] == [2]
