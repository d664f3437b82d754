"""An environment has models and data on one device, and makes models from streams of their own."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from helpers import Make

from fedkd import Environment, InputError
from fedkd.config import NamedTable
from fedkd.core.environment import Device, _keep_freed_memory, prepare_as_engine, prepare_process
from fedkd.core.setup import make_setup
from fedkd.data.samples import Samples
from fedkd.streams import default_stream, torch_stream

FINGERPRINT = 237_137_584_981_088  # BLAKE2b, 6 bytes, least first, of the bytes 0 to 127


def test_an_environment_moves_to_another_device_with_models_and_batches(tiny: Make) -> None:
    setup = make_setup(tiny())
    setup.check()
    environment = setup.environment
    assert environment.model(0).classifier.weight.device.type == "cpu"  # type: ignore[union-attr]
    assert environment.preprocess(environment.data.test.inputs[:2]).device.type == "cpu"
    environment.use_device("meta")
    assert environment.model(0).classifier.weight.device.type == "meta"  # type: ignore[union-attr]
    assert environment.preprocess(environment.data.test.inputs[:2]).device.type == "meta"


def test_nodes_start_from_models_of_their_own(tiny: Make) -> None:
    environment = Environment(tiny())
    a, b = environment.initial_weights(0, 1), environment.initial_weights(0, 2)
    assert not torch.equal(a["classifier.weight"], b["classifier.weight"])
    assert torch.equal(a["classifier.weight"], environment.initial_weights(0, 1)["classifier.weight"])


def test_weights_are_drawn_from_the_stream_of_the_node_before_round_1(tiny: Make) -> None:
    environment = Environment(tiny({"seed": 7}))
    for node, weights in ((3, environment.initial_weights(0, 3)), ("server", environment.initial_weights())):
        with default_stream(torch_stream(7, 0, node, "initial-weights")):
            right = environment.new_model(0).state_dict()
        assert all(torch.equal(weights[name], right[name]) for name in right)


def test_a_node_has_the_architecture_that_it_reported_or_that_of_its_number(tiny: Make) -> None:
    environment = Environment(tiny({"model": {"names": ["mlp", "cnn", "mlp"]}}))
    assert [environment.architecture_of(node) for node in range(5)] == [0, 1, 2, 0, 1]
    environment.architecture_numbers = {1: 2, 4: 0}
    assert [environment.architecture_of(node) for node in range(5)] == [0, 2, 2, 0, 0]


def test_a_model_object_is_made_once_for_each_architecture_and_drawn_from_no_global_stream(tiny: Make) -> None:
    environment = Environment(tiny({"model": {"names": ["mlp", "cnn"]}}))
    assert environment.model(0) is environment.model(0)
    assert environment.model(0) is not environment.model(1)
    assert environment.model(NamedTable(name="mlp")) is environment.model(NamedTable(name="mlp"))
    made = environment.kept_object("mine", lambda: torch.nn.Linear(2, 2))
    assert environment.kept_object("mine", lambda: torch.nn.Linear(3, 3)) is made


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": {"name": "mlp", "hidden": [0]}}, "model"),
        ({"model": {"names": ["mlp", {"name": "mlp", "hidden": [0]}]}}, "model.names.1"),
    ],
)
def test_a_model_that_cannot_be_made_is_named_by_its_key(tiny: Make, changes: dict[str, Any], key: str) -> None:
    environment = Environment(tiny(changes))
    with pytest.raises(InputError, match=rf"^{key}\.hidden\.0 = 0"):
        environment.new_model(len(environment.config.model.architectures) - 1)
    with pytest.raises(InputError, match=r"^strategy\.hidden\.0 = 0"):
        environment.new_model(NamedTable(name="mlp", hidden=[0]))


def test_the_fingerprint_of_public_images_is_48_bits_of_their_bytes(tiny: Make) -> None:
    environment = Environment(tiny({"data.public": {"size": 40}}))
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8)
    public = Samples(images, np.zeros(2, np.int64))
    environment.data = dataclasses.replace(environment.data, public=public)
    assert environment.public_fingerprint == FINGERPRINT
    again = Environment(environment.config, environment.data)
    again.data = dataclasses.replace(again.data, public=Samples(np.asfortranarray(images), public.labels))
    assert again.public_fingerprint == FINGERPRINT < 2**48  # the order of memory does not count


@pytest.mark.parametrize(
    ("device", "gpu", "there", "used"),
    [
        ("auto", True, True, "cuda"), ("auto", True, False, "cpu"), ("auto", False, True, "cpu"),
        ("auto", False, False, "cpu"), ("cpu", True, True, "cpu"), ("cuda", False, True, "cuda"),
    ],
)  # fmt: skip
def test_a_process_uses_the_gpu_where_it_may_and_there_is_one(
    monkeypatch: pytest.MonkeyPatch, device: Device, gpu: bool, there: bool, used: str
) -> None:
    threads = Mock()
    monkeypatch.setattr(torch, "set_num_threads", threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert prepare_process(3, device, gpu) == used
    threads.assert_called_once_with(3)


@pytest.mark.parametrize(("cuda", "built"), [("12.4", "finds none"), (None, "is for CPUs")])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, cuda: str | None, built: str) -> None:
    monkeypatch.setattr(torch, "set_num_threads", Mock())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(InputError, match=f"there is no GPU here .torch .* {built}"):
        prepare_process(1, "cuda", gpu=True)


def test_freed_memory_is_kept_for_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """malloc.h of glibc: M_MMAP_MAX is -4, M_TRIM_THRESHOLD is -1. No mmap for large blocks; 1 GiB may stay free."""
    library = Mock()
    monkeypatch.setattr(ctypes, "CDLL", Mock(return_value=library))
    _keep_freed_memory()
    assert library.mallopt.call_args_list == [call(-4, 0), call(-1, 1024**3)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # another C library
    _keep_freed_memory()


def test_a_process_of_flowers_takes_threads_and_device_of_the_engine(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Mock(return_value="cpu")
    monkeypatch.setattr("fedkd.core.environment.prepare_process", prepared)
    for options in ({}, {"threads": 2, "device": "cpu", "workers": 3}):
        prepare_as_engine(tiny({"engine": {"name": "ray", **options}}))
    assert prepared.call_args_list == [call(1, "auto", gpu=True), call(2, "cpu", gpu=True)]
    with pytest.raises(InputError, match="engine.threads = 0"):
        prepare_as_engine(tiny({"engine": {"name": "ray", "threads": 0}}))
    assert Environment(tiny()).device == torch.device("cpu")


def test_a_score_is_that_of_the_given_weights(tiny: Make) -> None:
    environment = Environment(tiny())
    zeros = {name: torch.zeros_like(t) for name, t in environment.initial_weights().items()}
    zeros["classifier.bias"][3] = 50.0
    test = environment.data.test
    assert environment.score(0, zeros, test)["accuracy"] == float((test.labels == 3).mean())
