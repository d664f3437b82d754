"""The files that `fedkd deploy init --target` adds to a federation's folder: of Docker Compose, or of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version

from ..errors import InputError
from .authority import LOOPBACK
from .containers import COMPOSE_SERVER, COMPOSE_SITE, DOCKERFILE, README_COMPOSE
from .kubernetes import (
    KUBERNETES_SERVER,
    KUBERNETES_SITE,
    KUSTOMIZATION_SERVER,
    KUSTOMIZATION_SITE,
    README_KUBERNETES,
)
from .templates import fill

TARGETS = ("scripts", "compose", "kubernetes")
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")  # a file that a manifest can name


def refuse_target(target: str, host: str, app: Sequence[str], *, insecure: bool) -> None:
    """Raise InputError for a target that is not known, or that cannot serve such a federation."""
    if target not in TARGETS:
        raise InputError(f"--target {target!r}: choose one of {', '.join(TARGETS)}.")
    if target == "scripts":
        return
    if insecure:
        raise InputError(f"--target {target}: containers talk over networks; leave out --insecure.")
    if host in LOOPBACK:
        raise InputError(f"--target {target}: a container has a loopback of its own; give the server's name as --host.")
    if target == "kubernetes" and (odd := [name for name in app if not _PLAIN.fullmatch(name)]):
        raise InputError(f"--target kubernetes: no manifest can name the file {odd[0]!r} of the app; rename it.")


def container_files(target: str, sites: Sequence[str], app: Sequence[str], texts: dict[str, str]) -> dict[str, str]:
    """Return the texts of a target's files by their paths in the federation's folder; empty for scripts.

    `sites`: their names. `app`: the paths of the app's files in its folder. `texts`: what fills the templates.
    """
    about = {**texts, "version": version("fedkd")}
    if target == "compose":
        files = {"server/compose.yaml": fill(COMPOSE_SERVER, about), "server/image/Dockerfile": fill(DOCKERFILE, about)}
        for name in sites:
            files[f"sites/{name}/compose.yaml"] = fill(COMPOSE_SITE, {**about, "name": name})
            files[f"sites/{name}/image/Dockerfile"] = fill(DOCKERFILE, about)
        return files
    if target != "kubernetes":
        return {}
    mounts = [
        f"            - {{name: app, mountPath: /federation/app/{path}, subPath: file-{number}, readOnly: true}}"
        for number, path in enumerate(app)
    ]
    about |= {
        "app_mounts": "\n".join(mounts),  # one by one: a mounted folder has links, which Flower would send as well
        "app_files": ", ".join(f"file-{number}=app/{path}" for number, path in enumerate(app)),
        "key_files": ", ".join(f"server/keys/{name}.pub" for name in sites),
    }
    files = {
        "image/Dockerfile": fill(DOCKERFILE, about),
        "kustomization.yaml": fill(KUSTOMIZATION_SERVER, about),
        "server/kubernetes.yaml": fill(KUBERNETES_SERVER, about),
    }
    for name in sites:
        files[f"sites/{name}/kustomization.yaml"] = fill(KUSTOMIZATION_SITE, {"name": name})
        files[f"sites/{name}/kubernetes.yaml"] = fill(KUBERNETES_SITE, {**about, "name": name})
    return files


def folders_of(target: str, sites: Sequence[str]) -> list[str]:
    """Return the folders that containers mount: made now, because Docker would make them for root."""
    if target != "compose":
        return []
    return [f"{home}/{name}" for home in ("server", *(f"sites/{one}" for one in sites)) for name in ("data", "state")]


def readme_of(target: str) -> str:
    """Return what the README says about a target."""
    texts = {"scripts": "", "compose": README_COMPOSE, "kubernetes": README_KUBERNETES}
    return fill(texts[target], {"version": version("fedkd")})
