"""SIGTERM at sites: of the task alone, and of the whole SuperNode. The others go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers import PLUGINS, lines
from helpers.federations import events, failures
from helpers.shell import Shell
from helpers.superlink import end, free_ports, wait_for

CONFIG = f"""\
rounds = 4
[data]
name = "digits"
train_per_class = 20
partition = {{ scheme = "iid", clients = 3 }}
[model]
name = "mlp"
hidden = [8]
[strategy]
name = "{PLUGINS / "waits.py"}:WaitingFedAvg"
[evaluate]
every = 100
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(1800)
def test_sigterm_is_a_named_failure_of_its_site_and_the_others_go_on(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    ports = free_ports(4)
    shell.does(f"fedkd deploy init fed --config c.toml --sites 3 --port {ports[0]} --insecure")
    shell.does("fed/server/start.sh > server.log 2>&1 &")
    wait_for(tmp_path / "server.log", "Uvicorn running")
    for site in (1, 2, 3):
        environment = f"WAITING={tmp_path} RUNTIME_PORT={ports[site]}"
        shell.does(f"{environment} fed/sites/site-{site}/start.sh > site-{site}.log 2>&1 &")
        wait_for(tmp_path / f"site-{site}.log", "SuperNode ID")
    shell.does("(fed/server/run.sh --run-config 'out=\"runs/a\"' > run.log 2>&1; echo $? > code) &")

    wait_for(tmp_path / "1", "\n")
    os.kill(int((tmp_path / "1").read_text()), signal.SIGTERM)  # the task alone: its site goes on
    wait_for(tmp_path / "2", "\n")
    end(shell, str(tmp_path), "site-3")  # as `systemctl stop` and `docker stop` do
    wait_for(tmp_path / "code", "\n", seconds=300)

    folder = tmp_path / "fed/server/runs/a"
    assert (tmp_path / "code").read_text() == "0\n", (tmp_path / "run.log").read_text()
    assert failures(folder) == [
        "2 1 fit: ended at the site by SIGTERM",
        "3 2 fit: its SuperNode has stopped during the request, or has given no sign of life for a minute",
        "4 2 fit: is not connected",
        "4 2 evaluate: is not connected",
    ]
    assert [len(line["cohort"]) for line in lines(folder)[1:]] == [3, 3, 3, 3]
    assert len(events(folder)) == 3  # nobody has joined anew
    assert "ended at the site by SIGTERM" in (tmp_path / "site-2.log").read_text()
