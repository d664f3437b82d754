"""The frame of the fuzz tests: which targets there are, how one is run, and what may come out.

A target is a file in `targets/` with two names: `INPUTS`, a strategy of hypothesis, and `target(drawn) -> None`, which
gives one drawn input to the project inside `only_refusals()`. Every file there is a test (`test_targets.py`) and an
argument of `run.py`; nothing else has to be changed.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, given, seed, settings

from fedkd.errors import InputError, RunError

HOME = Path(__file__).parent / "targets"
NAMES = sorted(path.stem for path in HOME.glob("*.py") if path.stem != "__init__")
MOST_LINES, MOST_CHARACTERS = 15, 4000  # of a refusal

_CHUNK = 1000  # cases that hypothesis has in memory at once


def target_of(name: str) -> ModuleType:
    """Return a target's module."""
    return importlib.import_module(f"fuzz.targets.{name}")


@contextlib.contextmanager
def only_refusals() -> Iterator[None]:
    """Take a refusal with a short message for a good end. Any other error comes out."""
    try:
        yield
    except (InputError, RunError) as refusal:
        check_message(str(refusal))


def check_message(text: str) -> None:
    """Fail for a message that is no help, floods a terminal or moves its cursor."""
    assert text.strip(), "a refusal without a word"
    assert len(text.splitlines()) <= MOST_LINES, text
    assert len(text) <= MOST_CHARACTERS, text
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)


@contextlib.contextmanager
def new_folder(content: Path | None = None) -> Iterator[Path]:
    """Make a folder that is gone afterwards, with a copy of `content`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "x"
        if content is None:
            folder.mkdir()
        else:
            shutil.copytree(content, folder)
        yield folder


def fuzz(name: str, cases: int, first_seed: int = 0, on_cases: Callable[[int], None] = lambda done: None) -> None:
    """Give `cases` drawn inputs to a target; the same seed draws the same. `on_cases` gets how many are done."""
    module = target_of(name)
    for number, done in enumerate(range(0, cases, _CHUNK)):
        chosen = settings(
            max_examples=min(_CHUNK, cases - done), deadline=None, database=None, derandomize=False,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck), print_blob=False,
        )  # fmt: skip
        seed(first_seed + number)(chosen(given(module.INPUTS)(module.target)))()
        on_cases(min(done + _CHUNK, cases))
