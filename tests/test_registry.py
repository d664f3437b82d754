"""The registry: what a file of one's own lacks is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd.config import Config
from fedkd.core.wrapper import make_strategy
from fedkd.errors import InputError


def test_a_strategy_file_without_the_class_says_what_it_defines(tiny: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "method.py"
    file.write_text("class Mine: pass\ndef helper(): pass\n")
    with pytest.raises(InputError, match=r"method.py has no 'Yours'; it defines: Mine, helper\."):
        make_strategy(tiny({"strategy": {"name": f"{file}:Yours"}}).strategy)
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(InputError, match="broken.py cannot be loaded: ZeroDivisionError"):
        make_strategy(tiny({"strategy": {"name": f"{broken}:X"}}).strategy)
