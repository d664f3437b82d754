"""Training without labels of many clients in one step is that of clients alone, to float64 accuracy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers.learning import ADAMW, SGD, Exact
from torch import Tensor, nn

from fedkd import Batch
from fedkd.data.spec import Form
from fedkd.learning.contrast import ENCODER, ContrastiveTraining, contrast_alone
from fedkd.learning.stacked_contrast import contrast_key, contrast_stacked, why_contrasted_alone
from fedkd.learning.stacked_models import NotStacked
from fedkd.methods.self_supervised import Encoder, two_views
from fedkd.models.build import build
from fedkd.strategies.byol import TARGET, move_target, target_contrast
from fedkd.strategies.fedx import TEACHER, cross_knowledge
from fedkd.strategies.moco import KEYS, queue_contrast
from fedkd.strategies.simclr import projections_nt_xent
from fedkd.streams import default_stream, torch_stream

STEPS = (5, 3, 5, 2)  # clients with fewer images take fewer steps
NORMS = ("batch", "instance")
CONTRASTS: dict[str, Any] = {
    "simclr": partial(projections_nt_xent, temperature=0.1),
    "moco": partial(queue_contrast, momentum=0.9, temperature=0.2),
    "byol": target_contrast,
}


def encoder_of(norm: str = "batch", predictors: tuple[str, ...] = ("online", "relation")) -> Encoder:
    with default_stream(torch_stream(0, 0, 0, "encoder")):
        model = build("convnet", {"channels": [6, 6], "norm": norm}, Form("image", (1, 12, 12)), 10)
        return Encoder(model, 8, predictors).double()


def loss_of(base: str, fedx: bool) -> Any:
    if not fedx:
        return partial(two_views, contrast=CONTRASTS[base])
    return partial(
        cross_knowledge, contrast=CONTRASTS[base], weights=(0.5, 2.0, 3.0), temperature=0.2, targets=(0.3, 0.4),
        divergence="code",
    )  # fmt: skip


def _batches(client: int, size: int) -> Iterator[Batch]:
    stream = torch_stream(0, 1, client, "views")
    while True:
        images = torch.randn(size, 1, 12, 12, generator=stream, dtype=torch.float64) + client
        views = [images + 0.1 * torch.randn(images.shape, generator=stream, dtype=torch.float64) for _ in range(3)]
        yield dict(zip(("first", "second", "random"), views, strict=True))


def clients(encoder: Encoder, base: str, fedx: bool, *, size: int = 6, **changes: Any) -> list[ContrastiveTraining]:
    """Return the training of each client, with its own other networks and queue."""
    made = []
    for k, steps in enumerate(STEPS):
        others = {TEACHER: copy.deepcopy(encoder).eval()} if fedx else {}
        others |= {name: copy.deepcopy(encoder).train() for name in {"moco": [KEYS], "byol": [TARGET]}.get(base, [])}
        for other in others.values():
            with torch.no_grad():
                for p in other.requires_grad_(False).parameters():
                    p.mul_(1 + k / 20)
        draw = torch_stream(0, 1, k, "queue")
        queue = nn.functional.normalize(torch.randn(20, 8, generator=draw, dtype=torch.float64), dim=1)
        given: dict[str, Any] = {
            "loss": loss_of(base, fedx), "optimizer": SGD, "clip": 1.0, "steps": steps, "batch_size": size,
            "after_step": partial(move_target, momentum=0.9) if base == "byol" else None,
        } | changes  # fmt: skip
        networks = nn.ModuleDict({ENCODER: encoder, **others})
        kept = {"queue": queue} if base == "moco" else {}
        made.append(
            ContrastiveTraining(networks, partial(_batches, k, size), kept=kept, preprocess=Exact("none"), **given)
        )
    return made


def starts_of(encoder: Encoder) -> list[dict[str, Tensor]]:
    """Return other weights for each client."""
    start = encoder.state_dict()
    return [{n: t * (1 + k / 10) if t.is_floating_point() else t.clone() for n, t in start.items()} for k in range(4)]


def _others(training: ContrastiveTraining) -> dict[str, Tensor]:
    networks = {name: network for name, network in training.networks.items() if name != ENCODER}
    return {f"{name}.{n}": t.clone() for name, x in networks.items() for n, t in x.state_dict().items()} | training.kept


def apart(encoder: Encoder, *case: Any, **changes: Any) -> float:
    """Return the largest difference between stacked and alone: of a loss, a parameter, a buffer, a queue."""
    starts, alone, received = starts_of(encoder), [], copy.deepcopy(encoder.state_dict())
    for training, start in zip(clients(encoder, *case, **changes), starts, strict=True):
        encoder.load_state_dict(start)
        value = contrast_alone(training)
        alone.append({"loss": torch.tensor(value), **copy.deepcopy(encoder.state_dict()), **_others(training)})
    encoder.load_state_dict(received)  # of which the other networks are copies
    again, worst = clients(encoder, *case, **changes), 0.0
    assert [why_contrasted_alone(one) for one in again] == [None] * len(again)
    assert len({contrast_key(one) for one in again}) == 1
    for training, found, wanted in zip(again, contrast_stacked(again, starts), alone, strict=True):
        mine = {"loss": torch.tensor(found.loss), **found.weights, **_others(training)}
        assert {n: (t.shape, t.dtype) for n, t in mine.items()} == {n: (t.shape, t.dtype) for n, t in wanted.items()}
        worst = max([worst, *(float((mine[n].double() - t.double()).abs().max()) for n, t in wanted.items())])
    return worst


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("fedx", [False, True], ids=["alone", "fedx"])
@pytest.mark.parametrize("base", CONTRASTS)
def test_clients_in_one_step_are_clients_alone(base: str, fedx: bool, norm: str) -> None:
    assert apart(encoder_of(norm), base, fedx) < 1e-10


@pytest.mark.parametrize("changes", [
    {"optimizer": ADAMW, "clip": None}, {"steps": 3, "clip": 0.01},
    {"optimizer": SGD.model_copy(update={"momentum": 0.0})},
])  # fmt: skip
def test_optimisers_and_clips_are_those_of_clients_alone(changes: dict[str, Any]) -> None:
    assert apart(encoder_of(), "simclr", True, **changes) < 1e-8


def test_heads_that_the_loss_does_not_use_keep_their_bytes() -> None:
    """Weight decay moves only what has a gradient."""
    encoder = encoder_of()
    starts = starts_of(encoder)
    for found, start in zip(contrast_stacked(clients(encoder, "simclr", False), starts), starts, strict=True):
        assert torch.equal(found.weights["predictors.online.0.weight"], start["predictors.online.0.weight"])
        assert not torch.equal(found.weights["projector.0.weight"], start["projector.0.weight"])


def test_what_cannot_be_shared_is_another_group() -> None:
    encoder = encoder_of()
    keys = [
        contrast_key(clients(encoder, *case, **changes)[0])
        for case, changes in [
            (("simclr", False), {}), (("simclr", True), {}), (("moco", False), {}), (("simclr", False), {"size": 4}),
            (("simclr", False), {"clip": 2.0}), (("simclr", False), {"optimizer": ADAMW}),
            (("simclr", False), {"loss": partial(two_views, contrast=partial(projections_nt_xent, temperature=0.2))}),
        ]
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    rate = {"optimizer": SGD.model_copy(update={"lr": 0.5})}
    assert contrast_key(clients(encoder, "simclr", False, **rate)[0]) == keys[0]


class Replaces(nn.Module):
    """Sets a new buffer in each forward pass, as no layer of torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        self.linear = nn.Linear(8, 8).double()

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.linear(x - self.mean)


