"""The procedures of docs/operations.md, by the commands that it names, over real SuperLinks and SuperNodes."""

from __future__ import annotations

import re
import shutil
import ssl
from importlib.metadata import distribution
from pathlib import Path

import pytest
from helpers import lines
from helpers.docs import commands_of
from helpers.federations import events, failures
from helpers.shell import Shell
from helpers.superlink import end, free_ports, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(1800)]
CONFIG = """\
rounds = 200
[data]
sites = { count = 2, classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], shape = [1, 8, 8] }
mean = [0.3053]
deviation = [0.376]
[model]
name = "mlp"
hidden = [8]
[strategy]
name = "fedavg"
[evaluate]
every = 1000
[checkpoint]
every = 1
"""


PAGE = [command for block in commands_of("docs/operations.md") for command in block.commands]


def by_the_page(part: str, **changes: str) -> str:
    """Return the page's only command with this part, with words in it replaced."""
    (command,) = (one for one in PAGE if part in one)
    for old, new in changes.items():
        assert old in command, (old, command)
        command = command.replace(old, new)
    return command


def begin_site(shell: Shell, number: int, port: int, log: str, more: str = "") -> None:
    environment = f"{more} DATA=npz:{shell.folder}/sites-data/node-{number - 1}.npz RUNTIME_PORT={port}"
    shell.does(f"{environment} federation/sites/site-{number}/start.sh > {log} 2>&1 &")
    wait_for(shell.folder / log, "SuperNode ID")


def begin_server(shell: Shell, log: str) -> None:
    shell.does(f"federation/server/start.sh > {log} 2>&1 &")
    wait_for(shell.folder / log, "Uvicorn running")


def begin_run(shell: Shell, name: str, config: str) -> None:
    shell.does(f"(federation/server/run.sh --run-config '{config}' > {name}.log 2>&1; echo $? > {name}.code) &")


def number_in(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text())
    assert found is not None, path.read_text()
    return found[1]


def test_sites_are_added_and_removed_keys_and_the_authority_are_replaced_and_a_run_folder_comes_back(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "run.toml").write_text(CONFIG.replace("count = 2", "count = 3"))
    port, *runtime = free_ports(5)
    folder = tmp_path / "federation/server/runs/a"
    shell.does("fedkd partition configs/knfu/sites-simulated.toml --write sites-data")
    shell.does(f"fedkd deploy init federation --config c.toml --sites 2 --port {port}")
    begin_server(shell, "server.log")
    shell.does("federation/server/register.sh")
    begin_site(shell, 1, runtime[0], "site-1.log")
    begin_site(shell, 2, runtime[1], "site-2.log")
    begin_run(shell, "first", 'out="runs/a"')
    wait_for(folder / "metrics.jsonl", '"round": 1,', seconds=300)

    # a new site, while the run goes on. Its ca.crt has two authorities: the next one is made known before it is used
    here = {"--host fl.example.org": f"--port {port}", "configs/fedavg/sites.toml": "run.toml"}
    shell.does(by_the_page("--force", **here))
    shell.does(by_the_page("fedkd deploy init next", **here))
    for site in ("site-1", "site-3"):
        shell.does(by_the_page("cat next/server/ca.crt", **{"site-1": site}))
    shell.does(by_the_page("keys/site-3.pub"))
    for version in ("0.2.0", "0.1.7"):  # of fedkd, as the site reports it
        about = tmp_path / version / f"fedkd-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fedkd\nVersion: {version}\n")
        (about / "entry_points.txt").write_text(distribution("fedkd").read_text("entry_points.txt") or "")
    begin_site(shell, 3, runtime[2], "site-3-new.log", f"PYTHONPATH={tmp_path / '0.2.0'}")
    wait_for(
        tmp_path / "first.log",
        f"site-3: refused: it runs fedkd 0.2.0, the server {distribution('fedkd').version}; install",
    )
    wait_for(tmp_path / "site-3-new.log", "The server refused this site: it runs fedkd 0.2.0")
    end(shell, str(tmp_path), "site-3")
    begin_site(shell, 3, runtime[2], "site-3.log", f"PYTHONPATH={tmp_path / '0.1.7'}")
    wait_for(tmp_path / "first.log", "site-3 (node 2): joined")
    wait_for(folder / "metrics.jsonl", '"cohort": [0, 1, 2]', seconds=300)

    # a site leaves for good: its SuperNode ends, and its key counts no more
    end(shell, str(tmp_path), "site-2")
    second = number_in(r"SuperNode ID: (\d+)", tmp_path / "site-2.log")
    shell.does(by_the_page("supernode unregister", NODE_ID=second))
    wait_for(folder / "metrics.jsonl", "is not connected", seconds=300)
    refused = shell.does(
        f"DATA=digits RUNTIME_PORT={runtime[1]} timeout 60 federation/sites/site-2/start.sh 2>&1 && exit 1 || true"
    )
    assert "Failed to activate SuperNode" in refused, refused

    # the run is stopped at a whole round; the server's folder is saved, lost, and comes back
    run = number_in(r"started run (\d+)", tmp_path / "first.log")
    shell.does(by_the_page("flwr.sh stop", RUN_ID=run))
    wait_for(tmp_path / "first.code", "\n", seconds=300)
    assert (tmp_path / "first.code").read_text() == "1\n"
    rounds = len(lines(folder))
    assert {failure.split()[1] for failure in failures(folder)} <= {"1"}
    end(shell, str(tmp_path), program="flower-superlink")
    shell.does(by_the_page("tar -C federation -cf"))
    shell.does("rm -r federation/server")
    shell.does(by_the_page("tar -C federation -xf"))

    # site-1 gets a new key, and the server a certificate of the next authority
    shell.does(by_the_page("ssh-keygen"))
    shell.does("mv key federation/sites/site-1/key && mv key.pub site-1.pub")
    end(shell, str(tmp_path), "site-1")
    shell.does(by_the_page("cp next/server/server.crt"))
    begin_server(shell, "again.log")
    first = number_in(r"SuperNode ID: (\d+)", tmp_path / "site-1.log")
    shell.does(by_the_page("supernode unregister", NODE_ID=first))
    shell.does(by_the_page("register.sh site-1.pub"))
    begin_site(shell, 1, runtime[0], "site-1-again.log")
    assert number_in(r"SuperNode ID: (\d+)", tmp_path / "site-1-again.log") != first

    # the name belongs to the old key until the operator says otherwise
    assert "online" in shell.does(by_the_page("supernode list"))
    begin_run(shell, "second", f'out="runs/a" resume=true set="data.sites.count=2; rounds={rounds + 2}"')
    wait_for(tmp_path / "second.log", f"site-1: refused: the name belongs to SuperNode {first}")
    run = number_in(r"started run (\d+)", tmp_path / "second.log")
    shell.does(by_the_page("flwr.sh stop", RUN_ID=run))
    wait_for(tmp_path / "second.code", "\n", seconds=300)
    roster = folder / "sites.json"
    roster.write_text(re.sub(rf'\n\s*"site-1": {first},', "", roster.read_text()))
    assert first not in roster.read_text()
    rounds = len(lines(folder))
    begin_run(shell, "third", f'out="runs/a" resume=true set="data.sites.count=2; rounds={rounds + 1}"')
    wait_for(tmp_path / "third.code", "\n", seconds=300)
    assert (tmp_path / "third.code").read_text() == "0\n", (tmp_path / "third.log").read_text()
    output = (tmp_path / "third.log").read_text()
    assert "site-1 (node 0): is back" in output
    assert "site-3 (node 2): is back" in output  # it has not been started anew: it found the server again
    found = lines(folder)
    assert [line["round"] for line in found] == list(range(rounds + 2))
    assert {failure["node"] for failure in found[-1]["failures"]} == {1}
    assert not any("lost" in event for event in events(folder))


