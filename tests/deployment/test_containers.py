"""The commands and environments of generated compose files, as processes: three sites, metrics, JSON logs, a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.exporter import scrape
from helpers.manifests import service_of
from helpers.shell import Shell
from helpers.superlink import free_ports, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(1800)]
CONFIG = """\
rounds = 3
[data]
sites = { count = 3, classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], shape = [1, 8, 8] }
mean = [0.3053]
deviation = [0.376]
[model]
name = "mlp"
hidden = [8]
[strategy]
name = "fedavg"
[evaluate]
every = 3
"""


def begin(shell: Shell, service: dict[str, Any], log: str, **more: str) -> None:
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in (service["environment"] | more).items())
    shell.does(f"{environment} {shlex.join(service['command'])} > {log} 2>&1 &")


def health(shell: Shell, service: dict[str, Any], old: str, new: str) -> str:
    """Return the exit code of the health check of a service whose port in the container is another here."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return shell.does(f"{shlex.join(command).replace(old, new)} 2> health.log; echo $?")


def test_a_run_over_what_the_compose_files_start(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    shell.does("fedkd partition configs/knfu/sites-simulated.toml --write sites-data")
    shell.does("fedkd deploy init fed --config c.toml --sites 3 --host fl.example.org --target compose")
    superlink, *ports = map(str, free_ports(8))
    runtime, metrics = dict(zip((1, 2, 3), ports[:3], strict=True)), dict(enumerate(ports[3:]))
    fed = tmp_path / "fed"
    for path in (fed / "server/start.sh", fed / "server/flwr.sh"):  # the port behind nginx
        path.write_text(
            path.read_text().replace(":8000", f":{superlink}").replace("--port 8000", f"--port {superlink}")
        )
    for path in fed.glob("sites/*/start.sh"):  # there is no nginx between
        path.write_text(path.read_text().replace("fl.example.org:9443", f"127.0.0.1:{superlink}"))

    server = service_of(fed / "server/compose.yaml", "superlink", {"FEDKD_METRICS": metrics[0]})
    assert health(shell, server, "8000", superlink) != "0\n"
    begin(shell, server, "server.log")
    wait_for(tmp_path / "server.log", "Uvicorn running")
    assert health(shell, server, "8000", superlink) == "0\n"
    work = server["environment"]["WORK"]
    shell.does(f"WORK={work} fed/server/register.sh")
    for number in (1, 2, 3):
        home = fed / f"sites/site-{number}"
        variables = {"FEDKD_METRICS": metrics[number], "DATA_FOLDER": f"./{'../' * 3}sites-data"}
        site = service_of(home / "compose.yaml", "supernode", variables)
        data = f"npz:{site['environment']['FEDKD_DATA']}/node-{number - 1}.npz"
        begin(shell, site, f"site-{number}.log", RUNTIME_PORT=runtime[number], DATA=data)
        wait_for(tmp_path / f"site-{number}.log", "SuperNode ID")
        assert health(shell, site, "9094", runtime[number]) == "0\n"
    shell.does(f"(WORK={work} fed/server/run.sh --run-config 'out=\"runs/a\"' > run.log 2>&1; echo $? > code) &")

    wait_for(Path(work) / "runs/a/metrics.jsonl", '"round": 1,', seconds=300)
    found = scrape(int(metrics[0]))  # while the run goes on
    assert found["fedkd_rounds", "a"] == 3
    assert 1 <= found["fedkd_round", "a"] <= 3
    assert scrape(int(metrics[2]))["fedkd_site_requests_total", "answered", "fit"] >= 1
    wait_for(tmp_path / "code", "\n", seconds=300)
    output = (tmp_path / "run.log").read_text()
    assert (tmp_path / "code").read_text() == "0\n", output
    assert "site-2 (node 1): joined: 551 training images" in output

    found = scrape(int(metrics[0]))
    assert (found["fedkd_round", "a"], found["fedkd_run_ended", "a", "completed"]) == (3, 1)
    assert not any("failures" in name for name, *_ in found)
    of_sites = [scrape(int(metrics[number])) for number in (1, 2, 3)]
    for direction in ("up", "down"):  # what the sites have counted is what the server has counted
        total = sum(one["fedkd_site_bytes_total", direction, "weights"] for one in of_sites)
        assert total == found["fedkd_bytes_total", direction, "weights", "a"]

    for name in ("server", "site-1", "site-2", "site-3"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.log").read_text().splitlines()]
        assert {tuple(line) for line in lines} == {("time", "level", "source", "message")}
        assert {line["source"] for line in lines} == {name}
        assert len(lines) > 5
    messages = [json.loads(line)["message"] for line in (tmp_path / "server.log").read_text().splitlines()]
    assert f"run folder: {work}/runs/a" in messages  # Flower itself keeps a run's output for `flwr log` only
    assert [message for message in messages if message.startswith("round 3/3  ")] != []
    refused = shell.does(f"WORK={work} fed/server/run.sh --run-config 'set=\"train.epochs=0\"' 2>&1; echo code $?")
    assert refused.endswith("code 2\n"), refused
    last = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    (error,) = (line for line in last if "the run has failed" in line["message"])
    assert (error["level"], error["source"]) == ("ERROR", "server")
    assert "train.epochs = 0" in error["message"]

    # nothing is written outside of the folders that are mounted to be written
    written = {path.name for path in (fed / "server").iterdir()} | {
        path.name for path in (fed / "sites/site-1").iterdir()
    }
    assert not {"runs", "state.db", "flower", "operator", "node.toml"} & written
