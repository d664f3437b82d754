"""Methods on virtual images where nodes are odd, away or too poor, and over and under other methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, has_defaults, lines
from helpers.virtual_images import LGD, NET, QUICK, server, virtual_of

from fedkd import Environment, InputError, Payload
from fedkd.core.setup import make_setup
from fedkd.data.federated_data import FederatedData
from fedkd.distillation.distillers import DM
from fedkd.learning.losses import supervised_contrast
from fedkd.methods.virtual_images import VirtualImages, VirtualImagesClient, show_by_class
from fedkd.runs.checkpoints import latest, load_node
from fedkd.runs.run import run


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


# The whole method, replayed


def test_pictures_of_global_images_are_kept_and_of_local_ones_where_asked(tiny: Make, tmp_path: Path) -> None:
    for name, shown in [("with", True), ("without", False)]:
        run(tiny({"model": NET, "strategy": {**LGD, "show_local": shown}}), tmp_path / name)
    assert (tmp_path / "with" / "figures" / "global-virtual.png").is_file()
    assert (tmp_path / "with" / "figures" / "local-0.png").is_file()
    assert not (tmp_path / "without" / "figures" / "local-0.png").exists()
    assert "images" not in lines(tmp_path / "without")[1]["bytes"]["up"]


# Odd nodes


@pytest.mark.parametrize("initial", ["normal", "real"])
@pytest.mark.parametrize("strategy", ["fedlgd", "fedavg_virtual"])
def test_empty_classes_and_fewer_images_than_ipc(tiny: Make, tmp_path: Path, strategy: str, initial: str) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 4, "alpha": 0.1, "size": 9}
    method = {**LGD, "name": strategy} if strategy == "fedlgd" else {**QUICK, "name": strategy}
    config = tiny({"model": NET, "data.partition": partition, "strategy": {**method, "initial": initial, "ipc": 5}})
    run(config, tmp_path / "run")
    counts = Environment(config).data.label_counts()
    assert (counts == 0).any()
    assert ((counts > 0) & (counts < 5)).any()
    for node, kept in virtual_of(tmp_path / "run").items():
        held = np.flatnonzero(counts[node])
        assert kept["labels"].tolist() == np.repeat(held, 5).tolist()
        assert kept["images"].isfinite().all()
    assert all(line["failures"] == [] for line in lines(tmp_path / "run"))
    if strategy == "fedlgd":
        everywhere = np.flatnonzero(counts.sum(0))
        assert server(tmp_path / "run")["anchors"]["labels"].tolist() == everywhere.tolist()


def test_a_node_without_images_says_so_and_a_second_beginning_keeps_them(tiny: Make) -> None:
    setup = make_setup(tiny({"model": NET, "strategy": LGD}))
    state = RecordDict()

    def client(number: int) -> VirtualImagesClient:
        made = setup.strategy.client_class()(setup.environment, setup.strategy.layers(), 2, state, number, "x", False)
        assert isinstance(made, VirtualImagesClient)
        return made

    with pytest.raises(ValueError, match="this node has no virtual images"):
        client(0).data  # noqa: B018
    client(0).begin(Payload())
    client(0).distil(Payload(numbers={"end": 2.0}))
    images = client(0).data.inputs
    client(1).begin(Payload())
    client(1).distil(Payload(numbers={"end": 1.0}))
    assert np.array_equal(client(1).data.inputs, images)
    assert client(1)._steps_done() == 2


@pytest.mark.parametrize("strategy", ["fedlgd", "fedavg_virtual"])
def test_augmentation_that_would_pass_virtual_images_by_is_refused(tiny: Make, strategy: str) -> None:
    with pytest.raises(InputError, match="data.augment"):
        make_setup(tiny({"strategy": {"name": strategy}, "data.augment": "crop_flip"})).check()


def test_methods_with_images_of_their_own_are_no_base(tiny: Make) -> None:
    with pytest.raises(InputError, match="run it alone"):
        make_setup(tiny({"strategy": {"name": "fedavg_virtual", "base": {"name": "fedlgd"}}})).check()


WRAPPED = {
    "an average over fedlgd": {"name": "weight_ema", "base": LGD},
    "virtual images below fedftg's generator": {
        **QUICK,
        "name": "fedavg_virtual",
        "base": {"name": "fedftg", "iterations": 1, "generator_width": 4},
    },
    "virtual images for moon": {**QUICK, "name": "fedavg_virtual", "base": {"name": "moon"}},
    "virtual images for feddyn": {**QUICK, "name": "fedavg_virtual", "base": {"name": "feddyn"}},
    "virtual images for fedgen": {**QUICK, "name": "fedavg_virtual", "base": {"name": "fedgen"}},
    "virtual images for fednova": {**QUICK, "name": "fedavg_virtual", "base": {"name": "fednova"}},
    "virtual images for flower's FedAdam": {
        **QUICK,
        "name": "fedavg_virtual",
        "base": {"name": "flwr.serverapp.strategy:FedAdam"},
    },
}


@pytest.mark.parametrize("strategy", WRAPPED.values(), ids=WRAPPED.keys())
def test_it_goes_below_and_above_other_methods(
    tiny: Make, tmp_path: Path, strategy: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = FederatedData.train_of
    monkeypatch.setattr(FederatedData, "train_of", lambda self, node: (read.append(node), original(self, node))[1])
    summary = run(tiny({"model": NET, "strategy": strategy, "cohort": 4}), tmp_path / "run")
    assert summary["failures"] == 0
    assert np.isfinite(summary["final"]["global/loss"])
    if strategy["name"] == "fedavg_virtual":  # to begin and to distil; never in a round, whatever the base
        assert sorted(read) == sorted([*range(6)] * 2)


def test_a_picture_that_fails_ends_no_run(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: VirtualImagesClient, request: Payload) -> Payload:
        raise RuntimeError("no picture today")

    monkeypatch.setattr(VirtualImagesClient, "reveal", fail)
    summary = run(tiny({"model": NET, "strategy": {**LGD, "show_local": True}}), tmp_path / "run")
    assert summary["status"] == "completed"
    assert "no picture today" in lines(tmp_path / "run")[1]["failures"][0]["reason"]


@pytest.mark.parametrize("strategy", [LGD, {**QUICK, "name": "fedavg_virtual"}], ids=["fedlgd", "fedavg_virtual"])
def test_a_node_that_misses_the_distillation_makes_up_for_it(
    tiny: Make, tmp_path: Path, strategy: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil = VirtualImagesClient.distil

    def fail(self: VirtualImagesClient, request: Payload) -> Payload:
        if self.node == 0 and self.round == 0:
            raise RuntimeError("out of power")
        return distil(self, request)

    monkeypatch.setattr(VirtualImagesClient, "distil", fail)
    run(tiny({"model": NET, "strategy": strategy}), tmp_path / "run")
    first, *others = lines(tmp_path / "run")
    assert {failure["node"] for failure in first["failures"]} == {0}
    assert all(line["failures"] == [] for line in others)
    path = latest(tmp_path / "run/checkpoints")[1] / "nodes/0.safetensors"
    assert int(load_node(path).array_records["initial-steps"]["done"].numpy()) == 2


def test_a_chunk_that_was_missed_is_made_up_for(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.methods.virtual_images._CHUNK", 1)
    config = tiny({"model": NET, "rounds": 1, "strategy": {**QUICK, "name": "fedavg_virtual"}})
    run(config, tmp_path / "whole")
    distil = VirtualImagesClient.distil

    def fail(self: VirtualImagesClient, request: Payload) -> Payload:
        if self.node == 0 and request.numbers["end"] == 1:
            raise RuntimeError("away for a moment")
        return distil(self, request)

    monkeypatch.setattr(VirtualImagesClient, "distil", fail)
    run(config, tmp_path / "missed")
    assert torch.equal(virtual_of(tmp_path / "missed")[0]["images"], virtual_of(tmp_path / "whole")[0]["images"])


def test_a_last_batch_of_one_image_is_no_trouble(tiny: Make, tmp_path: Path) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 3, "alpha": 9.0, "size": 17}
    for name in ("supcon_only", "vhl"):
        extra = {"noise_per_class": 1, "noise_batch_size": 1, "generator_width": 4} if name == "vhl" else {}
        config = tiny({"model": NET, "data.partition": partition, "strategy": {"name": name, **extra}})
        assert run(config, tmp_path / name)["failures"] == 0
    alone = torch.ones(1, 4, requires_grad=True)
    supervised_contrast(alone, torch.tensor([1])).backward()
    assert alone.grad is not None
    assert not alone.grad.any()


def test_the_defaults_are_those_of_the_authors_code() -> None:
    """Sections 1.1 and 2.5 of FedLGD's specification."""
    images = {"ipc": 10, "initial": "normal", "initial_steps": 10_000, "real_batch": 256, "show_local": False}
    has_defaults(VirtualImages(), images | {"pixel_lr": 1.0, "pixel_momentum": 0.5})
    assert VirtualImages().augment == ["color", "crop", "cutout", "flip", "scale", "rotate"]


