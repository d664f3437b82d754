"""Writes the folder of a federation, ready to start: keys of sites, start scripts, a README."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from ..config import Config, read_config, to_table
from ..core.environment import Environment, prepare_as_engine
from ..core.setup import make_setup
from ..core.wrapper import make_strategy
from ..errors import InputError, MissingFiles, on_one_line
from ..masking import masked
from ..registry import file_of, find, imported_below, loaded_file
from ..runs.trackers import make_trackers
from .authority import LOOPBACK, Authority, names_in, read_certificate, write_file, write_key
from .targets import container_files, folders_of, readme_of, refuse_target
from .templates import (
    BEHIND,
    FLWR,
    FLWR_INSECURE,
    INSECURE,
    NGINX,
    OWN,
    OWN_DATA,
    OWN_SHARE,
    README,
    README_INSECURE,
    REGISTER,
    RUN,
    SECURE,
    SHARE,
    SITE_ENV,
    SUPERLINK,
    SUPERLINK_INSECURE,
    SUPERNODE,
    SYSTEMD,
    fill,
)

_SUPERLINK_PORT = 8000  # on the server's loopback address, behind nginx
_OURS = ("federation.toml", "pyproject.toml", "fedkd_app.py")  # the files of the app that are no plug-ins
_KEPT, _KEPT_ENDINGS = ("key", "site.env"), (".crt", ".key", ".pub")  # what `force` leaves as it is
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:-]*")


class Provisioned(NamedTuple):
    """What `provision` has to report: what could not be checked, and the plug-in files that the app has."""

    unchecked: str | None
    files: list[str]


def provision(
    folder: Path,
    config_path: Path,
    sites: int,
    host: str,
    port: int,
    *,
    insecure: bool,
    target: str = "scripts",
    force: bool = False,
) -> Provisioned:
    """Write a federation of `sites` sites into a new folder. `host`, `port`: the server's address for the sites.

    If the host is a loopback address, the SuperLink listens on it. Otherwise the SuperLink listens only on the loopback
    address, and nginx forwards the sites. Something cannot be checked if this machine lacks the files of a set.
    `target`: scripts, or also files for compose or kubernetes. With `force` the folder may be a federation's: all but
    keys, certificates and settings of sites is written anew, and new sites are added. Raises InputError for another
    folder, and for a config that the server would refuse; then nothing is written.
    """
    if any(not c.isprintable() for c in str(folder.absolute())):
        raise InputError(f"{on_one_line(str(folder))}: a path with control characters does not work in scripts.")
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there and not (folder / "app" / _OURS[0]).is_file():
        raise InputError(f"{folder}: this exists already; name a new folder.")
    if there and not force:
        raise InputError(
            f"{folder}: this exists already; name a new folder, or add --force, which keeps keys, certificates and "
            "settings of sites, and writes everything else anew."
        )
    if not _HOST.fullmatch(host):
        raise InputError(f"--host {host!r}: give a name or an address, without a scheme or a port.")
    if there and not insecure and host not in (valid := _names_of_certificate(folder, host)):
        raise InputError(
            f"--host {host!r}: {folder / 'server' / 'server.crt'} is valid for {', '.join(valid)}; give one of them, "
            "or first replace it with fedkd deploy renew."
        )
    config = read_config(config_path)
    if config.data.sites is not None and config.data.sites.count != sites:
        raise InputError(f"--sites {sites}: data.sites.count in {config_path} is {config.data.sites.count}.")
    unchecked = _check_as_server(config, config_path, sites)
    table = masked(to_table(config))  # the app goes to all sites
    carried = {**_carried(table), **_agreed(config, table)}
    refuse_target(target, host, list(carried), insecure=insecure)
    plan = _Plan(config, config_path, table, carried, sites, host, port, insecure, target)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    before = os.umask(0o077)
    try:
        if there:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
                _write(Path(new), plan, folder / "server" / "ca.crt")
                _replace(folder, Path(new))
        else:
            _write(folder, plan)
    except BaseException:
        for path in [] if there else [made[-1]] if made else folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    finally:
        os.umask(before)
    return Provisioned(unchecked, sorted(carried))


class _Plan(NamedTuple):
    """What a federation's folder is made from. `table`: the config of the app. `carried`: the app's further files."""

    config: Config
    config_path: Path
    table: dict[str, Any]
    carried: dict[str, Path]
    sites: int
    host: str
    port: int
    insecure: bool
    target: str


def _names_of_certificate(folder: Path, host: str) -> list[str]:
    path = folder / "server" / "server.crt"
    return names_in(read_certificate(path)) if path.exists() else [host]


def _replace(folder: Path, new: Path) -> None:
    """Move the files of a new folder into a federation's, but for keys, certificates and settings that are there."""
    shutil.rmtree(folder / "app")
    for path in sorted(new.rglob("*")):
        place = folder / path.relative_to(new)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        elif not place.exists() or (place.suffix not in _KEPT_ENDINGS and place.name not in _KEPT):
            os.replace(path, place)


