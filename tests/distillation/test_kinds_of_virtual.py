"""Virtual rows, series and arrays: what models get, what may change, how they start, and what changes them alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.distillation import PLAIN, stream
from torch import Tensor, nn

from fedkd.config import GROUPS
from fedkd.data.samples import Samples
from fedkd.data.spec import Form
from fedkd.distillation.distillers import DM, FGM, IDM
from fedkd.distillation.matching import gradient_of, matched_parameters, mean_embedding_loss
from fedkd.distillation.sample_generators import as_codes
from fedkd.distillation.siamese_kinds import GROUPS_OF, groups_of, siamese_change
from fedkd.distillation.stacked_matching import Matching, why_matched_alone
from fedkd.distillation.virtual_images import RealImages, Virtual, class_statistics, normal_samples, real_images
from fedkd.distillation.virtual_kinds import CERTAINTY, as_virtual, model_inputs, real_inputs, statistics_width
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.streams import default_stream

TABLE = Form("table", (5,), (3, 4))  # three numbers, two categories
SERIES = Form("series", (3, 16))
ARRAY = Form("array", (2, 3))
MODELS: dict[str, tuple[Form, str, dict[str, Any]]] = {
    "table": (TABLE, "table_mlp", {"hidden": [8], "dropout": 0.0}),
    "series": (SERIES, "inception_small", {"filters": 2, "norm": "group"}),
    "array": (ARRAY, "mlp", {"hidden": [8]}),
}


def network(kind: str) -> nn.Module:
    form, name, options = MODELS[kind]
    with default_stream(stream("network")):
        return build(name, options, form, 2)


def real_of(form: Form, count: int = 24) -> RealImages:
    """Return real samples of two classes, of which the second is 1 higher; series of unequal length."""
    labels = np.arange(count) % 2
    samples = form.drawn(count, stream("real"))
    numbers = {"table": form.numbers, "series": form.shape[0] - 1}.get(form.kind, form.shape[0])
    samples[:, :numbers] += torch.from_numpy(labels).float().view(-1, *[1] * (samples.dim() - 1))
    if form.kind == "series":
        ends = torch.arange(count)[:, None] % 6 + 9
        samples = samples * (torch.arange(form.shape[1]) < ends)[:, None]
    return RealImages(Samples(samples.numpy(), labels), PLAIN)


def first_of(form: Form, initial: str) -> Virtual:
    real = real_of(form)
    if initial == "real":
        return Virtual(*real_images(real, 3, stream(), form), form=form)
    return Virtual(*normal_samples(*class_statistics(real.data, PLAIN, 2, form), 3, form, stream()), form=form)


# What models get


def test_a_row_that_becomes_virtual_gives_models_nearly_what_its_codes_give() -> None:
    rows, model = TABLE.drawn(12, stream()), network("table").eval()
    inputs = model_inputs(as_virtual(rows, TABLE), TABLE)
    hot = real_inputs(rows, TABLE)
    assert torch.equal(inputs[:, :3], rows[:, :3])
    for found, own in zip(inputs[:, 3:].split([3, 4], 1), hot[:, 3:].split([3, 4], 1), strict=True):
        torch.testing.assert_close(found[own == 1], torch.full((12,), CERTAINTY))
        torch.testing.assert_close(found.sum(1), torch.ones(12))
    assert torch.equal(as_codes(as_virtual(rows, TABLE), TABLE), rows)
    with torch.no_grad():
        torch.testing.assert_close(model(hot), model(rows))
        apart = (model(inputs) - model(rows)).abs().max()
        assert 0 < float(apart) < 0.1 * float((model(rows) - model(rows.flip(0))).abs().max())


def test_a_category_with_one_code_and_rows_of_numbers_alone_stay_finite() -> None:
    for form in (Form("table", (3,), (1, 2)), Form("table", (3,))):
        rows = form.drawn(4, stream())
        assert as_virtual(rows, form).isfinite().all()
        assert model_inputs(as_virtual(rows, form), form).isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_virtual_samples_are_training_data_as_models_take_it(kind: str) -> None:
    virtual = first_of(MODELS[kind][0], "real")
    data = virtual.as_data()
    assert data.encoded
    assert torch.equal(torch.from_numpy(data.inputs), model_inputs(virtual.images, virtual.form))
    again = Virtual.of(virtual.tensors(), torch.device("cpu"), virtual.form)
    assert network(kind)(again.inputs()).shape == (6, 2)


# How they start


def test_statistics_are_of_columns_channels_and_values() -> None:
    real = real_of(TABLE)
    means, deviations, held = class_statistics(real.data, PLAIN, 3, TABLE)
    assert held.tolist() == [True, True, False]
    assert means.shape == (3, statistics_width(TABLE)) == (3, 10)
    rows = torch.from_numpy(real.data.inputs[real.data.labels == 1])
    torch.testing.assert_close(means[1, :3], rows[:, :3].mean(0))
    torch.testing.assert_close(deviations[1, :3], rows[:, :3].std(0, correction=0))
    torch.testing.assert_close(means[1, 3:6], torch.stack([(rows[:, 3] == code).float().mean() for code in range(3)]))
    real = real_of(SERIES)
    means, deviations, _ = class_statistics(real.data, PLAIN, 2, SERIES)
    series = torch.from_numpy(real.data.inputs[real.data.labels == 1])
    known = series[:, 1][series[:, -1] == 1]  # not the padding
    torch.testing.assert_close((means[1, 1], deviations[1, 1]), (known.mean(), known.std(correction=0)))
    means, _, _ = class_statistics(real_of(ARRAY).data, PLAIN, 2, ARRAY)
    values = torch.from_numpy(real_of(ARRAY).data.inputs[1::2])
    torch.testing.assert_close(means[1].view(2, 3), values.mean(0))


@pytest.mark.parametrize("kind", MODELS)
def test_first_samples_follow_the_statistics(kind: str) -> None:
    form = MODELS[kind][0]
    width = statistics_width(form)
    means, deviations = torch.arange(2.0 * width).view(2, width), torch.full((2, width), 0.5)
    if kind == "table":
        means[:, 3:] = torch.tensor([0.0, 1.0, 0.0, 0.25, 0.0, 0.0, 0.75])
    samples, labels = normal_samples(means, deviations, torch.tensor([False, True]), 4000, form, stream())
    assert labels.tolist() == [1] * 4000
    if kind == "table":
        rows = as_codes(samples, form)
        assert set(rows[:, 3].tolist()) == {1.0}
        assert set(rows[:, 4].tolist()) == {0.0, 3.0}
        assert float((rows[:, 4] == 3).float().mean()) == pytest.approx(0.75, abs=0.03)
        values, wanted = rows[:, :3], means[1, :3]
    elif kind == "series":
        assert torch.equal(samples[:, -1], torch.ones(4000, 16))
        values, wanted = samples[:, :-1].transpose(1, 2).reshape(-1, 2), means[1]
    else:
        values, wanted = samples.flatten(1), means[1]
    torch.testing.assert_close(values.mean(0), wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(values.std(0), torch.full_like(wanted, 0.5), atol=0.05, rtol=0)


# What changes


@pytest.mark.parametrize("initial", ["real", "normal"])
@pytest.mark.parametrize("distiller", [DM, IDM, FGM])
@pytest.mark.parametrize("kind", MODELS)
def test_all_that_is_free_changes_and_masks_never(kind: str, distiller: type, initial: str) -> None:
    form = MODELS[kind][0]
    virtual, model, real = first_of(form, initial), network(kind), real_of(form)
    before, truth = virtual.images.clone(), real
    settings = {} if distiller is FGM else {"augment": list(GROUPS_OF[form.kind]), "real_batch": 8}
    if distiller is FGM:
        wanted = matched_parameters(model.eval(), form).values()
        inputs = real_inputs(real.draw(0, 8, stream()), form)
        truth = gradient_of(model, inputs, torch.zeros(8, dtype=torch.long), parameters=wanted)  # type: ignore[assignment]
    order = stream("steps")
    losses = [distiller(lr=0.1, momentum=0.5, **settings).iterate(virtual, truth, model, order) for _ in range(6)]
    assert all(np.isfinite(losses))
    changed = virtual.images != before
    if kind == "series":
        mask = before[:, -1:] > 0
        assert bool(mask.all()) == (initial == "normal")
        assert not changed[:, -1].any()
        assert not (changed[:, :-1] & ~mask).any()
        assert not virtual.more["velocity"][:, -1].any()
        assert changed[:, :-1][mask.expand(-1, 2, -1)].float().mean() > 0.9
    else:
        assert changed.float().mean() > 0.9
    assert isinstance(virtual.form, Form)


def test_the_loss_of_matching_falls_without_augmentation() -> None:
    for kind, (form, _, _) in MODELS.items():
        virtual, real, model = first_of(form, "normal"), real_of(form), network(kind)
        distiller = DM(lr=1.0, augment=[], real_batch=100)
        losses = [distiller.iterate(virtual, real, model, stream()) for _ in range(40)]
        assert losses[-1] < 0.5 * losses[0]


def test_the_gradient_of_rows_is_that_of_differences() -> None:
    model, rows = network("table").double(), as_virtual(TABLE.drawn(3, stream()).double(), TABLE)
    wanted = model.features(real_inputs(TABLE.drawn(6, stream("other")).double(), TABLE))  # type: ignore[operator]

    def loss(virtual: Tensor) -> Tensor:
        return mean_embedding_loss(wanted, model.features(model_inputs(virtual, TABLE)))  # type: ignore[operator]

    assert torch.autograd.gradcheck(loss, rows.requires_grad_())


def test_the_published_value_of_matching_on_rows() -> None:
    def s(shape: tuple[int, ...], f: float, p: float, a: float) -> Tensor:
        return (a * torch.sin(f * torch.arange(shape[0] * shape[1], dtype=torch.float64) + p)).view(shape)

    class Net(nn.Module):
        def features(self, x: Tensor) -> Tensor:
            return (x @ s((4, 5), 0.31, 0.2, 0.8)).relu()

    rows = RealImages(Samples(s((7, 4), 0.37, 0.1, 2).numpy(), np.zeros(7, np.int64)), PLAIN)
    virtual = Virtual(s((3, 4), 0.53, 0.4, 2), torch.zeros(3, dtype=torch.long), form=Form("table", (4,)))
    assert DM(augment=[]).iterate(virtual, rows, Net(), stream()) == pytest.approx(0.07544422, abs=1e-8)


def test_matching_sees_rows_as_probabilities() -> None:
    virtual, real, model = first_of(TABLE, "real"), real_of(TABLE), network("table")
    wanted = 0.0
    for label in (0, 1):
        rows = torch.from_numpy(real.data.inputs[real.data.labels == label])
        mine = model_inputs(virtual.images[virtual.labels == label], TABLE)
        wanted += mean_embedding_loss(model.features(rows), model.features(mine)).item()  # type: ignore[operator]
    assert DM(augment=[], real_batch=100).iterate(virtual, real, model, stream()) == pytest.approx(wanted, rel=1e-4)
    inputs, labels = model_inputs(virtual.images, TABLE), virtual.labels
    truth = gradient_of(model.eval(), inputs, labels, parameters=matched_parameters(model, TABLE).values())
    assert FGM(distance="squares").iterate(virtual, truth, model, stream()) == pytest.approx(0, abs=1e-10)


def test_embeddings_of_categories_are_not_matched() -> None:
    model = network("table")
    names = set(matched_parameters(model, TABLE))
    left_out = {name for name, _ in model.named_parameters()} - names
    assert len(left_out) == 2
    assert all("embeddings" in name for name in left_out)
    assert len(matched_parameters(model)) == len(names) + 2  # of images: all


def test_other_kinds_are_matched_alone() -> None:
    work = Matching(network("array"), DM(), first_of(ARRAY, "real"), real_of(ARRAY), 1, lambda step: stream())
    assert why_matched_alone(work) == "virtual samples of kind array are matched class by class"


# Siamese changes


@pytest.mark.parametrize(("kind", "group"), [(k, g) for k in ("table", "series") for g in GROUPS_OF[k]])
def test_real_and_virtual_samples_change_alike(kind: str, group: Any) -> None:
    form = MODELS[kind][0]
    real = real_inputs(torch.from_numpy(real_of(form).data.inputs), form)
    seen = set()
    for seed in range(8):
        both = [siamese_change(x, seed, [group], form, real) for x in (real, real[5:10])]
        assert torch.equal(both[0][5:10], both[1])  # the change does not depend on the other samples
        changed = both[0] != real
        if kind == "table":
            columns = changed.any(0)
            widths = {0: 1, 1: 1, 2: 1, 3: 3, 6: 4}
            found = [first for first, width in widths.items() if columns[first : first + width].any()]
            assert found == [0, 1, 2] if group == "noise" else len(found) == 1
            for share in both[0][:, 3:].split([3, 4], 1):
                torch.testing.assert_close(share.sum(1), torch.ones(len(real)))
            (place, *_) = found
            if group == "drop":
                value = both[0][:, place : place + widths[place]]
                mean = real[:, place : place + widths[place]].mean(0) if place >= 3 else torch.zeros(1)
                torch.testing.assert_close(value, mean.expand_as(value))
            if group == "swap":
                value = both[0][:, place : place + widths[place]]
                assert len(value.unique(dim=0)) == 1
                assert (real[:, place : place + widths[place]] == value[0]).all(1).any()
            seen.add(tuple(found))
        else:
            assert torch.equal(both[0][:, -1], real[:, -1])
            assert not both[0][:, :-1][(real[:, -1:] == 0).expand(-1, 2, -1)].any()
            seen.add(float(both[0].sum()))
    assert len(seen) > 1 or group == "noise"


def test_series_are_scaled_shifted_and_cut_by_the_stated_amounts() -> None:
    form = Form("series", (3, 16))
    full = form.drawn(4, stream())
    starts = set()
    for seed in range(30):
        cut = siamese_change(full, seed, ["cut"], form, full)
        gone = torch.nonzero((cut[:, :-1] == 0).all(0).all(0)).flatten().tolist()
        assert gone == list(range(gone[0], gone[0] + 4))
        starts.add(gone[0])
        scaled = siamese_change(full, seed, ["scale"], form, full)[:, :-1] / full[:, :-1]
        torch.testing.assert_close(scaled, scaled[:1, :, :1].expand_as(scaled))
        shifted = siamese_change(full, seed, ["shift"], form, full)[:, :-1]
        assert any(
            torch.equal(shifted[:, :, max(by, 0) : 16 + min(by, 0)], full[:, :-1, max(-by, 0) : 16 - max(by, 0)])
            and not shifted[:, :, : max(by, 0)].any()
            and not shifted[:, :, 16 + min(by, 0) :].any()
            for by in range(-2, 3)
        )
    assert {0, 12} <= starts <= set(range(13))


@pytest.mark.parametrize(("kind", "group"), [(k, g) for k in ("table", "series") for g in GROUPS_OF[k]])
def test_gradients_pass_through_a_change(kind: str, group: Any) -> None:
    form = MODELS[kind][0]
    real = real_inputs(torch.from_numpy(real_of(form).data.inputs), form)
    samples = real[:3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(siamese_change(samples, 3, [group], form, real).sum(), samples)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.3


def test_the_default_groups_are_those_of_the_kind_and_others_are_refused() -> None:
    for kind in ("image", "table", "series", "array"):
        assert groups_of(kind, GROUPS) == list(GROUPS_OF[kind])  # type: ignore[arg-type]
        assert groups_of(kind, []) == []  # type: ignore[arg-type]
    assert groups_of("series", ["cut", "scale"]) == ["cut", "scale"]
    with pytest.raises(InputError, match=r"strategy.augment = \['flip'\]: .* 'table'; valid: noise, swap, drop"):
        groups_of("table", ["flip", "noise"])
    with pytest.raises(InputError, match="there are none"):
        groups_of("array", ["noise"])
    with pytest.raises(InputError, match="distiller.augment"):
        groups_of("image", ["noise"], "distiller.augment")
