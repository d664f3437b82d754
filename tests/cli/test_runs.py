"""`fedkd run` and its kin as a user meets them: exit codes, one clear message, the last line, the picture."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from helpers import TINY, merged
from PIL import Image
from typer.testing import CliRunner

from fedkd.cli import app

RUNNER = CliRunner()


def test_a_run_leaves_its_folder_and_prints_the_summary_last(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = RUNNER.invoke(app, ["run", str(config), "--out", str(out), "--json", "--set", "rounds=3"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["strategy"], summary["seed"]) == ("completed", 3, "fedavg", 0)
    assert {"final", "best", "seconds", "bytes", "failures", "versions", "hardware"} <= set(summary)
    assert {path.name for path in out.iterdir()} == {
        "config.toml", "metrics.jsonl", "origin.json", "summary.json", "partition.json", "checkpoints", "figures",
        "evaluation.json", "samples.json",
    }  # fmt: skip
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    assert "round 3/3" in result.stderr
    for figure in ("curves.png", "partition.png"):
        assert str(out / "figures" / figure) in result.stdout
        assert min(Image.open(out / "figures" / figure).size) > 300
    again = RUNNER.invoke(app, ["run", str(out / "config.toml"), "--out", str(tmp_path / "again"), "--json"])
    assert json.loads(again.stdout.splitlines()[-1])["final"] == summary["final"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "rouns=3"], "rouns: unknown key 'rouns'; did you mean 'rounds'?"),
        (["--set", "rounds=many"], "rounds = 'many'"),
        (["--set", "data.partition={scheme='dirichlet',clients=3,alpha=0.0}"], "data.partition.alpha = 0.0"),
        (["--set", "data.partition.clients=2000"], "data.partition.clients = 2000"),
        (["--set", "data.partition={scheme='dirichlet',clients=9,alpha=0.1,minimum=150}"], "minimum = 150"),
        (["--set", "data.name=mnist", "--set", "data.root=nowhere"], "nowhere/mnist.npz"),
        (["--set", "data.name=images:nowhere"], "there is no folder"),
        (["--set", "strategy=no_such.py:Method"], "there is no file"),
        (["--set", "model={names=['mlp','cnn']}"], "fedavg needs equal models"),
        (["--set", "data.public={size=5000}"], "data.public.size = 5000"),
    ],
)
def test_refused_input_exits_with_2_and_writes_nothing(
    config: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = RUNNER.invoke(app, ["run", str(config), "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("fedkd: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_used_folder_is_refused_and_left_alone(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert RUNNER.invoke(app, ["run", str(config), "--out", str(out)]).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = RUNNER.invoke(app, ["run", str(config), "--out", str(out)])
    assert result.exit_code == 2
    assert "contains another run" in result.stderr
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert RUNNER.invoke(app, ["run", str(config), "--out", str(config)]).exit_code == 2  # a file


def test_a_run_that_fails_exits_with_1_and_keeps_its_lines(config: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "fail.py"
    plugin.write_text(
        "from typing import ClassVar\n"
        "from fedkd import GlobalModelClient\n"
        "from fedkd.strategies.fedavg import FedAvg\n"
        "class Failing(GlobalModelClient):\n"
        "    def fit(self, request):\n"
        "        if self.round == 2:\n"
        "            raise OSError('no space left')\n"
        "        return super().fit(request)\n"
        "class Fail(FedAvg):\n"
        "    client: ClassVar = Failing\n"
    )
    out = tmp_path / "out"
    result = RUNNER.invoke(app, ["run", str(config), "--out", str(out), "--set", f"strategy={plugin}:Fail"])
    assert result.exit_code == 1
    assert "Round 2, request 'fit': 0 of 6 replies are good" in result.stderr
    assert "OSError: no space left (fail.py:7)" in result.stderr
    assert [json.loads(line)["round"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [0, 1]
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"


def test_resume_wants_a_run_with_a_checkpoint(config: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (["--resume", str(tmp_path)], "there is no run"),
        ([], "Give either a config, or --resume"),
        ([str(config), "--resume", str(tmp_path)], "Give either a config, or --resume"),
        (["--resume", str(tmp_path), "--out", "other"], "continues a run in its folder: without --out"),
    ]:
        result = RUNNER.invoke(app, ["run", *arguments])
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
    out = tmp_path / "out"
    assert RUNNER.invoke(app, ["run", str(config), "--out", str(out)]).exit_code == 0
    servers = sorted(out.glob("checkpoints/*/server.safetensors"))
    assert len(servers) == 2
    servers[1].write_bytes(servers[1].read_bytes()[:100])
    result = RUNNER.invoke(app, ["run", "--resume", str(out)])
    assert result.exit_code == 0
    said = f"The checkpoint {servers[1].parent} is damaged: server.safetensors is not what was written. The one before"
    assert said in result.stderr
    for server in servers:
        server.write_bytes(b"")
    result = RUNNER.invoke(app, ["run", "--resume", str(out)])
    assert result.exit_code == 2
    for server in servers:
        assert f"The checkpoint {server.parent} is damaged" in result.stderr


def test_a_run_that_has_ended_goes_on_for_more_rounds(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["run", "--resume", str(out), "--set"]
    assert RUNNER.invoke(app, ["run", str(config), "--out", str(out)]).exit_code == 0
    rounds = json.loads((out / "summary.json").read_text())["rounds"]
    result = RUNNER.invoke(app, [*words, f"rounds={rounds + 1}"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "summary.json").read_text())["rounds"] == rounds + 1
    refused = RUNNER.invoke(app, [*words, "train.batch_size=7"])
    assert refused.exit_code == 2
    assert "train.batch_size was" in refused.stderr
    assert "may change rounds, evaluate, stop, checkpoint, engine, trackers" in refused.stderr


def test_a_config_that_comes_with_fedkd_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, ["run", "fedavg/quick", "--set", "rounds=1", "--out", "run"])
    assert result.exit_code == 0, result.output
    refused = RUNNER.invoke(app, ["run", "fedavg/quickest"])
    assert (refused.exit_code, "no config of this name comes with fedkd" in refused.stderr) == (2, True)


def test_partition_prints_the_table_and_draws_the_heat_map(config: Path, tmp_path: Path) -> None:
    picture = tmp_path / "heat.png"
    result = RUNNER.invoke(app, ["partition", str(config), "--out", str(picture)])
    assert result.exit_code == 0, result.output
    assert "6 nodes, 144 training images" in result.stdout
    assert str(picture) in result.stdout
    assert min(Image.open(picture).size) > 300
    refused = RUNNER.invoke(app, ["partition", str(config), "--set", "data.partition.scheme=irregular"])
    assert refused.exit_code == 2


def test_the_command_itself_without_a_terminal(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedkd", "run", str(config), "--json", "--set", "rounds=1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1])["status"] == "completed"
    assert "\x1b" not in result.stdout + result.stderr  # plain lines
    assert (tmp_path / "runs" / "fedavg-digits-seed0" / "summary.json").is_file()


def test_ctrl_c_exits_with_130_and_the_run_continues(config: Path, tmp_path: Path) -> None:
    config.write_text(tomli_w.dumps(merged(TINY, {"rounds": 4000, "checkpoint": {"every": 3000}})))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fedkd", "run", str(config), "--out", str(out)]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where the tests run in the background
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stderr is not None
    for line in process.stderr:  # until the third round has ended
        if line.startswith("round 3/"):
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "continue with: fedkd run --resume" in process.stderr.read()
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    reached = json.loads((out / "summary.json").read_text())["rounds"]
    saved = [int(path.name.removeprefix("round-")) for path in out.glob("checkpoints/round-*")]
    assert max(saved) in (reached, reached - 1)  # what it had reached, not what was due
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace("rounds = 4000", f"rounds = {reached + 2}"))
    result = RUNNER.invoke(app, ["run", "--resume", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["rounds"] == reached + 2


def test_help_does_not_import_torch() -> None:
    call = "app(['list', 'models'], standalone_mode=False)"
    code = f"import sys; from fedkd.cli import app; {call}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", ["run {config} --out {out}", "sweep {config} --out {out}"])
def test_a_folder_that_cannot_be_made_is_refused(config: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    words = command.format(config=config, out=tmp_path / "file" / "runs").split()
    refused = RUNNER.invoke(app, words)
    assert (refused.exit_code, f"--out {tmp_path / 'file' / 'runs'}" in refused.stderr) == (2, True), refused.output
