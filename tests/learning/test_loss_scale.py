"""The loss scale does what torch's GradScaler does, for each client."""

from __future__ import annotations

import torch

from fedkd.learning.loss_scale import LossScale, all_finite


def test_the_scales_follow_torchs_rule_for_each_client() -> None:
    """`torch.amp.GradScaler` has one scale; its kernel is asked for each client."""
    draw = torch.Generator().manual_seed(0)
    scaled = LossScale(3, torch.device("cpu"))
    torchs = [(torch.tensor(65536.0), torch.zeros(1, dtype=torch.int32)) for _ in range(3)]
    for _ in range(6500):
        finite = torch.rand(3, generator=draw) > torch.tensor([0.0, 0.0005, 0.01])
        scaled.update(finite)
        for (scale, good), ok in zip(torchs, finite, strict=True):
            torch._amp_update_scale_(scale, good, (~ok).float(), 2.0, 0.5, 2000)
        assert torch.equal(scaled.scale, torch.stack([scale for scale, _ in torchs]))
    assert scaled.scale[0] == 65536 * 8
    assert scaled.scale[1] not in (65536, 65536 * 8)


def test_only_the_first_clients_change_their_scale() -> None:
    scaled = LossScale(3, torch.device("cpu"))
    scaled.update(torch.tensor([False, True]))
    assert scaled.scale.tolist() == [32768, 65536, 65536]


def test_one_element_that_is_not_finite_spoils_a_step() -> None:
    good, bad = torch.ones(2, 3), torch.tensor([1.0, torch.inf])
    assert all_finite([good, None]).tolist() == [True]
    assert all_finite([good, None, bad]).tolist() == [False]
