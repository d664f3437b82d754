"""Distillation on public images."""

from __future__ import annotations

import dataclasses
from unittest.mock import Mock

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make

from fedkd import ArraySpec, Environment, InputError, Payload
from fedkd.core.round import Round
from fedkd.learning.training import cross_entropy
from fedkd.methods.public_distillation import Pretraining, PublicSetClient, PublicSetStrategy
from fedkd.models.zoo import mlp
from fedkd.strategies.fedmd import FedMD
from fedkd.streams import torch_stream


def test_models_of_the_digest_are_not_augmented(tiny: Make) -> None:
    """Targets belong to the images as they stand: a crop would teach the answer to another image."""
    from fedkd.learning.batches import batches

    environment = Environment(tiny({"data.augment": "crop_flip"}))
    data = environment.data.train_of(0)
    labels = torch.from_numpy(data.labels)
    order = torch_stream(0, 0, 0, "order")
    seen = torch.cat([x for x, _ in batches(data, labels, 8, environment.preprocess, order, False)])
    plain = environment.preprocess(data.inputs)
    torch.testing.assert_close(seen.sort(0).values, plain.sort(0).values)
    state = torch.get_rng_state()
    assert mlp((1, 8, 8), 10)(plain).shape == (len(labels), 10)
    torch.set_rng_state(state)


def public(tiny: Make, size: int | None, labelled: bool = True, **strategy: object) -> Environment:
    changes = {} if size is None else {"data.public": {"size": size, "labelled": labelled}}
    return Environment(tiny({"strategy": {"name": "fedmd", **strategy}, **changes}))


def test_the_public_set_must_be_there_and_large_enough(tiny: Make) -> None:
    PublicSetStrategy.check(FedMD(subset_size=40), public(tiny, 40))
    PublicSetStrategy.check(FedMD(), public(tiny, 40))
    with pytest.raises(InputError, match="strategy fedmd needs a public set"):
        PublicSetStrategy.check(FedMD(), public(tiny, None))
    with pytest.raises(InputError, match="strategy.subset_size = 41: data.public.size is only 40"):
        PublicSetStrategy.check(FedMD(subset_size=41), public(tiny, 40))


def test_pre_training_on_public_images_needs_their_labels(tiny: Make) -> None:
    for epochs, labelled in ((3, True), (0, True), (0, False), (None, False), (None, True)):
        Pretraining.check(FedMD(public_epochs=epochs), public(tiny, 40, labelled))
    with pytest.raises(InputError, match="strategy.public_epochs = 3: the public set has no labels"):
        Pretraining.check(FedMD(public_epochs=3), public(tiny, 40, labelled=False))


@pytest.mark.parametrize(
    ("given", "labelled", "epochs"), [(None, True, 10), (None, False, 0), (0, True, 0), (4, True, 4)]
)
def test_pre_training_lasts_ten_epochs_where_there_are_labels(
    tiny: Make, given: int | None, labelled: bool, epochs: int
) -> None:
    assert FedMD(public_epochs=given).epochs_on_public(public(tiny, 40, labelled)) == epochs


def test_the_defaults_are_one_epoch_on_all_images_in_batches_of_64() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Pretraining)}
    wanted = {"subset_size": None, "distil_epochs": 1, "distil_batch_size": 64}
    wanted |= {"public_epochs": 0, "private_epochs": 0}
    assert {name: fields[name] for name in wanted} == wanted


def test_a_subset_is_drawn_from_the_rounds_stream(tiny: Make) -> None:
    environment = public(tiny, 40)
    federation = Round(environment, Mock(), 3, [0, 1], [0, 1], [], [])
    assert FedMD().draw_subset(federation) == {}
    order = torch.randperm(40, generator=torch_stream(0, 3, "server", "transfer-subset"))
    assert torch.equal(FedMD(subset_size=7).draw_subset(federation)["subset"], order[:7].int())
    sizes = [FedMD(subset_size=size).size(environment) for size in (None, 7)]
    assert sizes == [40, 7]


def test_knowledge_is_expected_on_the_same_images(tiny: Make) -> None:
    federation = Round(public(tiny, 40), Mock(), 1, [0], [0], [], [])
    for soft in (True, False):
        expected = FedMD(subset_size=7).expected(federation, soft=soft)
        assert expected.logits == {"knowledge": ArraySpec((7, 10), torch.float32, None, soft, False)}
        fingerprint = float(federation.environment.public_fingerprint)
        assert expected.numbers == {"transfer_set": (fingerprint, fingerprint)}


def test_the_client_distils_with_the_strategys_settings(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = public(tiny, 40)
    method = FedMD(distil_epochs=3, distil_batch_size=9)
    client = PublicSetClient(environment, [method], 0, RecordDict(), 1, "fit", False)
    given = Mock(return_value=0.25)
    monkeypatch.setattr(client, "train", given)
    assert client.distil(client.public, torch.zeros(40), cross_entropy) == 0.25
    assert given.call_args.kwargs == {
        "purpose": "distillation", "epochs": 3, "batch_size": 9, "loss": cross_entropy, "augment": False,
    }  # fmt: skip
    logits = client.predict(client.public)
    assert torch.equal(client.soft_labels(client.public), torch.softmax(logits, 1))
    assert torch.equal(client.soft_labels(client.public, 4.0), torch.softmax(logits / 4, 1))
    whole, part = client.subset(Payload()), client.subset(Payload(indices={"subset": torch.tensor([5, 2])}))
    assert len(whole.labels) == 40
    assert part.labels.tolist() == client.public.labels[[5, 2]].tolist()
    sent = client.send_knowledge(logits.double())
    assert sent.logits["knowledge"].dtype == torch.float32
    assert sent.numbers == {"transfer_set": float(environment.public_fingerprint)}


@pytest.mark.parametrize(
    ("public_epochs", "private", "labelled", "number", "asked", "skipped"),
    [
        (None, 0, True, 0, True, False),
        (None, 0, False, 0, False, True),
        (None, 0, False, 1, False, False),  # it was said in round 0
        (None, 3, False, 0, True, True),
        (0, 0, True, 0, False, False),
        (0, 3, True, 0, True, False),
        (0, 0, False, 0, False, False),
        (2, 0, True, 1, True, False),
    ],
)
def test_nodes_pre_train_where_there_is_something_to_do(
    tiny: Make, caplog: pytest.LogCaptureFixture, public_epochs: int | None, private: int, labelled: bool, number: int,
    asked: bool, skipped: bool,
) -> None:  # fmt: skip
    federation = Round(public(tiny, 40, labelled), Mock(), number, [0], [0], [], [])
    ask = Mock()
    federation.ask = ask  # type: ignore[method-assign]
    FedMD(public_epochs=public_epochs, private_epochs=private).prepare_nodes(federation)
    assert ask.call_count == asked
    assert ("skipped" in federation.record.log) == skipped
    assert ("fedmd: no pre-training on the public set" in caplog.text) == skipped
