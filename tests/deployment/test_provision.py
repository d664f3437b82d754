"""`fedkd deploy init`: a folder that is complete, that only its owner reads the keys of, and that names what it is."""

from __future__ import annotations

import json
import os
import re
import ssl
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.common.config import parse_config_args
from helpers import HOME
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import read_config
from fedkd.deployment.app import read_run_config
from fedkd.deployment.provision import provision
from fedkd.errors import InputError
from fedkd.registry import find

KNFU = HOME / "configs/knfu/sites.toml"


def test_the_folder_has_what_its_readme_speaks_of(tmp_path: Path) -> None:
    out = tmp_path / "federation"
    words = ["deploy", "init", str(out), "--config", str(KNFU), "--sites", "3", "--host", "fl.example.org"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"Next: follow {out / 'README.md'}" in result.output.replace("\n", "")
    text = (out / "README.md").read_text()
    steps = [line for line in text.splitlines() if line[:2] in {f"{n}." for n in range(9)}]
    assert len(steps) == 5
    for name in ("server/start.sh", "server/register.sh", "server/flwr.sh", "server/run.sh", "server/nginx.conf"):
        assert name in text
        assert (out / name).is_file()
    for path in out.rglob("*"):
        if path.is_file():
            private = path.name in ("key", "ca.key", "server.key")
            assert bool(path.stat().st_mode & stat.S_IXUSR) == (path.suffix == ".sh"), path
            assert not private or stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert not re.search(r"@\w+@", path.read_text()), path
            if path.suffix == ".sh":
                subprocess.run(["sh", "-n", str(path)], check=True)
    assert sorted(path.name for path in (out / "sites").iterdir()) == ["site-1", "site-2", "site-3"]
    # behind nginx, nothing but the Fleet API, and the SuperLink itself on the loopback
    nginx = (out / "server/nginx.conf").read_text()
    assert "location /v1/fleet/ {" in nginx
    assert "location / {\n        return 403;" in nginx
    assert "--host 127.0.0.1 --port 8000" in (out / "server/start.sh").read_text()
    assert "--superlink fl.example.org:9443" in (out / "sites/site-2/start.sh").read_text()


def test_certificates_and_keys(tmp_path: Path) -> None:
    provision(tmp_path / "fed", KNFU, 3, "10.1.2.3", 9443, insecure=False)
    server = tmp_path / "fed/server"
    certificate = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((server / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"10.1.2.3", "127.0.0.1", "::1"}
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    ssl.create_default_context(cafile=server / "ca.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    keys = set()
    for site in sorted((tmp_path / "fed/sites").iterdir()):
        private = serialization.load_ssh_private_key((site / "key").read_bytes(), None)
        public = serialization.load_ssh_public_key((site / "key.pub").read_bytes())
        assert private.public_key() == public
        assert (site / "ca.crt").read_bytes() == (server / "ca.crt").read_bytes()
        keys.add((site / "key.pub").read_bytes())
    assert len(keys) == 3


def test_insecure_is_said_and_has_no_keys(tmp_path: Path) -> None:
    provision(tmp_path / "fed", KNFU, 3, "127.0.0.1", 9443, insecure=True)
    assert "WITHOUT encryption" in (tmp_path / "fed/README.md").read_text()
    assert "--insecure" in (tmp_path / "fed/server/start.sh").read_text()
    assert "--insecure" in (tmp_path / "fed/sites/site-1/start.sh").read_text()
    assert not [path for path in (tmp_path / "fed").rglob("*") if path.name in ("ca", "key", "ca.crt", "server.key")]
    provision(tmp_path / "far", KNFU, 3, "fl.example.org", 9443, insecure=True)
    assert 'address = "127.0.0.1:9443"' in (tmp_path / "far/server/flwr.sh").read_text()
    assert "--port 9443" in (tmp_path / "far/server/start.sh").read_text()
    provision(tmp_path / "secure", KNFU, 3, "127.0.0.1", 9443, insecure=False)
    assert not any("--insecure" in path.read_text() for path in (tmp_path / "secure").rglob("*.sh"))


def test_a_plug_in_travels_with_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("methods").mkdir()
    Path("methods/mine.py").write_text(
        "from fedkd.strategies.fedavg import FedAvg\nclass Mine(FedAvg):\n    '''A method of ours.'''\n"
    )
    text = (HOME / "configs/fedavg/quick.toml").read_text()
    Path("run.toml").write_text(text.replace('name = "fedavg"', 'name = "methods/mine.py:Mine"'))
    provision(tmp_path / "fed", Path("run.toml"), 10, "127.0.0.1", 9443, insecure=False)
    carried = tmp_path / "fed/app"
    assert sorted(path.name for path in carried.iterdir()) == [
        "federation.toml", "fedkd_app.py", "mine.py", "pyproject.toml",
    ]  # fmt: skip
    about = tomllib.loads((carried / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert about["config"] == "federation.toml"
    assert "PARTITION" in (tmp_path / "fed/sites/site-2/site.env").read_text()
    Path("methods/mine.py").unlink()
    config = read_run_config(carried, about)
    assert config.strategy.name == "mine.py:Mine"
    assert find("strategies", config.strategy.name, "strategy.name").__doc__ == "A method of ours."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sites", "2"], "--sites 2: data.sites.count in .* is 3"),
        (["--sites", "3", "--host", "https://x"], "--host 'https://x': give a name or an address"),
        (["--sites", "0"], "0 is not in the range"),
        (["--sites", "3", "--config", "no.toml"], "There is no config file no.toml"),
    ],
)
def test_what_cannot_be_deployed_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["deploy", "init", str(tmp_path / "fed"), "--config", str(KNFU), *words])
    assert result.exit_code == 2
    assert re.search(message, result.stderr.replace("\n", " "))
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mean = [0.3053]", "mean = [0.3, 0.3, 0.3]", r"mean = \[0.3, 0.3, 0.3\].*sites.shape.* has 1 channel"),
        ("deviation = [0.376]", "deviation = [0.4, 0.4]", r"deviation = \[0.4, 0.4\].*sites.shape.* has 1 channel"),
        ("mean = [0.3053]", "channels = 3", r"channels = 3.*sites.shape.* has 1 channel"),
        ("mean = [0.3053]", "size = 16", r"size = 16.*sites.shape.* has 8 x 8 pixels"),
        ('"knfu"', '"knfu"\nbeta = -1.0', r"strategy.beta = -1.0"),
        ('"knfu"', '"fedavg"', r"model.names = .* fedavg needs equal models"),
        ('"resnet8"]', '"resnet9"]', r"model.names.2: unknown 'resnet9'; did you mean 'resnet8'"),
        ('["mlp", "cnn", "resnet8"]', '["torchvision:inception_v3"]', r"cannot be built for images of 1x8x8"),
        ('name = "digits"', 'name = "digitz"', r"unknown 'digitz'; did you mean 'digits'"),
        ("size = 300", "size = 3000", r"data.public.size = 3000"),
        ("public = ", "# public = ", r"needs a public set: set data.public"),
        ("seed = 0", "seed = 0\ncohort = 4", r"cohort = 4: the federation has only 3 nodes"),
        ("[train]", "[engine]\nname = 'inline'\nthreads = 0\n[train]", r"engine.threads = 0"),
        ("seed = 0", 'seed = 0\ntrackers = ["tensorbord"]', r"unknown 'tensorbord'; did you mean 'tensorboard'"),
    ],
)
def test_what_the_server_would_refuse_is_refused_before_anything_is_written(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = KNFU.read_text()
    assert old in text
    (tmp_path / "run.toml").write_text(text.replace(old, new))
    words = ["deploy", "init", str(tmp_path / "fed"), "--config", str(tmp_path / "run.toml"), "--sites", "3"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr.replace("\n", " "))
    assert not (tmp_path / "fed").exists()


def test_a_set_that_only_the_server_has_is_left_to_the_server_and_named(tmp_path: Path) -> None:
    server = KNFU.read_text().replace("shape = [1, 8, 8]", 'shape = [1, 8, 8], server = "npz:/srv/own.npz"')
    (tmp_path / "run.toml").write_text(server)
    words = ["deploy", "init", str(tmp_path / "fed"), "--config", str(tmp_path / "run.toml"), "--sites", "3"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "there is no file /srv/own.npz" in result.output.replace("\n", " ")
    assert "the server checks" in result.output.replace("\n", " ")
    # what needs no images is checked all the same
    (tmp_path / "run.toml").write_text(server.replace('"resnet8"]', '"resnet9"]'))
    refused = CliRunner().invoke(app, [*words[:2], str(tmp_path / "other"), *words[3:]])
    assert (refused.exit_code, (tmp_path / "other").exists()) == (2, False)


def test_a_share_of_the_configs_images_needs_a_site(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--sites 2: data.partition .* has 10 nodes"):
        provision(tmp_path / "fed", HOME / "configs/fedavg/quick.toml", 2, "127.0.0.1", 9443, insecure=True)


def write_fake_flwr(folder: Path, status: str, details: str = "") -> None:
    """Write a `flwr` that prints what Flower's own prints of a run that has ended with this status."""
    folder.mkdir()
    runs = [{"run-id": "17", "fab-id": "fedkd/fedkd-deploy", "status": status, "status-details": details}]
    (folder / "ended.json").write_text(json.dumps({"success": True, "runs": runs}, indent=2))
    (folder / "flwr").write_text(
        """#!/bin/sh
here=$(dirname "$0")
for word in "$@"; do printf '<%s>' "$word"; done >> "$here/asked"; echo >> "$here/asked"
case $1 in
    run) [ ! -f "$here/down" ] || { echo "Error: no SuperLink" >&2; exit 1; }; echo "Successfully started run 17" ;;
    log) echo "round 1/1" ;;
    ls) cat "$here/ended.json" ;;
esac
"""
    )
    (folder / "flwr").chmod(0o755)


@pytest.mark.parametrize(
    ("status", "details", "code"),
    [
        ("finished:completed", "", 0),
        ("finished:failed", "ServerApp failed with exception: round 2: 1 of 3 replies are good", 1),
        ("finished:failed", "ServerApp failed with exception: refused: strategy.beta = -1.0", 2),
        ("finished:stopped", 'a run with "status": "finished:completed" in its name', 1),
        ("running", "", 1),
    ],
)
def test_the_start_script_exits_with_the_code_of_the_run(tmp_path: Path, status: str, details: str, code: int) -> None:
    home = tmp_path / "a folder of the hospital's"
    provision(home, KNFU, 3, "127.0.0.1", 9443, insecure=False)
    write_fake_flwr(tmp_path / "bin", status, details)
    words = [str(home / "server/run.sh"), "--run-config", 'out="runs/a b"']
    path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert done.stdout == "Successfully started run 17\nround 1/1\n"
    assert ("flwr.sh log 17" in done.stderr) == (status == "running")
    (asked, *_) = (tmp_path / "bin/asked").read_text().splitlines()
    assert asked == f'<run><{home}/server/../app><federation><--run-config><out="runs/a b">'
    (tmp_path / "bin/down").touch()
    assert subprocess.run(words, env=path, capture_output=True, check=False).returncode == 1


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="this exists already"):
        provision(tmp_path, KNFU, 3, "127.0.0.1", 9443, insecure=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_config_names_a_file_of_the_app_or_of_fedkd(tmp_path: Path) -> None:
    config = read_run_config(tmp_path, {"config": "configs/knfu/sites.toml", "set": "rounds=9; strategy.beta=3.0;"})
    assert (config.rounds, config.strategy.options["beta"]) == (9, 3.0)
    (tmp_path / "mine.toml").write_text((HOME / "configs/fedavg/quick.toml").read_text())
    assert read_run_config(tmp_path, {"config": "mine.toml"}) == read_config(HOME / "configs/fedavg/quick.toml")
    for wrong in ("", "configs/none.toml", "../../etc/passwd"):
        with pytest.raises(InputError, match="neither the app nor fedkd has this run file"):
            read_run_config(tmp_path, {"config": wrong})
    with pytest.raises(InputError, match="unknown 'confg'; did you mean 'config'"):
        read_run_config(tmp_path, {"confg": "x"})


def test_the_app_of_the_project_is_what_init_copies(tmp_path: Path) -> None:
    provision(tmp_path / "fed", KNFU, 3, "127.0.0.1", 9443, insecure=False)
    assert (tmp_path / "fed/app/fedkd_app.py").read_text() == (HOME / "deploy/fedkd_app.py").read_text()
    copied = read_run_config(tmp_path / "fed/app", {"config": "federation.toml"})
    assert copied == read_config(KNFU)


ODD = ["a b", "it's", 'a"b', "a\\b", "a\\", "a$HOME", "a`id`", "a#b", "a=b", "[a]", "a&b;c", "a*?", "-a", "ü", "a%s\\n"]


@pytest.mark.parametrize("name", ODD)
def test_the_scripts_work_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    home = tmp_path / name / "fed"
    provision(home, KNFU, 3, "127.0.0.1", 9443, insecure=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("flwr", "flower-superlink", "flower-supernode"):
        (folder / program).write_text(
            '#!/bin/sh\nfor word in "$0" "$PWD" "$@"; do printf "%s\\n" "$word"; done\numask\n'
        )
        (folder / program).chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CDPATH": str(tmp_path)}

    def run(script: str, **more: str) -> list[str]:
        words = [f"./{name}/fed/{script}"]
        done = subprocess.run(words, cwd=tmp_path, env=env | more, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        assert done.stdout.endswith("0077\n")
        return done.stdout.splitlines()

    assert run("server/start.sh")[1] == str(home / "server")
    run("server/flwr.sh")
    settings = tomllib.loads((home / "server/operator/config.toml").read_text())
    assert settings["superlink"]["federation"]["root-certificates"] == str(home / "server/ca.crt")
    assert str(home / "server/keys/site-2.pub") in run("server/register.sh")
    for data in (
        "npz:/srv/it's/a.npz",
        'npz:/srv/a" state="/etc',
        "npz:C:\\new\\table.npz",
        "images:/srv/$HOME #1=2 &'",
    ):
        said = run("sites/site-1/start.sh", DATA=data, MODEL="mlp", SITE="St. John's")
        given = parse_config_args([said[said.index("--node-config") + 1]])
        assert given == {"name": "St. John's", "data": data, "state": str(home / "sites/site-1/state"), "model": "mlp"}
    with pytest.raises(AssertionError, match="data has a newline"):
        run("sites/site-1/start.sh", DATA="npz:/srv/a\nb")


@pytest.mark.parametrize(("variable", "value"), [("FEDKD_LOG", "json"), ("FEDKD_METRICS", "9464")])
def test_the_scripts_start_flower_below_the_launcher_if_json_or_metrics_are_asked_for(
    tmp_path: Path, variable: str, value: str
) -> None:
    provision(tmp_path / "fed", KNFU, 3, "127.0.0.1", 9443, insecure=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/fedkd").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "${variable}"\n')
    (tmp_path / "bin/fedkd").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", variable: value}
    state = str(tmp_path / "fed/sites/site-1/state")
    for script, options, program in (
        ("server", ["--name", "server"], "flower-superlink"),
        ("sites/site-1", ["--name", "St. J", "--state", state], "flower-supernode"),
    ):
        said = subprocess.run(
            [tmp_path / "fed" / script / "start.sh"],
            env={**env, "DATA": "digits", "SITE": "St. J"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert said[: len(options) + 4] == ["deploy", "launch", *options, "--", program]
        assert said[-1] == value  # Flower's processes have it too


def test_a_folder_whose_name_no_script_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="control characters"):
        provision(tmp_path / "a\nb" / "fed", KNFU, 3, "127.0.0.1", 9443, insecure=False)
    assert not list(tmp_path.iterdir())


def test_only_its_owner_reads_a_federation(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        provision(tmp_path / "fed", KNFU, 3, "127.0.0.1", 9443, insecure=False)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert not [path for path in (tmp_path / "fed").rglob("*") if path.stat().st_mode & 0o077]


def test_neighbours_travel_with_a_plug_in_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("methods/near").mkdir(parents=True)
    Path("methods/near/__init__.py").touch()
    Path("methods/near/by.py").write_text("BETA = 1\n")
    Path("methods/unused.py").touch()
    Path("methods/theirs.py").write_text("from near.by import BETA\nfrom fedkd.strategies.fedavg import FedAvg as S\n")
    Path("private.py").write_text("PASSWORD = 1\n")
    text = (HOME / "configs/fedavg/quick.toml").read_text()
    text = text.replace('name = "fedavg"', 'name = "methods/theirs.py:S"')
    tracker = '[{name = "mlflow", experiment = "private.py:PASSWORD", uri = "https://me:hunter2@h"}]'
    Path("run.toml").write_text(f"trackers = {tracker}\n{text}")
    monkeypatch.setattr("fedkd.deployment.provision.make_trackers", lambda config: None)  # mlflow is not installed
    words = ["deploy", "init", "fed", "--config", "run.toml", "--sites", "10"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "sent to all sites: near/__init__.py, near/by.py, theirs.py" in result.output
    carried = Path("fed/app")
    assert sorted(str(path.relative_to(carried)) for path in carried.rglob("*") if path.is_file()) == [
        "federation.toml", "fedkd_app.py", "near/__init__.py", "near/by.py", "pyproject.toml", "theirs.py",
    ]  # fmt: skip
    assert "hunter2" not in (carried / "federation.toml").read_text()


def test_two_files_with_one_name_are_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "mine.py").write_text(
            f"from fedkd.strategies.fedavg import FedAvg as S\nfrom fedkd.models.zoo import mlp as m  # {folder}\n"
        )
    text = (HOME / "configs/fedavg/quick.toml").read_text().replace('name = "fedavg"', 'name = "one/mine.py:S"')
    Path("run.toml").write_text(text)
    words = ["deploy", "init", "new/fed", "--config", "run.toml", "--sites", "10"]
    monkeypatch.setattr("fedkd.deployment.provision._OURS", ("mine.py",))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "has the name mine.py; rename one" in result.output
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedkd.deployment.provision.write_key", lambda *paths: 1 / 0)  # such as a full disk
    assert CliRunner().invoke(app, words).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "run.toml", "two"]
