"""`fedkd doctor`: what a bug report needs to know about this machine."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from ..errors import described
from .common import app, exit_codes

_PACKAGES = ("torch", "torchvision", "numpy", "flwr", "ray", "pydantic", "safetensors", "matplotlib", "pillow")


@app.command()
def doctor() -> None:
    """Print what a bug report needs: versions, devices, sets of images, whether Ray starts, space."""
    with exit_codes():
        for name, finding in _findings():
            typer.echo(f"{name:<12}{finding}")


def _findings() -> Iterator[tuple[str, str]]:
    yield "fedkd", f"{version('fedkd')} in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()} in {sys.prefix}"
    yield "system", f"{platform.platform()}, {os.cpu_count()} CPUs, {_memory()}"
    yield "text", f"{locale.getlocale()}, files as {sys.getfilesystemencoding()}, output as {sys.stdout.encoding}"
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "NOT INSTALLED"
    yield "devices", _devices()
    yield "data", _data()
    yield "ray starts", _ray()
    for folder in (Path(), Path(tempfile.gettempdir()), Path("/dev/shm")):  # of runs, of Ray, of Ray's object store
        if folder.is_dir():
            writable = "" if os.access(folder, os.W_OK) else ", NOT WRITABLE"
            yield "space", f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB in {folder.resolve()}{writable}"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB of memory"


def _devices() -> str:
    try:
        import torch

        if not torch.cuda.is_available():
            return "cpu; no CUDA device"
        found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cpu, {', '.join(found)}; CUDA {torch.version.cuda}"
    except Exception as error:  # a broken installation is what this command is for
        return f"FAILED: {described(error)}"


def _data() -> str:
    given = os.environ.get("FEDKD_DATA")
    folder = Path(given or "data").expanduser()
    whence = "$FEDKD_DATA" if given else "data.root by default"
    if not folder.is_dir():
        return f"no folder {folder} ({whence}); digits needs none"
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"{folder.resolve()} ({whence}): {', '.join(entries[:20]) or 'empty'}"


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    try:
        import ray

        from ..simulations.ray_placement import connect, disconnect

        connect(address)
        have = ray.cluster_resources()
        disconnect()
        return f"yes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs" + (f" at {address}" if address else "")
    except Exception as error:
        return f"FAILED: {described(error)}"
