"""Print the test files of what has changed: against the commit given, by default the last one (`make check`).

A module's tests have its path: fedkd/core/round.py is tested by tests/core/test_round.py. Where there is no such file,
the tests of its room are printed; a changed test file is printed itself. The defaults of all strategies have one more
test file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def changed(since: str) -> list[str]:
    """Return the files that differ from a commit, and those that git does not know yet."""
    commands = (["git", "diff", "--name-only", since], ["git", "ls-files", "--others", "--exclude-standard"])
    found = [subprocess.run(c, cwd=ROOT, capture_output=True, text=True, check=True).stdout for c in commands]
    return sorted({name for text in found for name in text.splitlines()})


def tests_of(name: str) -> Iterator[Path]:
    """Yield the test files of a file."""
    path = Path(name)
    if path.suffix != ".py" or path.name == "conftest.py":
        return
    if path.parts[0] == "tests":
        if path.name.startswith("test_"):
            yield path
        return
    parts = path.parts[1:] if path.parts[0] == "fedkd" else path.parts
    own = Path("tests", *parts[:-1], f"test_{path.name}")
    if (ROOT / own).is_file():
        yield from [own.with_stem("test_defaults")] if parts[0] == "strategies" else []
        yield own
        yield from [p for p in [own.with_stem(f"{own.stem}_published")] if (ROOT / p).is_file()]
    elif len(parts) > 1:
        yield from sorted(p.relative_to(ROOT) for p in (ROOT / "tests" / parts[0]).glob("test_*.py"))


if __name__ == "__main__":
    files = {path for name in changed(sys.argv[1] if len(sys.argv) > 1 else "HEAD") for path in tests_of(name)}
    print("\n".join(str(path) for path in sorted(files) if (ROOT / path).is_file()))
