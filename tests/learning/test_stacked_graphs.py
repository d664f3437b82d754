"""A step of fixed shapes is the ordinary step, to float64 accuracy, also where it is recorded and replayed.

A CPU cannot record a CUDA graph. Here a record is the work itself, done some times before as for a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.codecs import pixel_codec
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedkd.config import Adam, Sgd
from fedkd.data.samples import Rows, Samples
from fedkd.data.spec import Form
from fedkd.learning.batches import Preprocess
from fedkd.learning.stacked_graphs import StepGraphs, Work
from fedkd.learning.stacked_models import NotStacked, Path
from fedkd.learning.stacked_step import StackedStep
from fedkd.learning.stacked_training import Trained, train_stacked
from fedkd.learning.training import LocalTraining, ModelLoss, label_loss
from fedkd.models.build import build
from fedkd.strategies.moon import contrastive_loss
from fedkd.strategies.scaffold import corrected_loss
from fedkd.streams import default_stream, torch_stream

SGD = Sgd(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAMW = Adam(name="adamw", lr=1e-3, weight_decay=1e-2)
SIZES = (40, 33, 26, 12)  # batches of 16: in some steps all are whole, in others filled; 33: one of 17
PATHS: tuple[Path, ...] = ("vmap", "folded")
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"hidden": [12]}),
    "convnet": ("convnet", {"channels": [6], "norm": "batch"}),
}
WHOLE = np.random.default_rng(1).integers(0, 256, (200, 1, 12, 12), dtype=np.uint8)


class Keeps(Preprocess):
    """Batches in float64 of a whole set, which is kept as a GPU keeps it."""

    def __init__(self) -> None:
        super().__init__(pixel_codec(0.3, 0.4), "crop_flip", torch.device("cpu"), [WHOLE])

    def room(self) -> int:
        return 2**30

    def scaled(self, images: Tensor) -> Tensor:
        return images.double().div_(255).sub_(0.3).div_(0.4)


KEEPS = Keeps()


def _model(name: str) -> nn.Module:
    with default_stream(torch_stream(0, 0, 0, "model")):
        return build(NETS[name][0], NETS[name][1], Form("image", (1, 12, 12)), 10).double()


def _clients(
    model: nn.Module,
    seed: int,
    loss: Callable[[int], Any] | None = None,
    sizes: tuple[int, ...] = SIZES,
    **more: Any,
) -> list[LocalTraining]:
    draw, made = np.random.default_rng(seed), []
    for k, size in enumerate(sizes):
        labels, positions = draw.integers(0, 10, size), draw.permutation(len(WHOLE))[:size]
        data = Samples(WHOLE[positions], labels, rows=Rows(WHOLE, positions))
        given = {"optimizer": SGD.model_copy(update={"lr": 0.01 * (k + 1)}), "clip": 1.0} | more
        if loss is not None:
            given["loss"] = loss(k)
        made.append(
            LocalTraining(
                model, data, torch.from_numpy(labels), 2, 16,
                preprocess=KEEPS, order=torch_stream(seed, 1, k, "order"), **given,
            )
        )  # fmt: skip
    return made


def _start(model: nn.Module, seed: int) -> dict[str, Tensor]:
    return {n: t * (1 + 0.1 * seed) if t.is_floating_point() else t.clone() for n, t in model.state_dict().items()}


def _apart(one: list[Trained], other: list[Trained]) -> float:
    worst = max(abs(a.loss - b.loss) for a, b in zip(one, other, strict=True))
    for a, b in zip(one, other, strict=True):
        worst = max([worst, *(float((t.double() - b.weights[n].double()).abs().max()) for n, t in a.weights.items())])
    return worst


def _warm(work: Work) -> Work:
    for _ in range(4):
        work()
    return work


def _compare(model: nn.Module, graphs: StepGraphs, path: Path, make: Callable[[int], list[LocalTraining]]) -> None:
    """Compare three trainings of one kind, of other data each, with the ordinary step."""
    for seed in range(3):
        starts = [_start(model, seed)] * len(SIZES)
        right, found = train_stacked(make(seed), starts, path), train_stacked(make(seed), starts, path, graphs)
        assert _apart(right, found) < (1e-8 if make(0)[0].optimizer.name == "adamw" else 1e-12)
        for one, weights in zip(found, right, strict=True):
            assert [(n, t.shape, t.dtype) for n, t in one.weights.items()] == [
                (n, t.shape, t.dtype) for n, t in weights.weights.items()
            ]


@pytest.mark.parametrize("record", [pytest.param(None, marks=pytest.mark.slow), _warm], ids=["taken", "recorded"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("optimizer", [None, pytest.param(ADAMW, marks=pytest.mark.slow)], ids=["sgd", "adamw"])
def test_the_step_of_fixed_shapes_is_the_ordinary_step(name: str, path: Path, optimizer: Any, record: Any) -> None:
    model, said = _model(name), list[str]()
    more = {} if optimizer is None else {"optimizer": optimizer}
    _compare(model, StepGraphs(said.append, record), path, partial(_clients, model, **more))
    assert said == []


@pytest.mark.parametrize("path", PATHS)
def test_tensors_of_losses_and_frozen_models_are_those_of_each_training(path: Path) -> None:
    name = "convnet" if path == "folded" else "mlp"
    model = _model(name)

    def tensors(seed: int) -> dict[str, Tensor]:
        return {n: torch.full_like(p, 0.001 * seed) for n, p in model.named_parameters()}

    def frozen(seed: int) -> nn.Module:
        other = _model(name).eval().requires_grad_(False)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1 + 0.1 * seed)
        return other

    for loss in (lambda s, k: corrected_loss(tensors(s + k)),
                 lambda s, k: contrastive_loss(frozen(s + k), frozen(2 * s + k), 1.0, 0.5)):  # fmt: skip
        graphs = StepGraphs(print, _warm)
        _compare(model, graphs, path, lambda seed, loss=loss: _clients(model, seed, partial(loss, seed)))  # type: ignore[misc]


class _Strict(TorchDispatchMode):
    """Refuses what cannot be recorded as a CUDA graph: waiting for a value, sizes that depend on values, new draws."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        words = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "random", "bernoulli")
        masks = name.startswith("aten::index.") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or any(name.removeprefix("aten::").split(".")[0] == word for word in words):
            raise RuntimeError(f"{name} cannot be recorded")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "more"), [("convnet", {}), ("mlp", {"optimizer": ADAMW})])
