"""Models for tokens: sizes, padding that changes nothing, short and long texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd.data.spec import PAD, Form
from fedkd.models.build import build
from fedkd.models.texts import embedded, is_token
from fedkd.streams import default_stream, torch_stream

FORM = Form("tokens", (16,), vocabulary=50)
MODELS = ["text_cnn", "text_transformer"]


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


def _texts(lengths: list[int], longest: int) -> Tensor:
    batch = FORM.drawn(len(lengths), torch.Generator().manual_seed(1))[:, :longest].clone()
    for row, length in enumerate(lengths):
        batch[row, length:] = PAD
    return batch


@pytest.mark.parametrize(
    ("name", "table", "vocabulary", "length", "wanted"),
    [
        ("text_cnn", {}, 5000, 20, 369_730),
        ("text_cnn", {"width": 300, "filters": 100}, 5000, 20, 1_860_902),
        ("text_transformer", {}, 5000, 128, 395_394),
    ],
)
def test_the_models_have_the_published_sizes(name: str, table: dict, vocabulary: int, length: int, wanted: int) -> None:
    model = build(name, table, Form("tokens", (length,), vocabulary=vocabulary), 2)
    assert sum(p.numel() for p in model.parameters()) == wanted


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_longer_padding_changes_nothing(name: str, training: bool) -> None:
    model = build(name, {"dropout": 0.0}, FORM, 3).double().train(training)
    short, labels = _texts([6, 1, 4], 6), torch.tensor([0, 1, 2])

    def step(batch: Tensor) -> list[Tensor]:
        logits = model(batch)
        loss = F.cross_entropy(logits, labels)
        return [logits, loss, *torch.autograd.grad(loss, list(model.parameters()))]

    wanted = step(short)
    for more in (1, 10):
        for found, one in zip(step(F.pad(short, (0, more))), wanted, strict=True):
            assert torch.allclose(found, one, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()  # torch has a faster path then
def test_a_text_has_the_same_logits_alone_and_beside_longer_ones(name: str) -> None:
    model = build(name, {}, FORM, 3).eval()
    batch = _texts([6, 1, 2], 6)
    for row, length in enumerate((6, 1, 2)):  # one token is shorter than each kernel
        assert torch.allclose(model(batch[row : row + 1, :length]), model(batch)[row : row + 1], atol=1e-5)


@pytest.mark.parametrize("adapter", [False, True], ids=["", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_probabilities_of_one_word_each_are_the_ids(name: str, adapter: bool) -> None:
    """Also their gradients, where a file gives the padding an embedding, or an adapter changes the layer."""
    lora = {"name": "lora", "r": 2, "targets": ["embedding"]}
    model = build(name, {"adapter": lora} if adapter else {}, FORM, 3).double().eval()
    with torch.no_grad():
        model.features.embedding.weight[PAD] = 2.0
        for one in model.parameters() if adapter else []:
            one += 0.1  # B begins at 0
    results = []
    ids = FORM.drawn(4, torch.Generator().manual_seed(1))[:, :2]  # shorter than each kernel
    for texts in (ids, F.one_hot(ids, FORM.vocabulary).double()):
        logits = model(texts)
        trained = list(model.parameters())
        results.append([logits, *torch.autograd.grad(logits.square().sum(), trained)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_word_may_be_between_words_and_every_position_is_a_token() -> None:
    embedding = torch.nn.Embedding(50, 8, padding_idx=PAD)
    first, second = FORM.drawn(2, torch.Generator().manual_seed(1))
    shares = (F.one_hot(first, 50) + F.one_hot(second, 50)).float()[None] / 2
    torch.testing.assert_close(embedded(shares, embedding)[0], (embedding(first) + embedding(second)) / 2)
    assert is_token(F.one_hot(torch.tensor([[5, PAD]])).float()).tolist() == [[True, True]]
    assert is_token(torch.tensor([[5, PAD]])).tolist() == [[True, False]]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", MODELS)
def test_the_embedding_of_the_padding_stays_zero(name: str, optimizer: type[torch.optim.Optimizer]) -> None:
    model = build(name, {}, FORM, 3).train()
    steps = optimizer(model.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]
    before = model.features.embedding.weight.detach().clone()
    for _ in range(2):
        steps.zero_grad()
        with default_stream(torch_stream(0, 0, "server", "dropout")):
            F.cross_entropy(model(_texts([6, 1, 4], 6)), torch.tensor([0, 1, 2])).backward()
        steps.step()
    assert torch.equal(model.features.embedding.weight[PAD], torch.zeros(64))
    assert not torch.equal(model.features.embedding.weight, before)


def test_a_text_that_is_longer_than_the_table_of_positions_is_refused() -> None:
    model = build("text_transformer", {}, FORM, 3)
    with pytest.raises(ValueError, match="texts have 17 tokens; the model has positions for 16"):
        model(torch.ones(2, 17, dtype=torch.int64))


def test_a_kernel_may_be_longer_than_all_texts() -> None:
    model = build("text_cnn", {"lengths": [3, 30]}, FORM, 3)
    assert model(_texts([2, 1], 2)).shape == (2, 3)