def _write(folder: Path, plan: _Plan, ca: Path | None = None) -> None:
    """Write a federation's folder. `ca`: the certificate of the authority that the federation has, if it has one."""
    host, port, insecure = plan.host, plan.port, plan.insecure
    direct = host in LOOPBACK
    listen = host if direct and ":" not in host else "[::1]" if direct else "127.0.0.1"
    bound = port if direct or insecure else _SUPERLINK_PORT
    texts = {
        "count": str(plan.sites),
        "host": f"[{host}]" if ":" in host else host,
        "port": str(port),
        "listen": listen.strip("[]"),
        "superlink_port": str(bound),
        "superlink": f"{listen}:{bound}",
        "listen_also": f"\n    listen [::]:{port} ssl;" if ":" in host else "",
    }
    names = [f"site-{number}" for number in range(1, plan.sites + 1)]
    _write_app(folder / "app", plan.table, plan.carried)
    server = folder / "server"
    write_file(server / "start.sh", fill(SUPERLINK_INSECURE if insecure else SUPERLINK, texts), 0o755)
    write_file(server / "flwr.sh", fill(FLWR_INSECURE if insecure else FLWR, texts), 0o755)
    write_file(server / "run.sh", RUN, 0o755)
    write_file(server / "fedkd-server.service", _unit("server"))
    if not insecure:
        if ca is not None and ca.exists():
            shutil.copyfile(ca, server / "ca.crt")
        else:
            Authority.make(folder).issue(server, host)
        write_file(server / "register.sh", REGISTER, 0o755)
        if not direct:
            write_file(server / "nginx.conf", fill(NGINX, texts))
    for number, name in enumerate(names):
        home = folder / "sites" / name
        brings, own = (OWN_DATA, OWN) if plan.config.data.sites is not None else (SHARE, OWN_SHARE)
        write_file(home / "site.env", fill(SITE_ENV + brings, {"name": name, "partition": str(number)}))
        security = INSECURE if insecure else SECURE
        write_file(home / "start.sh", fill(SUPERNODE, {**texts, "security": security, "own": own}), 0o755)
        write_file(home / "fedkd-site.service", _unit("site"))
        if not insecure:
            shutil.copyfile(server / "ca.crt", home / "ca.crt")
            write_key(home, server / "keys" / f"{name}.pub")
    app = sorted([*_OURS, *plan.carried])
    for path, text in container_files(plan.target, names, app, texts).items():
        write_file(folder / path, text)
    for path in folders_of(plan.target, names):
        (folder / path).mkdir()
    more = {"config": plan.config_path.name, "nginx": "" if direct else BEHIND}
    steps = (README_INSECURE if insecure else README) + readme_of(plan.target)
    write_file(folder / "README.md", fill(steps, {**texts, **more}))


def _check_as_server(config: Config, path: Path, sites: int) -> str | None:
    """Check all that the server checks before a run, so that nobody finds it when all sites have started.

    Returns what is missing if the files of a set are not on this machine; then only what needs no images is checked.
    """
    make_strategy(config.strategy)
    make_trackers(config)
    prepare_as_engine(config)
    try:
        setup = make_setup(config)
    except MissingFiles as error:
        if (partition := config.data.partition) is not None:
            find("partitions", partition.scheme, "data.partition.scheme")  # its file goes with the app
        if (real := config.data.sites) is not None:
            own = {"sites": real.model_copy(update={"server": None}), "public": None, "validation": None}
            without = Environment(config.model_copy(update={"data": config.data.model_copy(update=own)}))
            for number in range(len(config.model.architectures)):
                without.model(number)
        return str(error)
    nodes = setup.environment.data.clients
    if nodes != sites:
        raise InputError(f"--sites {sites}: data.partition in {path} has {nodes} nodes, and each site is one of them.")
    setup.check()
    return None


def _carried(table: dict[str, Any]) -> dict[str, Path]:
    """Return the plug-in files that a config uses, and their neighbours that they import, by their names in the app.

    The plug-ins' names in the table become those in the app. Raises InputError if two files would have one name.
    """
    found: dict[str, Path] = {name: Path() for name in _OURS}
    for owner, key, value in list(_strings(table)):
        loaded = loaded_file(value)
        if loaded is None or not loaded[0].endswith(".py"):
            continue
        path = loaded[1]
        owner[key] = f"{path.name}:{value.rpartition(':')[2]}"
        for file in (path, *imported_below(path.parent)):
            name = str(file.relative_to(path.parent))
            if name in found and (name in _OURS or found[name].read_bytes() != file.read_bytes()):
                raise InputError(f"{value}: another file of the app has the name {name}; rename one.")
            found[name] = file
    return {name: file for name, file in found.items() if name not in _OURS}


def _agreed(config: Config, table: dict[str, Any]) -> dict[str, Path]:
    """Return the file `data.sites.spec` by its name in the app, which becomes that in the table, if there is one."""
    sites = config.data.sites
    if sites is None or sites.spec is None:
        return {}
    path = file_of(Path(sites.spec))
    if path.suffix != ".json":
        raise InputError(f"data.sites.spec = {sites.spec!r}: its name must end in .json; Flower sends no other.")
    table["data"]["sites"]["spec"] = path.name
    return {path.name: path}


def _write_app(folder: Path, table: dict[str, Any], carried: dict[str, Path]) -> None:
    """Write the Flower App with a config as `federation.toml`, and these plug-in files."""
    app = files("fedkd.deploy")
    for name, file in carried.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    write_file(folder / "federation.toml", tomli_w.dumps(table))
    about = app.joinpath("pyproject.toml").read_text(encoding="utf-8")
    line = re.search(r'^config = ".*?"', about, re.MULTILINE)
    assert line is not None
    write_file(folder / "pyproject.toml", about.replace(line[0], 'config = "federation.toml"'))
    write_file(folder / "fedkd_app.py", app.joinpath("fedkd_app.py").read_text(encoding="utf-8"))


def _strings(table: Any) -> Iterator[tuple[Any, Any, str]]:
    """Yield the strings in nested tables, each with its table and key."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        if isinstance(value, str):
            yield table, key, value
        elif isinstance(value, dict | list):
            yield from _strings(value)


def _unit(what: str) -> str:
    return fill(SYSTEMD, {"what": what, "home": f"/opt/fedkd/{what}"})