def test_the_first_distillation_is_asked_for_a_hundred_steps_at_a_time() -> None:
    federation = Mock(ask=Mock(return_value=[(4, Payload(numbers={"loss": 1.0})), (5, Payload(numbers={"loss": 2.0}))]))
    federation.track = lambda what, steps: steps
    VirtualImages(initial_steps=250).distil(federation, [4, 5])
    asked = [call.args[1] for call in federation.ask.call_args_list]
    assert [[one[node].numbers["end"] for node in (4, 5)] for one in asked] == [[100, 100], [200, 200], [250, 250]]
    federation.log.assert_called_once_with("distillation_loss", 1.5)


def test_a_node_may_report_its_virtual_images(tiny: Make) -> None:
    environment = Environment(tiny({}))
    assert [VirtualImages(ipc=7).most_images(images, environment) for images in (69, 70, 71)] == [70, 70, 71]


def test_shown_images_have_labels_of_the_classes(tiny: Make) -> None:
    federation = Mock(environment=Environment(tiny({})), cohort=[3, 1], ask=Mock(return_value=[]))
    for shown, due in ((False, True), (True, False), (True, True)):
        federation.due = due
        VirtualImages(show_local=shown).show_images(federation)
    federation.ask.assert_called_once()
    assert list(federation.ask.call_args.args[1]) == [3]
    expect = federation.ask.call_args.kwargs["expect"]
    assert expect.indices["labels"].between == (0, 9)
    assert expect.images["virtual"].shape == (None, 1, 8, 8)


