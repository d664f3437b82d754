"""A run config is no part of what is signed: it makes a site load no code but the app's, whatever key names it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from fedkd.deployment.app import read_run_config
from fedkd.deployment.on_site import setup_at
from fedkd.errors import InputError

CONFIG = """
rounds = 1
[data]
name = "digits"
partition = { scheme = "iid", clients = 3 }
[model]
name = "mlp"
[strategy]
name = "fedavg"
"""
CODE = """
import os
from pathlib import Path
Path(os.environ["FEDKD_OWNED"]).touch()
from fedkd.strategies.fedavg import FedAvg as S
"""
WAYS = [
    'strategy.name="{}:S"', 'strategy="{}:S"', 'strategies={{"{}:S"={{}}}}', 'model="{}:S"',
    'model.names=["mlp", "{}:S"]',
    'model={{names=[{{name="{}:S", hidden=[3]}}]}}', 'data.name="{}:S"', 'data.names=["{}:S"]',
    'data.partition.scheme="{}:S"', 'trackers=["{}:S"]', 'trackers=[{{name="tensorboard"}}, {{name="{}:S"}}]',
    'engine="{}:S"', 'strategy={{name="fedftg", base="{}:S"}}', 'strategy={{name="fedlgd", distiller="{}:S"}}',
    'strategy={{name="fedlgd", distiller={{name="{}:S"}}}}', 'data.public={{name="{}:S", size=10}}',
]  # fmt: skip


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an app, beside which there is code that leaves a mark when it runs; also on Python's path."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "run.toml").write_text(CONFIG)
    (tmp_path / "outside.py").write_text(CODE)
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    (folder / "links").symlink_to(tmp_path)
    monkeypatch.setenv("FEDKD_OWNED", str(tmp_path / "owned"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def at_a_site(app: Path, set_: str) -> None:
    """Do what a site does with a run config."""
    setup_at(read_run_config(app, {"config": "run.toml", "set": set_}), {"partition-id": 0})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["{}/outside.py", "../outside.py", "outside.py", "~/outside.py", "link.py",
                                   "links/outside.py", "outside"])  # fmt: skip
def test_code_from_outside_the_app_does_not_run(app: Path, way: str, where: str) -> None:
    with pytest.raises(InputError) as refused:
        at_a_site(app, way.format(where.format(app.parent)))
    assert not (app.parent / "owned").exists()
    assert "outside" in str(refused.value) or "link.py" in str(refused.value)


@pytest.mark.parametrize(
    "set_",
    [
        'model={name="subprocess:Popen", args="touch owned", shell=true}',
        'strategy={name="subprocess:Popen", args="touch owned", shell=true}',
        'trackers=[{name="subprocess:Popen", args="touch owned", shell=true}]',
        'strategy.name="fedkd.deployment.authority:Authority"',
    ],
)
def test_installed_code_that_the_app_does_not_name_does_not_run(app: Path, set_: str) -> None:
    with pytest.raises(
        InputError, match=r"(subprocess:Popen|authority:Authority)': sites run only code that the app has"
    ):
        at_a_site(app, set_)
    assert not (app.parent / "owned").exists()


def test_code_of_the_app_runs(app: Path) -> None:
    (app / "lib").mkdir()
    (app / "lib/helper.py").write_text("from fedkd.strategies.fedavg import FedAvg\n")
    (app / "lib/mine.py").write_text("from helper import FedAvg\nclass Mine(FedAvg):\n    '''Ours.'''\n")
    at_a_site(app, 'strategy.name="lib/mine.py:Mine"')
    at_a_site(app, 'strategy.name="flwr.serverapp.strategy:FedAvg"')
    at_a_site(app, 'strategy.name="fedkd.strategies.fedavg:FedAvg"')
    assert not (app.parent / "owned").exists()


def test_code_that_the_signed_config_names_runs(app: Path) -> None:
    (app / "run.toml").write_text(CONFIG.replace('"fedavg"', '"outside:S"'))
    at_a_site(app, "rounds=2")
    assert (app.parent / "owned").exists()
    sys.modules.pop("outside")


@pytest.mark.parametrize(
    "name", ["../outside.toml", "{}/outside.toml", "links/outside.toml", "configs/../../outside.toml"]
)
def test_the_config_is_one_of_the_app(app: Path, name: str) -> None:
    (app.parent / "outside.toml").write_text(CONFIG)
    with pytest.raises(InputError, match="neither the app nor fedkd has this run file"):
        read_run_config(app, {"config": name.format(app.parent)})


def test_the_newest_app_comes_first(app: Path) -> None:
    other = app.parent / "other"
    other.mkdir()
    for folder, text in ((app, "ours"), (other, "theirs")):
        (folder / "run.toml").write_text(CONFIG.replace('"fedavg"', '"same.py:S"'))
        (folder / "same.py").write_text(
            f"from fedkd.strategies.fedavg import FedAvg\nclass S(FedAvg):\n    '''{text}'''\n"
        )
    for folder, text in ((app, "ours"), (other, "theirs"), (app, "ours")):
        setup = setup_at(read_run_config(folder, {"config": "run.toml"}), {"partition-id": 0})
        assert setup.strategy.__doc__ == text
        setup_at.__globals__["_setups"].clear()


def test_a_sites_state_is_for_its_owner(tmp_path: Path) -> None:
    from fedkd.deployment.site_state import make_private

    before = os.umask(0o022)
    try:
        make_private(tmp_path / "state")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