def test_a_buffer_that_a_layer_replaces_is_kept() -> None:
    encoder = encoder_of()
    with default_stream(torch_stream(0, 0, 0, "layer")):
        encoder.projector.append(Replaces())
    assert apart(encoder, "simclr", False) < 1e-10


def _refused(networks: nn.ModuleDict, batch: Batch, kept: dict[str, Tensor]) -> Tensor:
    kept["queue"] = kept["queue"] * 2
    value = networks[ENCODER](batch["first"]).sum()
    return value * float(value.detach())


def test_after_an_error_nothing_is_changed() -> None:
    encoder = encoder_of()
    made = clients(encoder, "moco", False, loss=_refused)
    before = [copy.deepcopy(_others(training)) for training in made]
    with pytest.raises(NotStacked):
        contrast_stacked(made, starts_of(encoder))
    for training, start in zip(made, before, strict=True):
        torch.testing.assert_close(_others(training), start, rtol=0, atol=0)


def test_a_reason_of_the_method_and_dropout_are_named() -> None:
    encoder = encoder_of()
    assert why_contrasted_alone(clients(encoder, "simclr", False, alone_because="so")[0]) == "so"
    encoder.projector.append(nn.Dropout(0.3))
    assert "Dropout draws" in str(why_contrasted_alone(clients(encoder, "simclr", False)[0]))
    with torch.no_grad():
        assert "gradients are off" in str(why_contrasted_alone(clients(encoder, "simclr", False)[0]))
