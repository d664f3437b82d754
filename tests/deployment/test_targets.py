"""`fedkd deploy init --target`: what the files of containers are, that no secret is in them, and `--force`."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import HOME
from helpers.manifests import COMPOSE, KUBERNETES, documents, service_of, with_variables
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.deployment.provision import provision
from fedkd.deployment.targets import refuse_target
from fedkd.errors import InputError

KNFU = HOME / "configs/knfu/sites.toml"
PLUG_IN = (
    "from fedkd.strategies.fedavg import FedAvg\nfrom near.by import A\nclass Mine(FedAvg):\n    '''A method.'''\n"
)


def make(folder: Path, target: str, host: str = "fl.example.org", **more: Any) -> Path:
    provision(folder, KNFU, 3, host, 9443, insecure=False, target=target, **more)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_secret(name: str) -> bool:
    return name.endswith((".key", ".crt", ".pub", "/key"))


def test_the_default_target_has_no_files_of_containers(tmp_path: Path) -> None:
    scripts, compose = (contents(make(tmp_path / name, name)) for name in ("scripts", "compose"))
    assert sorted(compose.keys() - scripts.keys()) == [
        "server/compose.yaml",
        "server/image/Dockerfile",
        *sorted(f"sites/site-{n}/{name}" for n in (1, 2, 3) for name in ("compose.yaml", "image/Dockerfile")),
    ]
    assert scripts.keys() <= compose.keys()
    assert {name for name in scripts if scripts[name] != compose[name] and not is_secret(name)} == {"README.md"}
    assert compose["README.md"].startswith(scripts["README.md"])
    result = CliRunner().invoke(
        app,
        [
            "deploy",
            "init",
            str(tmp_path / "default"),
            "--config",
            str(KNFU),
            "--sites",
            "3",
            "--host",
            "fl.example.org",
        ],
    )
    assert result.exit_code == 0
    default = contents(tmp_path / "default")
    assert {name: text for name, text in default.items() if not is_secret(name)} == {
        name: text for name, text in scripts.items() if not is_secret(name)
    }


def test_compose_files_have_their_strict_form(tmp_path: Path) -> None:
    fed = make(tmp_path / "fed", "compose")
    for path in fed.rglob("compose.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), COMPOSE)
        assert "@" not in path.read_text()
    server = yaml.safe_load((fed / "server/compose.yaml").read_text())
    assert list(server["services"]) == ["superlink", "nginx"]
    assert server["services"]["superlink"]["ports"][0] == "9443:9443"
    assert yaml.safe_load((fed / "sites/site-2/compose.yaml").read_text())["name"] == "fedkd-site-2"
    for path in fed.rglob("compose.yaml"):  # what is mounted is there, so Docker makes nothing for root
        for service in yaml.safe_load(path.read_text())["services"].values():
            for mount in with_variables(service["volumes"], {}):
                assert (path.parent / mount["source"]).exists(), mount
                assert mount.get("read_only") is not (mount["target"] == "/state"), mount


@pytest.mark.parametrize("wrong", ["read_onl: true", "read_only: false", "privileged: true", "image: fedkd:latest"])
def test_the_form_of_compose_files_finds_mistakes(tmp_path: Path, wrong: str) -> None:
    text = (make(tmp_path / "fed", "compose") / "sites/site-1/compose.yaml").read_text()
    key = wrong.split(":")[0]
    text = re.sub(rf"^    {key}: .*$", f"    {wrong}", text, count=1, flags=re.MULTILINE)
    changed = text if f"    {wrong}" in text else text.replace("    read_only: true", f"    {wrong}", 1)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(changed), COMPOSE)


def test_docker_reads_the_compose_files(tmp_path: Path) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    for path in make(tmp_path / "fed", "compose").rglob("compose.yaml"):
        subprocess.run(["docker", "compose", "--file", str(path), "config", "--quiet"], check=True)


def manifests(fed: Path) -> list[tuple[Path, dict[str, Any]]]:
    paths = [*fed.rglob("kubernetes.yaml"), *fed.rglob("kustomization.yaml")]
    return [(path, one) for path in paths for one in documents(path.read_text())]


def test_manifests_have_their_strict_form_and_name_files_that_are_there(tmp_path: Path) -> None:
    fed = make(tmp_path / "fed", "kubernetes")
    found = manifests(fed)
    assert len(found) == 3 + 1 + 3 * (2 + 1)
    for path, one in found:
        jsonschema.validate(one, KUBERNETES[one["kind"]])
        for entry in [
            name
            for key in ("configMapGenerator", "secretGenerator")
            for made in one.get(key, [])
            for name in made["files"]
        ]:
            assert (path.parent / entry.split("=")[-1]).is_file(), entry
        for name in one.get("resources", []):
            assert (path.parent / name).is_file()
    for path, one in found:
        if one["kind"] != "StatefulSet":
            continue
        pod = one["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]} | {"state"}
        assert {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]} == volumes, path
        assert one["spec"]["template"]["metadata"]["labels"] == one["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("runAsNonRoot: true", "runAsRoot: false"),
        ("image: fedkd:0", "image: fedkd:latest-0"),
        ("mountPath: /state", "mountPath: state"),
        ("replicas: 1", "replicas: 2"),
    ],
)
def test_the_form_of_manifests_finds_mistakes(tmp_path: Path, old: str, new: str) -> None:
    text = (make(tmp_path / "fed", "kubernetes") / "server/kubernetes.yaml").read_text()
    assert old in text
    changed = documents(text.replace(old, new))
    assert not all(jsonschema.Draft202012Validator(KUBERNETES[one["kind"]]).is_valid(one) for one in changed)


def test_pods_run_what_the_services_of_compose_run(tmp_path: Path) -> None:
    """So the walk with the commands of the compose files holds for the manifests."""
    compose, kubernetes = make(tmp_path / "c", "compose"), make(tmp_path / "k", "kubernetes")
    for home, name in (("server", "superlink"), ("sites/site-1", "supernode")):
        service = with_variables(yaml.safe_load((compose / home / "compose.yaml").read_text()), {})["services"][name]
        (pod,) = (
            one["spec"]["template"]["spec"]
            for one in documents((kubernetes / home / "kubernetes.yaml").read_text())
            if one["kind"] == "StatefulSet"
        )
        container = pod["containers"][0]
        assert (container["name"], container["command"]) == (name, service["command"])
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert environment | {"FEDKD_DATA": "/data"} == service["environment"]
        assert container["livenessProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:]
        assert container["readinessProbe"]["exec"] == container["livenessProbe"]["exec"]


def test_kubectl_makes_whole_manifests_and_secrets_only_then(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    fed = make(tmp_path / "fed", "kubernetes")
    for folder, keys in ((fed, ["server.crt", "server.key"]), (fed / "sites/site-3", ["key"])):
        text = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
        made = {(one["kind"], one["metadata"]["name"]): one for one in documents(text)}
        (secret,) = (one for (kind, _), one in made.items() if kind == "Secret")
        home = fed / "server" if folder == fed else folder
        assert {name: base64.b64decode(value) for name, value in secret["data"].items()} == {
            name: (home / name).read_bytes() for name in keys
        }
        (pod,) = (one["spec"]["template"]["spec"] for (kind, _), one in made.items() if kind == "StatefulSet")
        named = [
            (kind, source[key]["name"])
            for volume in pod["volumes"]
            for source in volume.get("projected", {"sources": [volume]})["sources"]
            for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret"))
            if key in source
        ]
        assert sorted(named) == sorted(one for one in made if one[0] in ("ConfigMap", "Secret"))
        assert all(one["metadata"]["namespace"] == "fedkd" for one in made.values())


@pytest.mark.parametrize("target", ["compose", "kubernetes"])
def test_no_secret_gets_into_an_image_or_a_manifest(tmp_path: Path, target: str) -> None:
    fed = make(tmp_path / "fed", target)
    keys = [path for path in fed.rglob("*") if path.name in ("key", "ca.key", "server.key")]
    assert len(keys) == 5
    secrets = [
        line for path in keys for line in path.read_text().splitlines() if len(line) > 20 and "-----" not in line
    ]
    for path in fed.rglob("*"):
        if path.is_file() and path not in keys:
            assert not any(line in path.read_text() for line in secrets), path
    dockerfiles = list(fed.rglob("Dockerfile"))
    assert len(dockerfiles) == (4 if target == "compose" else 1)
    for path in dockerfiles:
        assert [one.name for one in path.parent.iterdir()] == ["Dockerfile"]  # the whole of what a build gets
        text = path.read_text()
        assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["python:3.11.13-slim-bookworm"]
        assert re.findall(r"^(?:COPY|ADD) (.*)$", text, re.MULTILINE) == [". /wheels/"]
        assert text.rstrip().endswith("USER 10001:10001")
        assert not re.search(r"(?i)secret|password|token", text)


def test_the_files_of_a_plug_in_are_mounted_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("near").mkdir()
    Path("near/by.py").write_text("A = 1\n")
    Path("mine.py").write_text(PLUG_IN)
    text = (HOME / "configs/fedavg/quick.toml").read_text().replace('name = "fedavg"', 'name = "mine.py:Mine"')
    Path("run.toml").write_text(text)
    provision(Path("fed"), Path("run.toml"), 10, "h.example.org", 9443, insecure=False, target="kubernetes")
    server = next(
        one for path, one in manifests(Path("fed")) if path.parent.name == "server" and one["kind"] == "StatefulSet"
    )
    mounts = server["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    files = {mount["subPath"]: mount["mountPath"] for mount in mounts if mount["name"] == "app"}
    (whole,) = documents(Path("fed/kustomization.yaml").read_text())
    (made,) = (one["files"] for one in whole["configMapGenerator"] if one["name"] == "fedkd-app")
    wanted = {path: path.relative_to("fed/app") for path in Path("fed/app").rglob("*.*") if path.is_file()}
    assert {key: f"fed/app/{path.removeprefix('/federation/app/')}" for key, path in files.items()} == {
        entry.split("=")[0]: f"fed/{entry.split('=')[1]}" for entry in made
    }
    assert sorted(path.removeprefix("/federation/app/") for path in files.values()) == sorted(map(str, wanted.values()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "docker"], "--target 'docker': choose one of scripts, compose, kubernetes."),
        (["--target", "compose"], "--target compose: a container has a loopback of its own; give the server's name"),
        (["--target", "kubernetes", "--insecure", "--host", "h"], "--target kubernetes: containers talk over networks"),
    ],
)
def test_a_target_that_cannot_serve_is_refused_before_anything_is_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    result = CliRunner().invoke(
        app, ["deploy", "init", str(tmp_path / "fed"), "--config", str(KNFU), "--sites", "3", *words]
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "fed").exists()


def test_a_file_that_no_manifest_can_name_is_refused() -> None:
    refuse_target("compose", "h.example.org", ["a=b.json"], insecure=False)
    for name in ("a=b.json", "a b.json", "ä.json", "a:b.json"):
        with pytest.raises(InputError, match=f"no manifest can name the file '{name}' of the app; rename it."):
            refuse_target("kubernetes", "h.example.org", ["near/by.py", name], insecure=False)


def test_a_federations_folder_is_written_anew_only_with_force_and_keeps_its_keys(tmp_path: Path) -> None:
    fed = make(tmp_path / "fed", "scripts")
    (fed / "sites/site-1/site.env").write_text("mine")
    (fed / "server/start.sh").write_text("mine")
    (fed / "app/old.py").write_text("mine")
    (fed / "server/runs").mkdir()
    (fed / "server/runs/mine.txt").write_text("mine")
    before = contents(fed)
    with pytest.raises(InputError, match="this exists already; name a new folder, or add --force, which keeps keys"):
        make(fed, "compose")
    assert contents(fed) == before

    make(fed, "compose", force=True)
    after = contents(fed)
    assert {name for name in before if after.get(name) != before[name]} == {
        "server/start.sh",
        "app/old.py",
        "README.md",
    }
    assert "app/old.py" not in after
    assert after["server/start.sh"].startswith(b"#!/bin/sh")
    assert "server/compose.yaml" in after
    assert sorted(path.name for path in fed.iterdir()) == ["README.md", "app", "ca", "server", "sites"]
    assert (fed / "server/start.sh").stat().st_mode & 0o777 == 0o700


def test_force_adds_a_site_with_a_key_of_its_own_and_the_authority_of_the_others(tmp_path: Path) -> None:
    fed = make(tmp_path / "fed", "compose")
    before = contents(fed)
    (tmp_path / "four.toml").write_text(KNFU.read_text().replace("count = 3", "count = 4"))
    provision(fed, tmp_path / "four.toml", 4, "fl.example.org", 9443, insecure=False, target="compose", force=True)
    after = contents(fed)
    assert {name for name in after.keys() - before.keys()} >= {"sites/site-4/key", "server/keys/site-4.pub"}
    assert after["sites/site-4/ca.crt"] == before["server/ca.crt"]
    assert {name for name in before if is_secret(name) and before[name] != after[name]} == set()
    assert "sites/site-4/compose.yaml" in after


def test_force_is_for_a_federation_of_this_certificate_only(tmp_path: Path) -> None:
    fed = make(tmp_path / "fed", "scripts")
    before = contents(fed)
    with pytest.raises(InputError, match=r"server.crt is valid for fl.example.org, 127.0.0.1, .*fedkd deploy renew"):
        make(fed, "scripts", host="other.example.org", force=True)
    assert contents(fed) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="mine: this exists already; name a new folder.$"):
        make(tmp_path / "mine", "scripts", force=True)


def test_a_full_disk_during_force_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = make(tmp_path / "fed", "scripts")
    before = contents(fed)
    monkeypatch.setattr("fedkd.deployment.provision.write_key", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(fed, "compose", force=True)
    assert contents(fed) == before


def test_the_paths_of_a_container_are_mapped_to_local_ones(tmp_path: Path) -> None:
    fed = make(tmp_path / "fed", "compose")
    service = service_of(fed / "sites/site-1/compose.yaml", "supernode", {"FEDKD_METRICS": "0.0.0.0:9464"})
    home = fed / "sites/site-1"
    assert service["command"] == [str(home / "start.sh")]
    assert service["environment"] == {
        "WORK": str(home / "state"),
        "STATE": str(home / "state/kept"),
        "FEDKD_DATA": str(home / "data"),
        "FEDKD_LOG": "json",
        "FEDKD_METRICS": "0.0.0.0:9464",
    }
    server = service_of(fed / "server/compose.yaml", "superlink", {})
    assert f"cafile='{fed / 'server/ca.crt'}'" in server["healthcheck"]["test"][-1]