def test_a_step_does_nothing_that_a_graph_cannot_record(name: str, more: Any, path: Path) -> None:
    def record(work: Work) -> Work:
        with _Strict():
            work()
        return work

    model, said = _model(name), list[str]()
    _compare(model, StepGraphs(said.append, record), path, partial(_clients, model, **more))
    assert said == []

    with pytest.raises(RuntimeError, match="_local_scalar_dense cannot be recorded"), _Strict():
        float(torch.ones(1))


def test_a_training_of_whole_batches_has_one_form() -> None:
    model, recorded = _model("convnet"), list[Work]()

    def record(work: Work) -> Work:
        recorded.append(work)
        return _warm(work)

    _compare(model, StepGraphs(print, record), "folded", partial(_clients, model, sizes=(32, 32, 32, 32)))
    assert len(recorded) == 1


def test_adams_steps_are_counted_in_each_training() -> None:
    model = _model("mlp")
    _compare(model, StepGraphs(print), "folded", partial(_clients, model, optimizer=ADAMW))


def test_results_are_not_changed_by_the_next_training() -> None:
    model, graphs = _model("mlp"), StepGraphs(print, _warm)
    found = [train_stacked(_clients(model, seed), [_start(model, 0)] * 4, "folded", graphs) for seed in (0, 1)]
    assert _apart(found[0], train_stacked(_clients(model, 0), [_start(model, 0)] * 4, "folded")) < 1e-12


def test_each_form_is_recorded_once_from_the_second_training_on() -> None:
    model, recorded = _model("mlp"), list[Work]()

    def record(work: Work) -> Work:
        recorded.append(work)
        return _warm(work)

    graphs, counts = StepGraphs(print, record), []
    for seed in range(3):
        train_stacked(_clients(model, seed), [_start(model, 0)] * 4, "folded", graphs)
        counts.append(len(recorded))
    assert counts == [0, 3, 3]
    graphs.clear()
    train_stacked(_clients(model, 3), [_start(model, 0)] * 4, "folded", graphs)
    assert len(recorded) == 3


def test_a_step_that_cannot_be_recorded_runs_as_before_and_says_why() -> None:
    model, said = _model("mlp"), list[str]()

    def refuses(work: Work) -> Work:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    _compare(model, StepGraphs(said.append, refuses), "folded", partial(_clients, model))
    line = "engine.cuda_graphs: a step is not recorded, and runs as before: operation not permitted when stream is"
    assert said == [line + " capturing"] * 3  # of each form


@pytest.mark.parametrize(
    ("name", "path"),
    [("mlp", "folded"), *(pytest.param("convnet", path, marks=pytest.mark.slow) for path in PATHS)],
)
def test_a_compiled_step_is_the_ordinary_step(name: str, path: Path) -> None:
    """By the backend that keeps torch's own kernels, which needs no compiler of C."""
    model, said = _model(name), list[str]()
    _compare(model, StepGraphs(said.append, _warm, "aot_eager"), path, partial(_clients, model))
    assert said == []


@pytest.mark.slow
def test_a_step_compiled_by_torchs_own_backend_is_the_ordinary_step() -> None:
    model, said = _model("mlp"), list[str]()
    _compare(model, StepGraphs(said.append, None, "inductor"), "folded", partial(_clients, model))
    assert said == []


def test_a_step_that_cannot_be_compiled_runs_as_before_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = _model("convnet"), list[str]()

    def fails(*given: Any) -> Tensor:
        StackedStep.values(*given)  # it has changed the statistics of batch norm
        raise RuntimeError("no compiler\nmore")

    monkeypatch.setattr(StackedStep, "compiled", lambda self, backend: setattr(self, "compute", partial(fails, self)))
    _compare(model, StepGraphs(said.append, None, "inductor"), "folded", partial(_clients, model))
    assert said == ["engine.compile: a step is not compiled, and runs as before: no compiler"]


def test_images_of_the_training_alone_are_not_recorded() -> None:
    model = _model("mlp")

    def never(work: Work) -> Work:
        raise AssertionError("recorded")

    def make(seed: int) -> list[LocalTraining]:
        return [replace(local, data=local.data._replace(rows=None)) for local in _clients(model, seed)]

    _compare(model, StepGraphs(print, never), "folded", make)


def test_a_loss_that_draws_and_one_that_cannot_be_stacked_do_as_without_graphs() -> None:
    model, said = _model("mlp"), list[str]()
    graphs = StepGraphs(said.append, _warm)
    drawing = ModelLoss(draw=lambda targets, stream: {}, stream=torch.Generator())
    _compare(model, graphs, "folded", partial(_clients, model, loss=lambda k: drawing))
    assert not graphs._steps

    def reads(outputs: Any, targets: Tensor, own: Any, frozen: Any) -> Tensor:
        return label_loss(outputs, targets, own, frozen) * outputs.logits.sum().item()

    with pytest.raises(NotStacked, match="item"):
        train_stacked(_clients(model, 0, lambda k: ModelLoss(reads)), [_start(model, 0)] * 4, "folded", graphs)
