"""Ray clusters of several machines and GPUs, and what the engine leaves behind: each in a process of its own."""

from __future__ import annotations

import datetime
import ipaddress
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from helpers import PLUGINS, TINY, checkpoint_bytes, lines, merged

from fedkd.config import parse_config
from fedkd.runs.run import run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


HEAD = """
import json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from fedkd.config import read_config
from fedkd.core.setup import make_setup
from fedkd.runs.run import make_engine, run
out = Path(sys.argv[2])
"""


def in_a_process(script: str, config: dict[str, Any], out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the paths of the config and the run folder, and more arguments."""
    file = out.parent / f"{out.name}.toml"
    file.write_text(tomli_w.dumps(config))
    command = [sys.executable, "-c", HEAD + script, str(file), str(out), *more]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


TWO_MACHINES = """
soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": soon})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
Path(sys.argv[3]).write_text(ray.get_runtime_context().get_node_id())
reported = []
run(read_config(Path(sys.argv[1])), out, on_event=reported.append)
print(json.dumps({"reported": reported, "machines": sum(node["Alive"] for node in ray.nodes())}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize(("hidden", "reported"), [(16, []), (400, ["was lost with the machine"])])
def test_a_machine_that_is_lost_in_a_round_changes_no_result(hidden: int, reported: list[str], tmp_path: Path) -> None:
    """Small states are the driver's own; large ones go with the machine, and the run back to its last checkpoint."""
    marker = tmp_path / "marker"
    strategy = {"name": f"{PLUGINS / 'lose_node.py'}:LoseNode", "marker": str(marker)}
    changes = {
        "strategy": strategy, "rounds": 5, "checkpoint": {"every": 4}, "evaluate.every": 9,
        "model": {"name": "mlp", "hidden": [hidden] * 2},
    }  # fmt: skip
    run(parse_config(merged(TINY, changes)), tmp_path / "whole")
    config = merged(TINY, {**changes, "engine": {"name": "ray", "workers": 2}})
    ended = in_a_process(TWO_MACHINES, config, tmp_path / "lost", str(marker))
    assert not marker.exists()
    found = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))
    assert found["machines"] == 1
    events = [text for text in found["reported"] if not text.startswith("data: ")]
    assert len(events) == len(reported)
    assert all(expected in text for expected, text in zip(reported, events, strict=True))
    assert lines(tmp_path / "lost") == lines(tmp_path / "whole")
    assert checkpoint_bytes(tmp_path / "lost") == checkpoint_bytes(tmp_path / "whole")


BY_ADDRESS = """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
from fedkd.cli import app
try:
    app(["run", sys.argv[1], "--out", str(out), "--set", f"engine.address={cluster.address}"])
finally:
    cluster.shutdown()
"""


def test_the_third_command_of_the_guide_reaches_two_machines_by_their_address(tmp_path: Path) -> None:
    run(parse_config(TINY), tmp_path / "inline")
    config = merged(TINY, {"engine": {"name": "ray", "workers": 2}})  # more than either of the machines has cores
    in_a_process(BY_ADDRESS, config, tmp_path / "ray")
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "inline")


NEIGHBOUR = """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 77})
from fedkd.simulations.ray_placement import connect
connect(None)
Path(sys.argv[2]).write_text(json.dumps(ray.cluster_resources()["CPU"]))
ray.shutdown()
cluster.shutdown()
"""


def test_without_an_address_a_cluster_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    in_a_process(NEIGHBOUR, TINY, tmp_path / "cpus")
    assert json.loads((tmp_path / "cpus").read_text()) != 77


GPUS = """
ray.init(address="local", num_cpus=8, num_gpus=4, log_to_driver=False, logging_level="ERROR")
setup = make_setup(read_config(Path(sys.argv[1])))
with make_engine(setup) as grid:
    seen = lambda worker: sorted(int(number) for number in ray.get_gpu_ids())
    where = ray.get([slot.actor.__ray_call__.remote(seen) for slot in grid.pool.slots])
print(json.dumps(where))
"""