def first_client(tiny: Make, **strategy: object) -> VirtualImagesClient:
    setup = make_setup(tiny({"model": NET, "strategy": {**LGD, **strategy}}))
    made = setup.strategy.client_class()(
        setup.environment, setup.strategy.layers(), 2, RecordDict(), 0, "distil", False
    )
    assert isinstance(made, VirtualImagesClient)
    made.begin(Payload())
    return made


def test_the_loss_of_distillation_is_the_mean_over_the_steps_that_were_missing(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr(DM, "iterate", lambda *_: next(values))
    client = first_client(tiny, initial_steps=9)
    found = [client.distil(Payload(numbers={"end": end})).numbers["loss"] for end in (1.0, 3.0, 2.0)]
    assert found == [1.0, 4.0, 0.0]
    assert client._steps_done() == 3


@pytest.mark.parametrize(("steps", "rests"), [(2, True), (3, False), (1, True)])
def test_the_pixels_come_to_rest_after_the_last_initial_step(tiny: Make, steps: int, rests: bool) -> None:
    client = first_client(tiny, initial_steps=steps)
    client.distil(Payload(numbers={"end": 2.0}))
    kept = client.recall("virtual")
    assert kept is not None
    assert ("more/velocity" not in kept) == rests


def test_images_that_diverge_are_not_kept(tiny: Make) -> None:
    client = first_client(tiny, pixel_lr=3.0)
    client.virtual.images[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the virtual images have diverged; lower strategy\.pixel_lr = 3\.0"):
        client.keep_virtual()


def test_one_image_of_each_of_twenty_classes_is_shown() -> None:
    labels = np.repeat(np.arange(1, 23), 2)[::-1]
    federation = Mock()
    federation.environment.data.classes = [f"class {n}" for n in range(30)]
    show_by_class(federation, "mine", np.arange(44), labels)
    name, pixels, captions = federation.show.call_args.args
    assert name == "mine"
    assert pixels.tolist() == list(range(42, 2, -2))
    assert captions == [f"class {n}" for n in range(1, 21)]


def test_only_plain_images_can_be_distilled(tiny: Make) -> None:
    VirtualImages().check_images(Environment(tiny({"data.augment": "none"})))
    with pytest.raises(InputError, match="data.augment = 'crop_flip': training on virtual images"):
        VirtualImages().check_images(Environment(tiny({"data.augment": "crop_flip"})))


def test_no_steps_ask_nothing() -> None:
    federation = Mock()
    federation.track = lambda what, steps: steps
    VirtualImages(initial_steps=0).distil(federation, [1])
    federation.ask.assert_not_called()
    federation.log.assert_not_called()