def test_a_renewed_certificate_is_served_while_a_run_goes_on(shell: Shell, tmp_path: Path) -> None:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    (tmp_path / "c.toml").write_text(CONFIG.replace("rounds = 200", "rounds = 5").replace("count = 2", "count = 1"))
    front, superlink, runtime = free_ports(3)
    shell.does("fedkd partition configs/knfu/sites-simulated.toml --write sites-data")
    shell.does(f"fedkd deploy init federation --config c.toml --sites 1 --host 127.0.0.2 --port {front}")
    server, folder = tmp_path / "federation/server", tmp_path / "federation/server/runs/a"
    for name in ("start.sh", "flwr.sh", "nginx.conf"):
        text = (server / name).read_text().replace(":8000", f":{superlink}")
        (server / name).write_text(text.replace("--port 8000", f"--port {superlink}"))
    paths = "".join(
        f"{what}_temp_path {tmp_path}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = (server / "nginx.conf").read_text().replace("/opt/fedkd", str(tmp_path / "federation"))
    log = f"pid {tmp_path}/pid; error_log {tmp_path}/error.log;"
    (tmp_path / "whole.conf").write_text(f"{log} events {{}} http {{ access_log off; {paths}\n{conf}}}")
    nginx = f"nginx -c {tmp_path}/whole.conf -p {tmp_path}"
    shell.does(f"{nginx} -g 'daemon off;' > nginx.log 2>&1 &")
    begin_server(shell, "server.log")
    shell.does("federation/server/register.sh")
    begin_site(shell, 1, runtime, "site-1.log")
    begin_run(shell, "run", 'out="runs/a"')
    wait_for(folder / "metrics.jsonl", '"round": 1,', seconds=300)

    def served(port: int) -> str:
        return ssl.get_server_certificate(("127.0.0.2" if port == front else "127.0.0.1", port))

    def in_file() -> str:
        return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert((server / "server.crt").read_text()))

    before = in_file()
    assert served(front) == served(superlink) == before
    shell.does(by_the_page("fedkd deploy renew"))
    assert in_file() != before
    assert served(front) == before
    shell.does(by_the_page("nginx -s reload", nginx=nginx))
    assert served(superlink) == before  # Flower reads its own certificate at its start only
    wait_for(tmp_path / "run.code", "\n", seconds=300)
    assert served(front) == in_file()
    assert (tmp_path / "run.code").read_text() == "0\n", (tmp_path / "run.log").read_text()
    assert (len(lines(folder)), failures(folder)) == (6, [])
    assert [event.split()[1] for event in events(folder)] == ["site-1:"]  # it has not been started anew
