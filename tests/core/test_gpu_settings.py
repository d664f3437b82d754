"""Process-wide settings of a run on a GPU: set, reported where they do not help, and put back."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from helpers import Make

from fedkd.core.gpu_settings import gpu_settings, precision_parts
from fedkd.core.setup import make_setup
from fedkd.simulations.inline import InlineGrid

CUDA = torch.device("cuda")  # the settings exist without a GPU


def _settings() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"), [part.fp32_precision for part in precision_parts()],
        warnings.showwarning, list(warnings.filters),
    )  # fmt: skip


def _put(times: int) -> None:
    for _ in range(times):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # it has no deterministic form on any device


def test_a_run_on_a_gpu_is_deterministic_and_puts_the_settings_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = _settings()
    with gpu_settings(CUDA, True, print):
        assert _settings()[:5] == (True, True, False, False, ":4096:8")
        precision_parts()[0].fp32_precision = "tf32"
    assert _settings() == before


def test_the_users_workspace_of_cublas_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with gpu_settings(CUDA, True, print):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize(("device", "deterministic"), [("cpu", True), ("cpu", False), ("cuda", False)])
def test_nothing_changes_on_a_cpu_or_if_it_is_not_wanted(device: str, deterministic: bool) -> None:
    before = _settings()
    with gpu_settings(torch.device(device), deterministic, print):
        assert _settings()[:6] == before[:6]
    assert _settings() == before


def test_an_operation_without_a_deterministic_form_is_reported_once_in_each_run() -> None:
    for _ in range(2):
        said: list[str] = []
        with gpu_settings(CUDA, True, said.append):
            _put(3)
        assert said == ["not repeatable to the bit on a GPU: put_ has no deterministic form"]


def test_other_warnings_are_shown_as_before() -> None:
    said: list[str] = []
    with pytest.warns(UserWarning, match="of another kind"), gpu_settings(CUDA, True, said.append):
        warnings.warn("of another kind", UserWarning, stacklevel=1)
    assert said == []


def test_an_engine_on_a_cpu_leaves_the_process_as_it_is(tiny: Make) -> None:
    before = _settings()
    with InlineGrid(make_setup(tiny()), deterministic=True):
        assert _settings()[:7] == before[:7]
    assert _settings()[:7] == before[:7]
