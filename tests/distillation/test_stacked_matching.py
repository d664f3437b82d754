"""All classes of many clients in one step of distribution matching are classes and clients one at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.learning import Exact
from torch import Tensor, nn

from fedkd.data.samples import Samples
from fedkd.data.spec import Form
from fedkd.distillation.distillers import DC, DM, IDM
from fedkd.distillation.stacked_matching import Matching, match_stacked, matching_key, why_matched_alone
from fedkd.distillation.virtual_images import RealImages, Virtual
from fedkd.learning.stacked_models import NotStacked, Path
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream

CLASSES: tuple[dict[int, int], ...] = (
    {0: 9, 1: 4, 2: 30},
    {1: 12},
    {0: 3, 3: 7},
)  # real images of each client's classes
PATHS: tuple[Path, ...] = ("vmap", "folded")


def network(node: int | str, name: str = "convnet", **options: Any) -> nn.Module:
    with default_stream(torch_stream(0, 0, node, "network")):
        return build(name, options or {"channels": [6, 6]}, Form("image", (1, 12, 12)), 4).double()


def _stream(client: int, number: int) -> torch.Generator:
    return torch_stream(0, number, client, "step")


def _fresh(client: int, number: int) -> nn.Module:
    return network(100 * number + client)


def clients(model: nn.Module, distiller: DM, steps: tuple[int, ...], fresh: bool) -> list[Matching]:
    """Return the work of each client. Virtual images also of a class of which it has no real ones."""
    draw, made = np.random.default_rng(0), []
    for k, counts in enumerate(CLASSES):
        labels = np.repeat(list(counts), list(counts.values()))
        images = draw.integers(0, 256, (len(labels), 1, 12, 12), dtype=np.uint8)
        held = torch.tensor([*counts, 2]).repeat_interleave(2 + k)
        pixels = torch.from_numpy(draw.normal(size=(len(held), 1, 12, 12)))
        virtual = Virtual(pixels, held, {"velocity": pixels / 10})
        real = RealImages(Samples(images, labels), Exact("none"))
        stream_of, network_of = partial(_stream, k), partial(_fresh, k)
        made.append(Matching(model, distiller, virtual, real, steps[k], stream_of, network_of if fresh else None))
    return made


def _pixels(matching: Matching) -> dict[str, Tensor]:
    return {"images": matching.virtual.images, **matching.virtual.more}


def states_of(model: nn.Module) -> list[dict[str, Tensor]]:
    """Return other weights for each client."""
    return [{n: t * (1 + k / 10) for n, t in model.state_dict().items()} for k in range(len(CLASSES))]


def apart(distiller: DM, path: Path, steps: tuple[int, ...] = (4, 2, 4), fresh: bool = True) -> float:
    """Return the largest difference of a pixel, a velocity or a loss, between stacked and alone."""
    model, worst = network("model"), 0.0
    alone, again = (clients(model, distiller, steps, fresh) for _ in range(2))
    states, losses = states_of(model), []
    for matching, state in zip(alone, states, strict=True):
        model.load_state_dict(state)
        losses.append(matching.alone())
    assert [why_matched_alone(matching) for matching in again] == [None] * len(again)
    assert len({matching_key(matching) for matching in again}) == 1
    for mine, found, wanted, other in zip(again, match_stacked(again, states, path), losses, alone, strict=True):
        assert len(found) == len(wanted)
        worst = max([worst, *(abs(a - b) for a, b in zip(found, wanted, strict=True))])
        assert _pixels(mine).keys() == _pixels(other).keys()
        worst = max([worst, *(float((_pixels(mine)[n] - t).abs().max()) for n, t in _pixels(other).items())])
    return worst


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fresh", [True, False])
def test_classes_and_clients_in_one_step_are_those_one_at_a_time(fresh: bool, path: Path) -> None:
    assert apart(DM(lr=0.5, real_batch=8), path, fresh=fresh) < 1e-10


def test_real_images_are_embedded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.distillation.stacked_matching._ROWS", 5)
    assert apart(IDM(lr=0.5, momentum=0.0, augment=[]), "folded", (2, 2, 2)) < 1e-10


def test_one_client_takes_all_its_classes_in_one_step() -> None:
    model = network("model")
    alone, again = (clients(model, DM(), (3, 3, 3), True)[:1] for _ in range(2))
    assert match_stacked(again, [model.state_dict()], "folded")[0] == pytest.approx(alone[0].alone(), abs=1e-10)


def test_what_can_only_be_matched_one_class_at_a_time_says_why() -> None:
    model = network("model")
    (first, *_) = clients(model, DM(), (1, 1, 1), True)
    assert why_matched_alone(first) is None
    normed = network("model", channels=[6], norm="batch")
    assert "batch norm" in str(why_matched_alone(clients(normed, DM(), (1, 1, 1), True)[0]))
    assert "DC has an iteration of its own" in str(why_matched_alone(clients(model, DC(), (1, 1, 1), True)[0]))  # type: ignore[arg-type]
    first.virtual.labels[:] = 3
    assert "no real images of the classes" in str(why_matched_alone(first))


def test_other_distillers_and_networks_are_another_group() -> None:
    model = network("model")
    made = [
        clients(model, DM(), (1, 1, 1), True)[0], clients(model, IDM(), (1, 1, 1), True)[0],
        clients(model, DM(lr=0.1), (1, 1, 1), True)[0], clients(model, DM(), (1, 1, 1), False)[0],
        clients(network("model"), DM(), (1, 1, 1), True)[0],
    ]  # fmt: skip
    assert len({matching_key(matching) for matching in made}) == len(made)


def test_after_an_error_of_a_later_step_nothing_is_changed() -> None:
    def stream_of(number: int) -> torch.Generator:
        if number == 2:
            raise KeyError("draws")
        return torch_stream(0, number, 0, "step")

    model = network("model")
    made = [replace(one, stream_of=stream_of) for one in clients(model, DM(), (3, 3, 3), False)]
    before = [copy.deepcopy(_pixels(matching)) for matching in made]
    with pytest.raises(KeyError):
        match_stacked(made, [model.state_dict()] * 3, "vmap")
    for matching, start in zip(made, before, strict=True):
        torch.testing.assert_close(_pixels(matching), start, rtol=0, atol=0)


def test_a_network_that_cannot_be_stacked_is_refused() -> None:
    class Loops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.mean())

    model = network("model")
    model.features.append(Loops())
    with pytest.raises(NotStacked):
        match_stacked(clients(model, DM(), (2, 2, 2), False), [model.state_dict()] * 3, "vmap")
