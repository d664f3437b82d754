"""Placement: how many Ray workers fit on the machines of a cluster, and the connection to it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
from pydantic import Field

from fedkd.config import flattened
from fedkd.errors import InputError, on_one_line
from fedkd.stopping import retake

from . import ray_cluster

Workers = Literal["auto"] | Annotated[int, Field(ge=1)]


def count_workers(
    workers: Workers, cpus: float, gpus: float, machines: list[dict[str, float]], cohort: int, memory: float = 0.0
) -> int:
    """Return the number of workers to start, each with this share of CPUs and GPUs, on machines with these resources.

    `memory`: bytes reserved for each worker. A worker runs on one machine. Raises InputError if no worker fits, or
    fewer than the config asks for.
    """
    if cpus <= 0 and gpus <= 0:
        raise InputError("engine: cpus_per_worker and gpus_per_worker are both 0; set at least one of them.")
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"engine.gpus_per_worker = {gpus:g}: set a fraction of one GPU, or a whole number of GPUs.")
    most = sum(fit(machine, cpus, gpus, memory) for machine in machines)
    total = {name: sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU")}
    have = f"{total['CPU']:g} CPUs and {total['GPU']:g} GPUs" + (f" on {len(machines)} machines" * (len(machines) > 1))
    need = f"{cpus:g} CPUs and {gpus:g} GPUs per worker"
    if memory:
        have += f", {max(machine.get('memory', 0) for machine in machines) / 2**30:.1f} GiB of memory on the largest"
        need += f", and {memory / 2**30:g} GiB of memory"
    if most < 1:
        raise InputError(f"engine: no worker fits: the cluster has {have}, the config asks for {need}.")
    if workers == "auto":
        return min(most, cohort)
    if workers > most:
        raise InputError(
            f"engine.workers = {workers}: only {most} fit; the cluster has {have}, the config asks for {need}."
        )
    return workers


def fit(machine: dict[str, float], cpus: float, gpus: float, memory: float) -> int:
    """Return how many workers fit on a machine. A share of a GPU is always on one GPU."""
    fits = []
    if cpus > 0:
        fits.append(int(machine.get("CPU", 0) / cpus + 1e-9))
    if 0 < gpus < 1:
        fits.append(int(machine.get("GPU", 0)) * int(1 / gpus + 1e-9))
    elif gpus > 0:
        fits.append(int(machine.get("GPU", 0) / gpus + 1e-9))
    if memory > 0:
        fits.append(int(machine.get("memory", 0) / memory))
    return min(fits)


def refuse_relative_files(table: dict[str, Any], addresses: Collection[str]) -> None:
    """Raise InputError for a plug-in file with a relative path if there are other machines: they do not have it.

    `table`: the config; `addresses`: of the cluster's machines.
    """
    if len(addresses) < 2:
        return
    for key, value in flattened(table).items():
        for text in value if isinstance(value, list) else [value]:
            name = text.get("name") if isinstance(text, dict) else text
            where = name.rpartition(":")[0] if isinstance(name, str) else ""
            if where.endswith(".py") and not Path(where).expanduser().is_absolute():
                raise InputError(
                    f"{key} = {on_one_line(str(name), 100)!r}: the cluster has {len(addresses)} machines, and a "
                    "relative path is only found on this one; write an absolute path that all machines have, such as "
                    "of a shared folder, or install the file as a package on all of them."
                )


def connect(address: str | None) -> None:
    """Connect to the cluster at `host:port` (or `auto`, the one on this machine); for None, start one for this run.

    The user's own settings of Ray (`RAY_AUTH_MODE`, `RAY_USE_TLS`, ...) count for a cluster with an address only.
    Raises InputError if no cluster answers (Ray itself would try again for minutes) or if it refuses this user.
    """
    if address is None:
        try:
            ray_cluster.start()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"engine: Ray does not start here: {on_one_line(str(error))}") from error
    else:
        _connect_to(address)
    retake()  # Ray has taken SIGTERM


def _connect_to(address: str) -> None:
    try:
        if address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(f"engine.address = {address!r}: no Ray cluster answers at this address: {error}") from error
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise InputError(
            f"engine.address = {address!r}: no Ray cluster lets this run in: {on_one_line(str(error), 200)} If it "
            "asks for a token or TLS, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_USE_TLS, as on its machines."
        ) from error


def disconnect() -> None:
    """Disconnect from the cluster, and end it if it was started for this run."""
    ray_cluster.stop()