@pytest.mark.parametrize(
    ("share", "workers", "placed"),
    [
        (0.5, 8, [[0], [0], [1], [1], [2], [2], [3], [3]]),
        (1.0, 4, [[0], [1], [2], [3]]),
        (2.0, 2, [[0, 1], [2, 3]]),
        (0.4, "auto", [[0], [0], [1], [1], [2], [2]]),
        (0.0, 2, [[], []]),
    ],
)
def test_workers_land_where_their_shares_of_gpus_say(share: float, workers: Any, placed: list, tmp_path: Path) -> None:
    engine = {"name": "ray", "workers": workers, "gpus_per_worker": share, "device": "cpu"}
    ended = in_a_process(GPUS, merged(TINY, {"engine": engine}), tmp_path / "run")
    assert sorted(json.loads(ended.stdout.splitlines()[-1])) == placed


OUT_OF_MEMORY = """
ray.init(address="local", num_cpus=4, num_gpus=1, log_to_driver=False, logging_level="ERROR")
run(read_config(Path(sys.argv[1])), out)
"""


@pytest.mark.parametrize(
    ("strategy", "fails"),
    [("FedAvg", "raise torch.OutOfMemoryError('CUDA out of memory')"), ("Local", "torch.empty(2**45)")],
    ids=["FedAvg", "Local"],
)
def test_out_of_memory_halves_the_packing_once_and_tries_again(strategy: str, fails: str, tmp_path: Path) -> None:
    plugin = tmp_path / "greedy.py"
    plugin.write_text(
        "import os, torch\n"
        "from pathlib import Path\n"
        "from typing import ClassVar\n"
        "import ray\n"
        f"from fedkd.strategies.{strategy.lower()} import {strategy}\n"
        f"class Greedy({strategy}.client):\n"
        "    def fit(self, request):\n"
        "        share = ray.get_runtime_context().get_assigned_resources().get('GPU', 1)\n"
        "        if self.round == 2 and self.node in (1, 4) and share < 0.5:\n"
        f"            {fails}\n"
        "        if self.round == 3 and self.node == 2:\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory, whatever the share')\n"
        "        return super().fit(request)\n"
        f"class Run({strategy}):\n"
        "    client: ClassVar = Greedy\n"
    )
    changes = {"strategy": f"{plugin}:Run", "rounds": 3, "evaluate.every": 9}
    engine = {"name": "ray", "workers": 4, "gpus_per_worker": 0.25, "device": "cpu"}
    ended = in_a_process(OUT_OF_MEMORY, merged(TINY, {**changes, "engine": engine}), tmp_path / "run")
    assert ended.stderr.count("continuing with 2 workers instead of 4") == 1
    found = lines(tmp_path / "run")
    assert [len(line["failures"]) for line in found] == [0, 0, 0, 1]
    assert "whatever the share" in found[3]["failures"][0]["reason"]


LOAD = """
import gc, os, resource, time
ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
def memory():
    gc.collect()
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(own.split()[1]) * 1024  # which pages of Ray's store it has read depends on who was faster
seen = []
run(read_config(Path(sys.argv[1])), out, lambda record, environment: seen.append(memory()))
have, ends = ray.cluster_resources(), time.monotonic() + 30
while (free := ray.available_resources()) != have and time.monotonic() < ends:  # Ray tells it a moment later
    ray.wait([ray.put(None)])
print(json.dumps({"seen": seen, "have": have, "free": free}))
"""


def test_fifty_rounds_of_a_thousand_idle_clients_leave_nothing_behind(tmp_path: Path) -> None:
    plugin = tmp_path / "idle.py"
    plugin.write_text(
        "from typing import ClassVar\n"
        "from fedkd import Payload\n"
        "from fedkd.strategies.fedavg import FedAvg\n"
        "class IdleClient(FedAvg.client):\n"
        "    def fit(self, request):\n"
        "        return Payload(weights=request.weights, numbers={'examples': 1, 'loss': 0.0})\n"
        "class Idle(FedAvg):\n"
        "    client: ClassVar = IdleClient\n"
    )
    changes = {
        "strategy": f"{plugin}:Idle", "rounds": 50, "evaluate.every": 99, "evaluate.fraction": 0.001,
        "data.partition": {"scheme": "iid", "clients": 1000}, "data.node_test": 1,
        "model": {"name": "mlp", "hidden": [64]}, "engine": {"name": "ray", "workers": 2},
    }  # fmt: skip
    ended = in_a_process(LOAD, merged(TINY, changes), tmp_path / "run")
    found = json.loads(ended.stdout.splitlines()[-1])
    later = found["seen"][11:]  # the first rounds fill caches
    slope = sum((i - len(later) / 2) * (m - later[0]) for i, m in enumerate(later)) / sum(
        (i - len(later) / 2) ** 2 for i in range(len(later))
    )
    # a model is 25 kB: one kept by each client would be 25 MB; the memory of the process itself moves by some models
    assert slope < 250_000, f"{slope:.0f} bytes a round"
    assert found["free"] == found["have"]  # CPUs of actors, memory of objects


