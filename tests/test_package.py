"""The package: what the wheel has, an installation of it elsewhere, its version, and the files that describe it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import HOME

from fedkd.deployment.introduction import other_series

PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())
BUILD = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
ROOMS = ["fedkd", "strategies", "simulations", "configs", "deploy"]


def run(words: list[Any], folder: Path, **environment: str) -> str:
    """Run a command in a folder; return what it printed. No path of ours is set."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FEDKD_DATA")}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env={**kept, **environment}, capture_output=True, text=True,
        check=False, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def sources(*paths: str) -> list[str]:
    """Return the project's files, also new ones, but none that git ignores."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths]
    return [name for name in run(words, HOME).splitlines() if (HOME / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel, built from a copy that has no git."""
    copy = tmp_path_factory.mktemp("source")
    for name in sources(*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOME / name, copy / name)
    run([sys.executable, *BUILD, copy / "out", copy], copy)
    (found,) = (copy / "out").iterdir()
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_the_wheel_has_each_file_of_its_folders_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = Parser().parsestr(archive.read("fedkd-0.1.0.dist-info/METADATA").decode())
    ours = {name if name.startswith("fedkd/") else f"fedkd/{name}" for name in sources(*ROOMS)}
    assert {name for name in names if not name.startswith("fedkd-0.1.0.dist-info/")} == ours
    needed = {
        "py.typed",
        "reports/page.html",
        "cli/new_study.toml.txt",
        "data/shipped/heart.csv",
        "deploy/pyproject.toml",
    }
    assert {f"fedkd/{name}" for name in needed} < ours
    assert "fedkd-0.1.0.dist-info/licenses/LICENSE" in names
    assert (about["Version"], about["License-Expression"]) == (
        PROJECT["tool"]["setuptools_scm"]["fallback_version"],
        "Apache-2.0",
    )


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_a_wheel_in_an_empty_environment_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """The environment sees what fedkd needs in the running one, after its own packages: no network is needed."""
    home = tmp_path / "env"
    run([sys.executable, "-m", "venv", "--without-pip", home], tmp_path)
    python = home / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], tmp_path).strip())
    (site / "needs.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{sysconfig.get_paths()['platlib']}\n")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], tmp_path)

    work = tmp_path / "elsewhere"
    work.mkdir()
    fedkd = home / "bin" / "fedkd"
    one_round = ["--set", "rounds=1", "--out", "run", "--json"]
    assert run([fedkd, "--version"], work) == "fedkd 0.1.0\n"
    summary = json.loads(run([fedkd, "run", "fedmd/quick", *one_round], work).splitlines()[-1])
    assert (summary["status"], summary["rounds"], summary["versions"]["fedkd"]) == ("completed", 1, "0.1.0")
    assert "fedmd " in run([fedkd, "list", "strategies"], work)
    run([fedkd, "report", "run", "-o", "report.html"], work)
    assert "<html" in (work / "report.html").read_text()
    run([fedkd, "deploy", "init", "federation", "--config", "fedavg/quick", "--sites", "10"], work)
    run([fedkd, "init", "my-study"], work)
    summary = json.loads(run([fedkd, "run", "config.toml", *one_round], work / "my-study").splitlines()[-1])
    assert (summary["status"], summary["strategy"]) == ("completed", "method.py:Mine")
    code = (
        "import fedkd; run = fedkd.run('table/quick', rounds=1, out='from-python', show=False)\n"
        "print(fedkd.__file__, run.summary['status'])"
    )
    printed = run([python, "-c", code], work).split()
    assert printed == [str(site / "fedkd" / "__init__.py"), "completed"]


def test_the_version_is_the_newest_tag_and_without_one_of_the_same_series(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        run(["git", "-c", "user.name=A", "-c", "user.email=a@b", *words], tmp_path, GIT_CONFIG_GLOBAL=os.devnull)

    def version() -> str:
        return run([sys.executable, "-m", "setuptools_scm"], tmp_path).strip()

    def commit() -> None:
        git("commit", "--quiet", "--allow-empty", "--message", "more")

    shutil.copy(HOME / "pyproject.toml", tmp_path)
    assert version() == "0.1.0"
    git("init", "--quiet")
    git("add", ".")
    commit()
    commit()
    assert version() == "0.1.1.dev2"
    assert other_series(version(), "0.1.0") is None
    git("tag", "v0.2.0")
    assert version() == "0.2.0"
    commit()
    assert version() == "0.2.1.dev1"
    (tmp_path / "pyproject.toml").open("a").write("\n")  # a change that no commit has
    assert version() == "0.2.1.dev1"


def test_the_citation_is_sound() -> None:
    text = (HOME / "CITATION.cff").read_text()
    form = {  # of the Citation File Format 1.2.0: what it asks for, and the keys that we use
        "type": "object",
        "required": ["cff-version", "message", "title", "authors"],
        "additionalProperties": False,
        "properties": {
            "cff-version": {"const": "1.2.0"},
            "message": {"type": "string", "minLength": 1},
            "title": {"type": "string", "minLength": 1},
            "type": {"enum": ["software", "dataset"]},
            "abstract": {"type": "string", "minLength": 1},
            "authors": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "required": ["name"], "additionalProperties": False,
                          "properties": {"name": {"type": "string", "minLength": 1}}},
            },
            "keywords": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}},
            "license": {"type": "string"},
            "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        },
    }  # fmt: skip
    about = yaml.safe_load(text)
    jsonschema.Draft202012Validator(form).validate(about)
    assert about["authors"] == [{"name": "The fedkd authors"}]
    assert about["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    assert about["keywords"] == PROJECT["project"]["keywords"]
    assert about["version"] == PROJECT["tool"]["setuptools_scm"]["fallback_version"]


def test_the_changelog_has_its_form() -> None:
    """Keep a Changelog 1.1.0: what is not released first, then releases, newest first, each with its date."""
    headings = re.findall(r"^## (.*)", (HOME / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert None not in releases
    numbers = [tuple(int(part) for part in found.groups()[:3]) for found in releases if found]
    assert numbers == sorted(numbers, reverse=True)
    kinds = re.findall(r"^### (.*)", (HOME / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
