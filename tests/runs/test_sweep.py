"""Grids of runs: what is planned, what is refused, what is kept, and a real one on Ray from the command line."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from helpers import TINY, lines, merged
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.errors import InputError
from fedkd.runs.run_folder import alone_in
from fedkd.runs.sweep import plan, seeds_of

RUNNER = CliRunner()


def test_a_plan_has_each_combination_with_each_seed(config: Path, tmp_path: Path) -> None:
    vary = ["strategy=local,{name='fedprox',mu=0.5}", "data.partition.alpha=0.1,1.0"]
    found = plan([config], ["rounds=1"], vary, "3,0..1", tmp_path / "out")
    assert len(found.jobs) == 2 * 2 * 3
    assert found.varied == ["strategy", "data.partition.alpha"]
    assert [job.name for job in found.jobs[:4]] == [
        "strategy=local,alpha=0.1,seed=3", "strategy=local,alpha=0.1,seed=0", "strategy=local,alpha=0.1,seed=1",
        "strategy=local,alpha=1.0,seed=3",
    ]  # fmt: skip
    last = found.jobs[-1]
    assert (last.config.seed, last.config.rounds, last.config.strategy.name) == (1, 1, "fedprox")
    assert last.config.strategy.options["mu"] == 0.5
    assert last.config.data.partition is not None
    assert (last.config.data.partition.model_extra or {})["alpha"] == 1.0


def test_a_table_comes_before_the_keys_in_it(config: Path, tmp_path: Path) -> None:
    found = plan([config], [], ["strategy.mu=0.1,1.0", "strategy=fedprox"], "0", tmp_path / "out")
    assert [job.config.strategy.options["mu"] for job in found.jobs] == [0.1, 1.0]
    assert found.first is None  # two arms of one strategy: neither is the baseline by its name


def test_each_strategy_of_a_sweep_has_its_own_table(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "\n[strategies.fedprox]\nmu = 0.7\n[strategies.moon]\nmu = 2.0\n")
    found = plan([config], [], ["strategy=fedavg,fedprox,moon"], "0", tmp_path / "out")
    assert [job.config.strategy.options.get("mu") for job in found.jobs] == [None, 0.7, 2.0]


def test_values_of_one_ending_have_folders_of_their_own(config: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "quick.toml").write_text(config.read_text())
        (tmp_path / name / "m.py").write_text("from fedkd.strategies.local import Local as Mine\n")
    vary = f"strategy={tmp_path}/a/m.py:Mine,{tmp_path}/b/m.py:Mine"
    found = plan([tmp_path / "a/quick.toml", tmp_path / "b/quick.toml"], [], [vary], "0", tmp_path / "out")
    assert len({job.path for job in found.jobs}) == 4
    assert found.jobs[0].name.startswith("a-quick,strategy=")


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(InputError, match="another process uses this folder"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_several_configs_stand_beside_each_other(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(tomli_w.dumps(merged(TINY, {"strategy": {"name": "local"}})))
    found = plan([config, other], [], ["rounds=1,2"], "0", tmp_path / "out")
    assert [(job.name, job.config.strategy.name) for job in found.jobs] == [
        ("run,rounds=1,seed=0", "fedavg"), ("run,rounds=2,seed=0", "fedavg"),
        ("other,rounds=1,seed=0", "local"), ("other,rounds=2,seed=0", "local"),
    ]  # fmt: skip
    assert (found.varied, found.first) == (["rounds"], "fedavg")
    with pytest.raises(InputError, match="run,seed=0'; give each config and each value once"):
        plan([config, config], [], [], "0", tmp_path / "out")


def test_keys_with_one_ending_are_told_apart(config: Path, tmp_path: Path) -> None:
    found = plan([config], [], ["checkpoint.every=1,2", "evaluate.every=1"], "0", tmp_path / "out")
    assert [job.name for job in found.jobs] == [
        "checkpoint.every=1,evaluate.every=1,seed=0", "checkpoint.every=2,evaluate.every=1,seed=0",
    ]  # fmt: skip
    assert found.varied == ["checkpoint.every"]


def test_seeds_are_lists_and_ranges() -> None:
    assert seeds_of("0..4") == [0, 1, 2, 3, 4]
    assert seeds_of("7, 1..2, 1") == [7, 1, 2]
    for text, message in [("", "write seeds as"), ("4..0", "has no seeds"), ("a", "write seeds as"), ("-1", "write"),
                          ("0..99999999999", "more than 10000 seeds")]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            seeds_of(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "strateg=local,fedavg"], "strateg: unknown key 'strateg'; did you mean 'strategy'?"),
        (["--vary", "strategy=local,fedagv"], "strategy.name: unknown 'fedagv'; did you mean 'fedavg'?"),
        (["--vary", "strategy.mu=0.1,0.2"], "strategy.mu: unknown key 'mu'"),
        (["--vary", "rounds=0,2"], "rounds = 0"),
        (["--vary", "strategy"], "write key=value,value"),
        (["--vary", "strategy=local,,fedavg"], "write key=value,value"),
        (["--vary", "rounds=1", "--vary", "rounds=2"], "--vary rounds: the key is given twice"),
        (["--vary", "rounds=1,1"], "Two runs would be called 'rounds=1,seed=0'"),
        (["--vary", "seed=1,2"], "give seeds by --seeds"),
        (["--seeds", "3..1"], "has no seeds"),
        (["--vary", "strategy=local,knfu"], "strategy=knfu,seed=0: strategy knfu needs a public set"),
        (["--vary", "data.name=digits,mnist"], "name=mnist,seed=0: data.name: the files of 'mnist' are not"),
        (["--vary", "data.partition.clients=6,2000"], "clients=2000,seed=0: data.partition"),
        (["--memory", "100000"], "and 100000 GiB of memory"),
        (["--set", "seed=3"], "give seeds by --seeds"),
        (["--vary", "engine=rya"], "engine=rya,seed=0: engine.name: unknown 'rya'; did you mean 'ray'?"),
        (["--set", "engine={name='ray',workers='two'}"], "engine.workers"),
        (["--set", "model.hidden=[4]", "--vary", f"model.name=mlp,{'x' * 300}.py:f"], "too long for a folder's name"),
    ],
)
def test_wrong_grids_are_refused_before_anything_runs(
    config: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    result = RUNNER.invoke(app, ["sweep", str(config), "--out", str(out), *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not list(out.glob("[!.]*"))  # but for the lock of a sweep that had reached the cluster


def test_a_sweep_runs_shows_the_failed_keeps_the_finished_and_goes_on(config: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "fail.py"
    plugin.write_text(
        "from fedkd.strategies.fedavg import FedAvg\n"
        "from pathlib import Path\n"
        "class Fail(FedAvg):\n"
        "    def run_round(self, federation):\n"
        f"        if federation.number == 2 and not Path({str(tmp_path / 'mended')!r}).exists():\n"
        "            raise OSError('no space left')\n"
        "        super().run_round(federation)\n"
    )
    out = tmp_path / "out"
    plugin.write_text(
        f"{plugin.read_text()}"
        "from fedkd import Tracker\n"
        "class Away(Tracker):\n"
        "    def begin(self, config, folder, first_round):\n"
        "        raise ConnectionError('nobody there')\n"
        "    note = end = None\n"
    )
    vary = f"strategy=fedavg,local,{plugin}:Fail"
    track = ["--set", f"trackers=['{plugin}:Away']"]
    command = ["sweep", str(config), "--vary", vary, "--seeds", "0..1", "--out", str(out), *track]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 1, result.output
    assert "4 of 6 runs have ended well, 2 failed" in result.stdout
    assert "strategy=fail.py-Fail,seed=1: OSError: no space left" in result.stderr
    assert f"strategy=local,seed=0: tracker {plugin}:Away failed and is not used any more" in result.stderr
    assert f"fedkd compare {out}" in result.stdout
    # as the same run by itself, to the byte
    alone = RUNNER.invoke(app, ["run", str(config), "--set", "seed=1", "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 0
    assert lines(out / "strategy=fedavg,seed=1") == lines(tmp_path / "alone")
    before = {
        path: path.stat().st_mtime_ns for path in out.glob("strategy=[fl][eo]*/*.json*") if "fail" not in str(path)
    }
    (tmp_path / "mended").touch()
    again = RUNNER.invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "6 of 6 runs have ended well, of which 4 were there" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert lines(out / "strategy=fail.py-Fail,seed=1") == lines(tmp_path / "alone")  # went on from round 1
    compared = RUNNER.invoke(app, ["compare", str(out)])
    assert compared.exit_code == 0, compared.output
    assert "local" in compared.stdout
    other = RUNNER.invoke(app, [*command, "--set", "train.batch_size=4"])
    assert other.exit_code == 2
    assert "contains a run with another config: train.batch_size was 8, is 4" in other.stderr


def test_foreign_files_in_the_folder_are_refused(config: Path, tmp_path: Path) -> None:
    for name in ("thesis.txt", "figures/thesis.png", "metrics.jsonl"):
        kept = tmp_path / name.replace("/", "-") / "seed=0" / name
        kept.parent.mkdir(parents=True)
        kept.write_text("years of work")
        result = RUNNER.invoke(app, ["sweep", str(config), "--out", str(tmp_path / name.replace("/", "-"))])
        assert result.exit_code == 2
        assert "contains other files" in result.stderr
        assert kept.read_text() == "years of work"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "seed=0").touch()
    result = RUNNER.invoke(app, ["sweep", str(config), "--out", str(tmp_path / "plain")])
    assert (result.exit_code, "seed=0 is a file" in result.stderr) == (2, True)
    result = RUNNER.invoke(app, ["sweep", str(config), "--out", str(config)])
    assert (result.exit_code, "this is a file" in result.stderr) == (2, True)


@pytest.mark.slow
def test_ctrl_c_keeps_checkpoints_and_the_sweep_goes_on(config: Path, tmp_path: Path) -> None:
    config.write_text(tomli_w.dumps(merged(TINY, {"rounds": 600, "evaluate.every": 300, "checkpoint": {"every": 500}})))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fedkd", "sweep", str(config), "--seeds", "0..1", "--out", str(out)]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    # until the fourth line of a run is written
    first = out / "seed=0" / "metrics.jsonl"
    subprocess.run(f"tail -n +4 -F '{first}' 2>/dev/null | head -1", shell=True, check=True, timeout=90)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=90)
    assert (process.returncode, "repeat the command to continue" in said) == (130, True), said
    ended = [json.loads(path.read_text()) for path in sorted(out.glob("*/summary.json"))]
    assert "interrupted" in [summary["status"] for summary in ended]
    assert list(out.glob("*/checkpoints/round-*"))
    again = RUNNER.invoke(app, command[3:])
    assert again.exit_code == 0, again.output
    whole = RUNNER.invoke(app, ["run", str(config), "--out", str(tmp_path / "whole")])
    assert whole.exit_code == 0
    assert lines(out / "seed=0") == lines(tmp_path / "whole")


def test_a_damaged_run_costs_the_others_nothing_and_is_mended_or_named(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["sweep", str(config), "--seeds", "0..2", "--out", str(out)]
    assert RUNNER.invoke(app, command).exit_code == 0
    whole = lines(out / "seed=0")
    (out / "seed=0" / "summary.json").write_text("")
    kept = (out / "seed=1" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "seed=1" / "metrics.jsonl").write_text("".join([kept[0], "{half\n", kept[2]]))
    again = RUNNER.invoke(app, command)
    assert again.exit_code == 1, again.output
    assert "2 of 3 runs have ended well, of which 1 were there, 1 failed" in again.stdout
    assert "is whole up to round 0, its checkpoint is of round 2" in again.stderr
    assert lines(out / "seed=0") == whole
    assert json.loads((out / "seed=0" / "summary.json").read_text())["status"] == "completed"