SPILL = """
ray.init(
    address="local", num_cpus=2, object_store_memory=80 * 2**20, log_to_driver=False, logging_level="ERROR",
    _system_config={"local_fs_capacity_threshold": 1.0},  # also on a disk that is almost full
)
run(read_config(Path(sys.argv[1])), out)
"""


@pytest.mark.parametrize("strategy", ["local", "knfu"])
def test_personal_models_beyond_the_object_store_spill_to_disk(strategy: str, tmp_path: Path) -> None:
    changes = {
        "strategy": {"name": strategy}, "rounds": 2, "evaluate.every": 9, "evaluate.fraction": 0.01,
        "data.public": {"size": 40}, "data.partition": {"scheme": "iid", "clients": 40}, "data.node_test": 1,
        "model": {"name": "mlp", "hidden": [1000, 1000]},  # 4.3 MB; all of them are twice the store
    }  # fmt: skip
    run(parse_config(merged(TINY, changes)), tmp_path / "inline")
    in_a_process(SPILL, merged(TINY, {**changes, "engine": {"name": "ray", "workers": 2}}), tmp_path / "ray")
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "inline")


def test_ctrl_c_ends_workers_and_cluster_and_writes_a_checkpoint(tmp_path: Path) -> None:
    changes = {"rounds": 100_000, "checkpoint": {"every": 90_000}, "engine": {"name": "ray", "workers": 2}}
    config, out = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(tomli_w.dumps(merged(TINY, changes)))
    command = [sys.executable, "-m", "fedkd", "run", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 5/"):
            break
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert children.stdout.split()
    for child in children.stdout.split():  # Ray's own processes
        ended = subprocess.run(["tail", f"--pid={child}", "-f", "/dev/null"], timeout=60, check=False)
        assert ended.returncode == 0
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    reached = max(int(path.name.removeprefix("round-")) for path in out.glob("checkpoints/round-*"))
    assert reached >= 4


BEHIND_TLS = """
import os, subprocess
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
words = [sys.executable, "-m", "fedkd", "run", sys.argv[1], "--set", f"engine.address={cluster.address}", "--out"]
without = {**os.environ, "RAY_AUTH_TOKEN": "0" * 32}
try:
    done = subprocess.run([*words, str(out)], capture_output=True, text=True)
    refused = subprocess.run([*words, sys.argv[3]], env=without, capture_output=True, text=True, timeout=100)
finally:
    cluster.shutdown()
print(json.dumps([done.returncode, done.stderr[-500:], refused.returncode, refused.stderr]))
"""


def write_certificate(folder: Path, address: str) -> None:
    """Write a certificate that is its own authority: for both ends of a connection, as Ray needs it."""
    key, today = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name, day = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ray")]), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), today - day, today + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ray.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "ray.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


def test_a_cluster_with_a_token_and_tls_runs_the_users_runs_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/scale-out.md says: Ray's own variables, on all machines."""
    write_certificate(tmp_path, ray.util.get_node_ip_address())
    for name, value in {
        "AUTH_MODE": "token", "AUTH_TOKEN": "1" * 32, "USE_TLS": "1", "TLS_CA_CERT": str(tmp_path / "ray.crt"),
        "TLS_SERVER_CERT": str(tmp_path / "ray.crt"), "TLS_SERVER_KEY": str(tmp_path / "ray.key"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"RAY_{name}", value)
    config = merged(TINY, {"engine": {"name": "ray", "workers": 2}})
    ended = in_a_process(BEHIND_TLS, config, tmp_path / "ray", str(tmp_path / "refused"))
    code, errors, refused, said = json.loads(ended.stdout.splitlines()[-1])
    assert code == 0, errors
    assert refused == 2
    assert "If it asks for a token or TLS, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in said
    assert "Traceback" not in said
    run(parse_config(TINY), tmp_path / "inline")
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "inline")
