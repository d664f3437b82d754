"""The pytest fixture `check_strategy`, for tests of someone's strategy."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def check_strategy() -> Callable[..., None]:
    """Return `fedkd.testing.check_strategy`, which is loaded by the tests that use it."""
    from .testing import check_strategy

    return check_strategy
