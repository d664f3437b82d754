"""A real SuperLink with TLS and authentication, and three real SuperNodes: docs/deploy.md, command by command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import HOME, PLUGINS, checkpoint_bytes, lines
from helpers.docs import blocks
from helpers.shell import Shell
from helpers.superlink import end, free_ports, wait_for
from helpers.tricks import TRICKS

from fedkd.config import read_config
from fedkd.runs.run import run

PAGE = [line.removeprefix("$ ") for block in blocks("docs/deploy.md", "console") for line in block.splitlines()]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),  # not beside clusters: both start many processes
    pytest.mark.timeout(1800),
]


def comparable(folder: Path) -> list[dict[str, Any]]:
    """Return a run's lines without what is reported of real sites, in words of their own or not at all."""
    found = []
    for line in lines(folder):
        metrics, nodes, spread = (
            {name: value for name, value in line[key].items() if "global" not in name}
            for key in ("metrics", "nodes", "spread")
        )
        log = {key: value for key, value in line["log"].items() if key != "prior_distance"}
        failed = [(failure["node"], failure["action"]) for failure in line["failures"]]
        found.append({**line, "metrics": metrics, "nodes": nodes, "spread": spread, "log": log, "failures": failed})
        del found[-1]["events"]
    return found


def kill_after_round(folder: Path, number: int, group: int) -> threading.Thread:
    """Kill a process group as soon as a run has ended a round; return the thread that waits for it."""

    def wait() -> None:
        done = threading.Event()
        while not done.wait(0.2):
            path = folder / "metrics.jsonl"
            if path.is_file() and f'"round": {number},' in path.read_text():
                os.killpg(group, signal.SIGKILL)
                done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_flowers_own_simulation_gives_our_engines_numbers(shell: Shell, tmp_path: Path) -> None:
    (command,) = [line for line in PAGE if line.startswith("flwr run deploy local")]
    shell.does(command)
    run(read_config(HOME / "configs/fedavg/quick.toml", ["rounds=2"]), tmp_path / "ours")
    theirs = tmp_path / "runs/trial"
    assert [{**line, "events": []} for line in lines(theirs)] == lines(tmp_path / "ours")
    assert [e["event"][:6] for e in lines(theirs)[0]["events"]] == ["joined"] * 10


def test_three_real_sites_with_tls_and_keys(shell: Shell, tmp_path: Path) -> None:
    commands = [line for line in PAGE if not line.startswith("flwr run deploy local")]
    ports = dict(zip(("9443", "9094", "9095", "9096"), map(str, free_ports(4)), strict=True))
    commands = [re.sub("|".join(ports), lambda match: ports[match[0]], command) for command in commands]
    runs = tmp_path / "federation/server/runs"
    ran = 0

    def run_up_to(part: str) -> str:
        """Run the page's next commands, up to and with the one that has this part; return its output."""
        nonlocal ran
        output = ""
        while True:
            output = shell.does(commands[ran])
            if commands[ran].endswith("&") and "server/start.sh" in commands[ran]:
                wait_for(tmp_path / "federation/server.log", "Uvicorn running")
            ran += 1
            if part in commands[ran - 1]:
                return output

    run_up_to("site-3/start.sh")
    _, *sites = shell.jobs()
    strangers_get_nowhere(shell, tmp_path, ports["9443"])

    # KnFu: the third site is killed in round 2, and is back for the round that follows the restart of the server
    killer = kill_after_round(runs / "knfu", 1, sites[2])
    output = run_up_to("run.sh")
    killer.join(10)
    assert "site-3 (node 2): joined: 484 training images, resnet8" in output, output
    run_up_to("supernode list")
    shell.does("jobs")  # the shell takes note that the fourth has ended
    shell.does(next(c for c in commands if "site-3/start.sh" in c))
    output = run_up_to("resume=true")
    assert json.loads((runs / "knfu/summary.json").read_text())["status"] == "completed", output
    happened = [event["event"] for line in lines(runs / "knfu") for event in line["events"]]
    assert not any("lost" in event for event in happened), happened  # it had its state on disk
    simulated = read_config(HOME / "configs/knfu/sites-simulated.toml")
    left = simulated.model_copy(
        update={
            "rounds": 4,
            "strategy": simulated.strategy.model_copy(update={"name": f"{PLUGINS / 'leaves.py'}:LeavingKnFu"}),
        }
    )
    run(left, tmp_path / "left")
    assert comparable(runs / "knfu") == comparable(tmp_path / "left")
    assert comparable(runs / "knfu")[:2] == comparable(tmp_path / "runs/knfu-simulated")[:2]  # the undisturbed rounds
    assert {node for line in comparable(runs / "knfu") for node, _ in line["failures"]} == {2}
    kept = list((tmp_path / "federation/sites/site-1/state").rglob("*.safetensors"))
    assert kept

    # FedAvg: the second site is killed in round 2
    run_up_to("site-3/start.sh")
    _, *sites = shell.jobs()
    killer = kill_after_round(runs / "fedavg", 1, sites[1])
    run_up_to("run.sh")
    killer.join(10)
    assert ran == len(commands)
    averaged = read_config(HOME / "configs/fedavg/sites.toml")
    data = simulated.data.model_copy(update={"public": None})
    strategy = averaged.strategy.model_copy(update={"name": f"{PLUGINS / 'leaves.py'}:LeavingFedAvg"})
    run(averaged.model_copy(update={"data": data, "strategy": strategy}), tmp_path / "averaged-left")
    assert comparable(runs / "fedavg") == comparable(tmp_path / "averaged-left")
    run(averaged.model_copy(update={"data": data}), tmp_path / "averaged")
    assert comparable(runs / "fedavg")[:2] == comparable(tmp_path / "averaged")[:2]
    assert {node for line in comparable(runs / "fedavg") for node, _ in line["failures"]} == {1}


