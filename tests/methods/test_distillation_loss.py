"""The option `loss` of methods that distil from logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Make, lines

from fedkd import InputError, NamedTable
from fedkd.core.setup import make_setup
from fedkd.learning.kd_losses import DKD, KD
from fedkd.learning.losses import kl_divergence
from fedkd.methods.distillation_loss import as_logits, loss_towards, read_loss, value_towards, with_labels
from fedkd.registry import names
from fedkd.runs.run import run

ON_PUBLIC = ("fedmd", "ktpfl", "dsfl", "comet", "knfu", "feddf")
SHORT: dict[str, dict[str, Any]] = {
    "fedmd": {"public_epochs": 0, "private_epochs": 0},
    "ktpfl": {"public_epochs": 0, "private_epochs": 0},
    "feddf": {"steps": 3},
}


def _config(make: Make, name: str, loss: Any, **more: Any) -> Any:
    strategy = {"name": name, **SHORT.get(name, {}), "loss": loss, **more.pop("strategy", {})}
    return make({"strategy": strategy, "data.public": {"size": 64, "labelled": True}, "rounds": 2, **more})


def _losses(make: Make, folder: Path, name: str, loss: Any, **more: Any) -> list[float]:
    run(_config(make, name, loss, **more), folder)
    found = lines(folder)
    return [line["metrics"]["personal/loss"] for line in found]


def test_probabilities_are_logits_up_to_a_constant_of_each_row() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    found = as_logits(logits.softmax(1), "probabilities")
    torch.testing.assert_close(found.softmax(1), logits.softmax(1))
    assert as_logits(torch.tensor([[0.0, 1.0]]), "probabilities").isfinite().all()
    assert as_logits(logits, "logits") is logits


def test_labels_are_the_last_column_of_targets_if_the_loss_reads_them() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 0.2, 0.1]])
    labels = torch.tensor([2])
    wanted = with_labels(DKD(), teacher, labels)
    assert wanted.tolist() == [[0.5, pytest.approx(0.2), pytest.approx(0.1), 2.0]]
    assert float(value_towards(student, wanted, DKD(), "logits")) == float(DKD()(student, teacher, labels))
    assert with_labels(KD(), teacher, labels) is teacher


def test_two_clients_with_the_same_loss_share_a_step() -> None:
    one, other = (loss_towards(read_loss(NamedTable(name="dkd", beta=2.0)), "logits") for _ in range(2))
    assert one.of_outputs.keywords == other.of_outputs.keywords  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ON_PUBLIC)
@pytest.mark.parametrize("loss", ["dkd", "dist"])
def test_a_method_distils_by_the_loss_that_the_config_names(tiny: Make, tmp_path: Path, name: str, loss: str) -> None:
    own = _losses(tiny, tmp_path / "own", name, {"name": "kd"})
    chosen = _losses(tiny, tmp_path / "chosen", name, {"name": loss})
    assert chosen[0] == own[0]
    assert chosen[-1] != own[-1]


def test_fml_distils_by_the_loss_that_the_config_names(tiny: Make, tmp_path: Path) -> None:
    found = {
        str(loss): _losses(tiny, tmp_path / str(number), "fml", loss)
        for number, loss in enumerate([None, {"name": "kd", "temperature": 1.0}, "dkd", "luminet"])
    }
    plain, same, *others = found.values()
    assert same == plain  # KL is KD at temperature 1
    assert all(other[-1] != plain[-1] for other in others)


def test_kd_in_fedmds_place_is_its_own_digest_by_kl(tiny: Make, tmp_path: Path) -> None:
    own = _losses(tiny, tmp_path / "own", "fedmd", None, strategy={"digest": "kl", "temperature": 3.0})
    assert _losses(tiny, tmp_path / "kd", "fedmd", {"name": "kd", "temperature": 3.0}) == own


@pytest.mark.parametrize("loss", names("kd_losses"))
def test_one_after_another_and_in_one_step_is_the_same(tiny: Make, tmp_path: Path, loss: str) -> None:
    alone = _losses(tiny, tmp_path / "alone", "fedmd", {"name": loss})
    together = _losses(tiny, tmp_path / "together", "fedmd", {"name": loss}, engine={"name": "vectorised"})
    assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("strategy", "changes", "message"),
    [
        ({"name": "fedmd", "loss": "dxd"}, {}, "strategy.loss.name.*did you mean 'dkd'"),
        ({"name": "fedmd", "loss": {"name": "kd", "temperature": 0.0}}, {}, "strategy.loss.temperature = 0.0"),
        ({"name": "fedmd", "loss": {"name": "jeffreys", "forward_weight": 2.0}}, {}, "forward_weight = 2.0"),
        ({"name": "dsfl", "loss": "luminet"}, {}, "strategy.loss = 'luminet' needs logits, and dsfl has probab"),
        ({"name": "feddf", "loss": "luminet", "teacher": "avg_probs"}, {}, "needs logits, and feddf has probab"),
        ({"name": "fedmd", "loss": "dkd"}, {"data.public.labelled": False}, "set strategy.loss.labels = 'teacher'"),
        (
            {"name": "knfu", "loss": {"name": "kd", "ce_weight": 0.1}},
            {"data.public.labelled": False},
            "reads the labels of the public set",
        ),
    ],
)
def test_a_loss_that_cannot_be_had_is_refused_before_the_run(
    tiny: Make, strategy: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    public = {"size": 64, "labelled": changes.get("data.public.labelled", True)}
    setup = make_setup(tiny({"strategy": strategy, "data.public": public}))
    with pytest.raises(InputError, match=message):
        setup.check()


def test_kl_is_what_kd_computes() -> None:
    student, teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.ones(4, 5)
    assert float(KD(temperature=2.0)(student, teacher)) == float(kl_divergence(student, teacher, 2.0))
