"""Models for series: sizes, and padding that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.data.spec import Form
from fedkd.models.build import build
from fedkd.models.series import GroupNorm, MaskedNorm
from fedkd.streams import default_stream, torch_stream

MODELS = [
    ("resnet1d", {"width": 8}), ("resnet1d", {"width": 8, "norm": "group"}), ("inception_small", {}),
    ("inception_small", {"norm": "group"}), ("inception_time", {}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


def _series(lengths: list[int], channels: int = 3, steps: int = 12) -> Tensor:
    batch = Form("series", (channels + 1, steps)).drawn(len(lengths), torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        batch[row, :, length:] = 0
    return batch


@pytest.mark.parametrize(
    ("name", "table", "sizes"),
    [
        ("resnet1d", {}, {(1, 2): 504_258, (6, 4): 507_396, (12, 9): 511_497, (20, 10): 516_234}),
        ("resnet1d", {"width": 32}, {(6, 4): 128_772}),
        ("inception_small", {}, {(1, 2): 6_146, (6, 4): 8_420, (12, 9): 8_873, (20, 10): 9_290}),
        ("inception_small", {"filters": 16}, {(1, 2): 23_298, (6, 4): 32_324, (12, 9): 33_225, (20, 10): 34_058}),
        ("inception_time", {}, {(1, 2): 420_450, (6, 4): 491_140}),
    ],
)
def test_the_models_have_the_published_sizes(name: str, table: dict, sizes: dict) -> None:
    for (channels, classes), wanted in sizes.items():
        model = build(name, table, Form("series", (channels + 1, 50)), classes)
        assert sum(p.numel() for p in model.parameters()) == wanted, (channels, classes)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "table"), MODELS)
def test_longer_padding_changes_nothing(name: str, table: dict, training: bool) -> None:
    model = build(name, table, Form("series", (4, 12)), 3).double().train(training)
    start = {n: t.clone() for n, t in model.state_dict().items()}
    short, labels = _series([12, 7, 1, 3]).double(), torch.tensor([0, 1, 2, 0])

    def step(batch: Tensor) -> list[Tensor]:
        model.load_state_dict(start)
        logits = model(batch)
        loss = F.cross_entropy(logits, labels)
        return [logits, loss, *torch.autograd.grad(loss, list(model.parameters())), *model.state_dict().values()]

    wanted = [t.clone() for t in step(short)]
    for more in (1, 9, 50):
        for found, one in zip(step(F.pad(short, (0, more))), wanted, strict=True):
            assert torch.allclose(found, one, atol=1e-10)


@pytest.mark.parametrize(("name", "table"), MODELS)
def test_a_series_has_the_same_logits_alone_and_beside_others(name: str, table: dict) -> None:
    model = build(name, table, Form("series", (4, 12)), 3).eval()
    batch = _series([12, 7, 1, 3])
    for row, length in enumerate((12, 7, 1, 3)):  # also shorter than the kernels of 8 to 40
        assert torch.allclose(model(batch[row : row + 1, :, :length]), model(batch)[row : row + 1], atol=1e-5)


def test_batch_norm_counts_the_steps_that_are_there() -> None:
    batch = _series([12, 7, 1, 3]).double()
    x, mask = batch[:, :-1] * 3 + 2, batch[:, -1:]
    own, torchs = MaskedNorm(3).double(), nn.BatchNorm1d(3).double()
    real = x.transpose(1, 2)[mask[:, 0] > 0]  # 23 steps
    assert len(real) == 23
    for _ in range(3):
        found, wanted = own(x, mask), torchs(real)
    assert torch.allclose(found.transpose(1, 2)[mask[:, 0] > 0], wanted)
    assert torch.allclose(own.running_mean, torchs.running_mean)
    assert torch.allclose(own.running_var, torchs.running_var)
    assert torch.allclose(own.eval()(x, mask).transpose(1, 2)[mask[:, 0] > 0], torchs.eval()(real))


def test_group_norm_is_of_one_series_and_its_steps() -> None:
    batch = _series([12, 7]).double()
    x, mask = batch[:, :-1], batch[:, -1:]
    for row, length in enumerate((12, 7)):
        wanted = nn.GroupNorm(1, 3).double()(x[row : row + 1, :, :length])
        assert torch.allclose(GroupNorm(3).double()(x, mask)[row : row + 1, :, :length], wanted)
