"""Charts: many strategies have lines of their own."""

from __future__ import annotations

import pytest

from fedkd.reports.charts import legend

pytestmark = pytest.mark.xdist_group("browser")


def test_many_strategies_have_lines_of_their_own() -> None:
    assert len({legend(number) for number in range(40)}) == 40
