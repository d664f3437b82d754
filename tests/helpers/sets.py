"""The real image sets beside the project, as plain arrays."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from helpers import SETS


def real_set(name: str) -> dict[str, np.ndarray]:
    """Return x_train, y_train, x_test and y_test of a set; skips the test where the sets are not there."""
    if not SETS.is_dir():
        pytest.skip("the real image sets are not beside the project")
    spec = importlib.util.spec_from_file_location("load_sets", SETS / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, np.ndarray] = module.load(SETS / f"{name}.npz")
    return found
