"""scripts/airgap.sh: parts that rejoin, and an installation that leaves PyTorch as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import HOME


def _airgap(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    words = ("bash", HOME / "scripts" / "airgap.sh", *words)
    return subprocess.run(words, capture_output=True, text=True, env=environment)


def _wheel(folder: Path, name: str, version: str, *, needs: str = "") -> None:
    """Write a wheel of one module, which says its version."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\npadding = {os.urandom(700_000).hex()!r}\n")
        wheel.writestr(f"{info}/METADATA", about)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.mark.slow
def test_what_is_packed_is_installed_beside_the_machines_torch(tmp_path: Path) -> None:
    wheels, parts, site = tmp_path / "wheels", tmp_path / "parts", tmp_path / "site"
    wheels.mkdir()
    _wheel(wheels, "alphabet", "1.5", needs="betamax>=2")
    _wheel(wheels, "betamax", "2.0")
    _wheel(wheels, "torch", "0.1")
    (tmp_path / "locked.txt").write_text("alphabet==1.5\nbetamax==2.0\ntorch==0.1\n")
    more = ("--wheels", wheels, "--locked", tmp_path / "locked.txt", "--max-mib", "1")
    done = _airgap("pack", parts, *more)
    assert done.returncode == 0, done.stderr
    found = sorted(path.name for path in parts.iterdir())
    assert found[0] == "SHA256SUMS"
    assert len(found) > 3
    assert all((parts / name).stat().st_size <= 2**20 for name in found)
    done = _airgap("install", parts, site)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in site.glob("*.py")) == ["alphabet.py", "betamax.py"]
    assert (site / "fedkd" / "simulations" / "vectorised.py").is_file()
    assert (site / "source.tar.gz").is_file()
    last = parts / found[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    done = _airgap("install", parts, tmp_path / "other")
    assert done.returncode == 2
    assert "a part is damaged or missing" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pack", "new", "--max-mib", "0"), "--max-mib 0: give a number of MiB"),
        (("pack", "new", "--size", "3"), "unknown option --size"),
        (("pack", ".",), ". exists already"),
        (("install", ".", "site"), "has no SHA256SUMS"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(words: tuple[str, ...], message: str) -> None:
    done = _airgap(*words)
    assert done.returncode == 2
    assert message in done.stderr