def test_run_sh_exits_with_1_for_a_run_that_failed_and_2_for_a_config_that_was_refused(
    shell: Shell, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    home = '"a federation"/server'
    shell.does(f'fedkd deploy init "a federation" --config configs/knfu/sites.toml --sites 3 --port {port}')
    shell.does(f"{home}/start.sh > server.log 2>&1 &")
    wait_for(tmp_path / "server.log", "Uvicorn running")
    for changes, code, said in (("strategy.beta=-1.0", 2, "strategy.beta = -1.0"), ("timeout=1.0", 1, "0 of 3 sites")):
        output = shell.does(f"{home}/run.sh --run-config 'set=\"{changes}\"'; echo code $?")
        assert output.endswith(f"code {code}\n"), output
        assert said in output


def strangers_get_nowhere(shell: Shell, tmp_path: Path, port: str) -> None:
    """Try to take part with a key that nobody registered, with another authority's certificate, and without TLS."""
    shell.does(f"fedkd deploy init strangers --config configs/fedavg/sites.toml --sites 3 --port {port}")
    shell.does("cp federation/server/ca.crt strangers/sites/site-1/ca.crt")
    tries = {
        "site-1": "strangers/sites/site-1/start.sh",
        "site-2": "strangers/sites/site-2/start.sh",
        "plain": f"flower-supernode --insecure --superlink 127.0.0.1:{port} --port {free_ports(1)[0]} --max-retries 1",
    }
    for name, command in tries.items():
        environment = f"DATA=digits RUNTIME_PORT={free_ports(1)[0]}"
        shell.does(f"{environment} timeout 20 {command} > {name}.log 2>&1 && exit 1 || true")
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in tries}
    assert not any("SuperNode ID" in log for log in logs.values()), logs  # it is given one when it is let in
    reasons = {
        "site-1": "Failed to activate SuperNode",
        "site-2": "CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "plain": "disconnected|[Cc]onnection|RemoteProtocolError|400",
    }
    for name, reason in reasons.items():
        assert re.search(reason, logs[name]), f"{name}: {logs[name]}"
    for name in ("site-1", "site-2", "site-3"):  # the same scripts, with registered keys
        wait_for(tmp_path / f"federation/{name}.log", "SuperNode ID")
    listed = shell.does("federation/server/flwr.sh supernode list --format json")
    assert [node["status"] for node in json.loads(listed[listed.index("{") :])["nodes"]] == ["online"] * 3, listed


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_lets_sites_through_and_nobody_else(shell: Shell, tmp_path: Path) -> None:
    front, superlink, runtime = map(str, free_ports(3))
    shell.does(f"fedkd deploy init fed --config configs/fedavg/sites.toml --sites 3 --host 127.0.0.2 --port {front}")
    for name in ("start.sh", "flwr.sh", "nginx.conf"):
        path = tmp_path / "fed/server" / name
        path.write_text(
            path.read_text().replace(":8000", f":{superlink}").replace("--port 8000", f"--port {superlink}")
        )
    conf = (tmp_path / "fed/server/nginx.conf").read_text().replace("/opt/fedkd", str(tmp_path / "fed"))
    paths = "".join(
        f"{what}_temp_path {tmp_path}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}} http {{ access_log off; {paths}\n{conf}}}"
    (tmp_path / "whole.conf").write_text(whole)
    shell.does(f"nginx -c {tmp_path}/whole.conf -p {tmp_path} -g 'daemon off;' > nginx.log 2>&1 &")
    shell.does("fed/server/start.sh > server.log 2>&1 &")
    wait_for(tmp_path / "server.log", "Uvicorn running")
    shell.does("fed/server/register.sh fed/sites/site-1/key.pub")
    shell.does(f"DATA=digits RUNTIME_PORT={runtime} fed/sites/site-1/start.sh > site.log 2>&1 &")
    wait_for(tmp_path / "site.log", "SuperNode ID")
    context = ssl.create_default_context(cafile=tmp_path / "fed/server/ca.crt")
    answers = {}
    for path in ("control/list-runs", "control/register-node", "runtime/get-nodes", "fleet/pull-messages"):
        request = urllib.request.Request(f"https://127.0.0.2:{front}/v1/{path}", data=b"", method="POST")
        try:
            with urllib.request.urlopen(request, context=context) as answer:
                answers[path] = answer.status
        except urllib.error.HTTPError as error:
            answers[path] = error.code
    assert answers.pop("fleet/pull-messages") != 403  # the SuperLink itself answers there
    assert set(answers.values()) == {403}, answers


HOSTILE_SITE = """\
rounds = ROUNDS
timeout = 120.0
payload_limit = 10_000_000
[data]
name = "digits"
train_per_class = 20
partition = { scheme = "iid", clients = 3 }
[model]
name = "mlp"
hidden = [8]
[strategy]
name = "fedavg"
[evaluate]
every = 100
"""


def test_a_hostile_site_changes_nothing_for_two_honest_ones(shell: Shell, tmp_path: Path) -> None:
    """Each trick in turn; before them it takes another's name, after them it lies about its images."""
    rounds = len(TRICKS) + 3
    (tmp_path / "c.toml").write_text(HOSTILE_SITE.replace("ROUNDS", str(rounds)))
    ports = free_ports(4)
    shell.does(f"fedkd deploy init fed --config c.toml --sites 3 --port {ports[0]}")
    shell.does("fed/server/start.sh > server.log 2>&1 &")
    wait_for(tmp_path / "server.log", "Uvicorn running")
    shell.does("fed/server/register.sh")
    evil = f"PYTHONPATH={PLUGINS / 'hostile_site'}:{HOME / 'tests'} RUNTIME_PORT={ports[3]}"

    def begin(variables: str, site: int, log: str) -> None:
        shell.does(f"{variables} fed/sites/site-{site}/start.sh > {log} 2>&1 &")
        wait_for(tmp_path / log, "SuperNode ID")

    begin(f"RUNTIME_PORT={ports[1]}", 1, "site-1.log")
    begin(f"RUNTIME_PORT={ports[2]}", 2, "site-2.log")
    begin(f"{evil} SITE=site-2", 3, "name.log")
    shell.does("(fed/server/run.sh --run-config 'out=\"runs/a\"' > run.log 2>&1; echo $? > code) &")
    wait_for(tmp_path / "run.log", "its key was registered under the name")
    end(shell, str(tmp_path), "site-3")
    begin(evil, 3, "site-3.log")
    folder = tmp_path / "fed/server/runs/a"
    wait_for(folder / "metrics.jsonl", f'"round": {len(TRICKS)},', seconds=600)
    end(shell, str(tmp_path), "site-3")
    begin(f"{evil} LIED_IMAGES=2147483647", 3, "images.log")
    wait_for(tmp_path / "code", "\n", seconds=300)

    output = (tmp_path / "run.log").read_text()
    assert (tmp_path / "code").read_text() == "0\n", output
    found = lines(folder)
    blamed = {(failure["node"], failure["action"]) for line in found for failure in line["failures"]}
    assert blamed <= {(2, "fit"), (2, "evaluate")}, blamed
    assert all(line["failures"] for line in found[1 : len(TRICKS) + 1])
    events = [event["event"] for line in found for event in line["events"]]
    assert any("and 2147483647 now" in event for event in events) or found[-1]["failures"], events

    config = read_config(tmp_path / "c.toml")
    strategy = config.strategy.model_copy(update={"name": f"{PLUGINS / 'leaves.py'}:AloneFedAvg"})
    run(config.model_copy(update={"strategy": strategy}), tmp_path / "without")
    models = [checkpoint_bytes(one)["server.safetensors"] for one in (folder, tmp_path / "without")]
    assert models[0] == models[1]
