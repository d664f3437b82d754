"""A federation's folder, ready to start: certificates of a private CA, keys of sites, start scripts, a README."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .config import Config, read_config, to_table
from .errors import InputError
from .wrapper import make_strategy

_DAYS = 5 * 365  # that certificates are valid
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SUPERLINK_PORT = 8000  # on the server's loopback, behind nginx
_PLUGIN = re.compile(r"(.+\.py):(\w+)")
_HOST = re.compile(r"[A-Za-z0-9.:-]+")


def provision(folder: Path, config_path: Path, sites: int, host: str, port: int, *, insecure: bool) -> None:
    """Write a federation of so many sites into a new folder. `host`, `port`: where sites reach the server.

    On a loopback host the SuperLink listens there itself; elsewhere on the loopback only, and nginx lets sites through.
    Raises InputError for a folder in use, and for a config that cannot be deployed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: there is something already; name a new folder.")
    if not _HOST.fullmatch(host):
        raise InputError(f"--host {host!r}: give a name or an address, without a scheme or a port.")
    config = read_config(config_path)
    make_strategy(config.strategy)
    wanted = config.data.sites.count if config.data.sites is not None else None
    if wanted is not None and wanted != sites:
        raise InputError(f"--sites {sites}: data.sites.count in {config_path} is {wanted}.")
    direct = host in _LOOPBACK
    listen = host if direct and ":" not in host else "[::1]" if direct else "127.0.0.1"
    bound = port if direct or insecure else _SUPERLINK_PORT
    told = {
        "count": str(sites),
        "host": f"[{host}]" if ":" in host else host,
        "port": str(port),
        "listen": listen.strip("[]"),
        "superlink_port": str(bound),
        "superlink": f"{listen}:{bound}",
        "listen_also": f"\n    listen [::]:{port} ssl;" if ":" in host else "",
    }
    names = [f"site-{number}" for number in range(1, sites + 1)]
    _write_app(folder / "app", config)
    server = folder / "server"
    authority = None if insecure else _Authority(folder)
    _write(server / "start.sh", _fill(_SUPERLINK_INSECURE if insecure else _SUPERLINK, told), 0o755)
    _write(server / "flwr.sh", _fill(_FLWR_INSECURE if insecure else _FLWR, told), 0o755)
    _write(server / "run.sh", _RUN, 0o755)
    _write(server / "fedkd-server.service", _unit("server"))
    if authority is not None:
        authority.issue(server, host)
        _write(server / "register.sh", _REGISTER, 0o755)
        if not direct:
            _write(server / "nginx.conf", _fill(_NGINX, told))
    for number, name in enumerate(names):
        home = folder / "sites" / name
        brings, own = (_OWN_DATA, _OWN) if config.data.sites is not None else (_SHARE, "partition-id=$PARTITION")
        _write(home / "site.env", _fill(_SITE_ENV + brings, {"name": name, "partition": str(number)}))
        security = _INSECURE if insecure else _SECURE
        _write(home / "start.sh", _fill(_SUPERNODE, {**told, "security": security, "own": own}), 0o755)
        _write(home / "fedkd-site.service", _unit("site"))
        if authority is not None:
            shutil.copyfile(server / "ca.crt", home / "ca.crt")
            _write_key(home, server / "keys" / f"{name}.pub")
    steps = _README_INSECURE if insecure else _README
    _write(folder / "README.md", _fill(steps, {**told, "config": config_path.name, "nginx": "" if direct else _BEHIND}))


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # made with its mode, so that no key is readable for a moment
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _write_app(folder: Path, config: Config) -> None:
    """Write the Flower App with this config as `federation.toml`, and the plug-in files that it names."""
    app = files("fedkd.deploy")
    table = to_table(config)
    folder.mkdir(parents=True)
    for owner, key, value in list(_strings(table)):
        match = _PLUGIN.fullmatch(value)
        if match is not None and Path(match[1]).is_file():
            target = folder / Path(match[1]).name
            if target.exists() and target.read_bytes() != Path(match[1]).read_bytes():
                raise InputError(f"{value}: another plug-in file has the same name; rename one.")
            shutil.copyfile(match[1], target)
            owner[key] = f"{target.name}:{match[2]}"
    _write(folder / "federation.toml", tomli_w.dumps(table))
    about = app.joinpath("pyproject.toml").read_text()
    line = re.search(r'^config = ".*?"', about, re.MULTILINE)
    assert line is not None
    _write(folder / "pyproject.toml", about.replace(line[0], 'config = "federation.toml"'))
    _write(folder / "fedkd_app.py", app.joinpath("fedkd_app.py").read_text())


def _strings(table: Any) -> Iterator[tuple[Any, Any, str]]:
    """Yield the strings in tables within tables, each with the table and the key that hold it."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        if isinstance(value, str):
            yield table, key, value
        elif isinstance(value, dict | list):
            yield from _strings(value)


class _Authority:
    """A private certificate authority; its key is needed for nothing but further certificates."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd private CA")])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA384())
        )
        _write(folder / "ca" / "ca.key", _pem(self._key), 0o600)
        _write(folder / "server" / "ca.crt", _certificate(self.certificate))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=_DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def issue(self, folder: Path, host: str) -> None:
        """Write the server's certificate and key: valid for the host, and for its own loopback."""
        key = ec.generate_private_key(ec.SECP384R1())
        names = [_general_name(name) for name in dict.fromkeys((host, *_LOOPBACK))]
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        _write(folder / "server.key", _pem(key), 0o600)
        _write(folder / "server.crt", _certificate(certificate))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    no_password = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password).decode()


def _certificate(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _write_key(folder: Path, copy: Path) -> None:
    """Write a SuperNode's key pair, as `ssh-keygen -t ecdsa -b 384` does, and a copy of its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(folder / "key", private.decode(), 0o600)
    for path in (folder / "key.pub", copy):
        _write(path, public.decode() + "\n")


def _unit(what: str) -> str:
    return _fill(_SYSTEMD, {"what": what, "home": f"/opt/fedkd/{what}"})


_SUPERLINK = """#!/bin/sh
# Starts Flower's SuperLink. Registered keys and messages on their way are in state.db beside this script.
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-superlink --host @listen@ --port @superlink_port@ --database state.db \\
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation
"""
_SUPERLINK_INSECURE = """#!/bin/sh
# Starts Flower's SuperLink WITHOUT encryption and WITHOUT authentication: for trials on networks that you trust.
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-superlink --host "${BIND:-@listen@}" --port @port@ --database state.db --insecure \\
    --disable-runtime-dependency-installation
"""
_FLWR = """#!/bin/sh
# Flower's command line, set up for this federation: ./flwr.sh ls, ./flwr.sh supernode list, ./flwr.sh stop RUN_ID
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export FLWR_HOME="$here/operator" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" <<END
[superlink]
default = "federation"

[superlink.federation]
address = "@superlink@"
root-certificates = "$here/ca.crt"
END
exec flwr "$@"
"""
_FLWR_INSECURE = _FLWR.replace('root-certificates = "$here/ca.crt"', "insecure = true")
_REGISTER = """#!/bin/sh
# Registers the sites' public keys: all of keys/, or those that are named.
set -eu
here=$(dirname "$0")
[ $# -gt 0 ] || set -- "$here"/keys/*.pub
for key in "$@"; do
    "$here/flwr.sh" supernode register "$key" federation --name "$(basename "$key" .pub)"
done
"""
_RUN = """#!/bin/sh
# Starts a run, and follows it: ./run.sh --run-config 'out="runs/first"'. The run folder is on the server, beside this.
set -eu
here=$(dirname "$0")
exec "$here/flwr.sh" run "$here/../app" federation --stream "$@"
"""
_SITE_ENV = """# What this site brings. start.sh reads it; a variable of the environment goes before it.
SITE="${SITE:-@name@}"                # what the federation calls this site
STATE="${STATE:-$PWD/state}"          # what it keeps between requests, such as its own model; it never leaves
RUNTIME_PORT="${RUNTIME_PORT:-9094}"  # on the loopback; one of its own for each SuperNode on a machine
MODEL="${MODEL:-}"                    # an architecture of its own, such as mlp; by default the config's
export FEDKD_DATA="${FEDKD_DATA:-$PWD/data}"  # where public sets are that the config names
"""
_OWN_DATA = """DATA="${DATA:-}"                      # npz:/path/to/file.npz or images:/path/to/folder
"""
_SHARE = """PARTITION="${PARTITION:-@partition@}"             # which share of the config's images it holds: for tests
"""
_SUPERNODE = """#!/bin/sh
# Starts this site's SuperNode. It opens no port to the outside: it asks the server for work.
set -eu
cd "$(dirname "$0")"
. ./site.env
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-supernode --superlink @host@:@port@ --port "$RUNTIME_PORT" @security@ \\
    --node-config "name=\\"$SITE\\" @own@ state=\\"$STATE\\"${MODEL:+ model=\\"$MODEL\\"}"
"""
_SECURE = "--root-certificates ca.crt --auth-supernode-private-key key"
_INSECURE = "--insecure"
_OWN = 'data=\\"${DATA:?set DATA in site.env}\\"'
_SYSTEMD = """# systemctl enable --now fedkd-@what@; adapt the paths and the user.
[Unit]
Description=fedkd @what@
After=network-online.target
Wants=network-online.target

[Service]
User=fedkd
WorkingDirectory=@home@
Environment=PATH=/opt/fedkd/venv/bin:/usr/bin:/bin
ExecStart=@home@/start.sh
Restart=always
RestartSec=10
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=@home@

[Install]
WantedBy=multi-user.target
"""
_NGINX = """\
# Lets sites through to the Fleet API of the SuperLink. Its Control API, which starts runs and registers keys, knows no
# accounts, and stays on this machine's loopback. This goes into the http block; adapt the paths.
server {
    listen @port@ ssl;@listen_also@
    server_name @host@;
    ssl_certificate /opt/fedkd/server/server.crt;
    ssl_certificate_key /opt/fedkd/server/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 64m;  # of one request; Flower sends large arrays in pieces

    location /v1/fleet/ {
        proxy_pass https://127.0.0.1:@superlink_port@;
        proxy_ssl_trusted_certificate /opt/fedkd/server/ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_request_buffering off;
        proxy_read_timeout 300s;
    }

    location / {
        return 403;
    }
}
"""
_BEHIND = """\
   Sites come in through nginx: put `server/nginx.conf` into its `http` block. It lets them through to the Fleet API
   of the SuperLink; the Control API, which starts runs and registers keys, has no accounts and stays on the loopback.
"""
_README = """# A federation of @count@ sites

Made by `fedkd deploy init` from `@config@`. `app/` is what travels to the sites with a run: the config
(`federation.toml`), a few lines of code that name fedkd, and plug-in files if the config has any. fedkd itself is
installed at the server and at each site, in the same version (`pip install fedkd`).

1. **Hand out.** Copy `server/` and `app/` to the server, and each folder of `sites/` to its site, by a way that you
   trust: they hold private keys. `ca/ca.key` is needed for further certificates only: keep it offline.
2. **Start the server**: `server/start.sh` (or `fedkd-server.service`).
@nginx@3. **Register the keys** at the server: `server/register.sh`. They are in `server/keys/`. A site may make its
   own key instead (`ssh-keygen -t ecdsa -b 384 -f key -N ''`) and send you nothing but `key.pub`, to go there under
   its name.
4. **Start the sites**: say in `site.env` what the site brings, then `./start.sh` (or `fedkd-site.service`).
   `server/flwr.sh supernode list` shows who is there.
5. **Run**: `server/run.sh --run-config 'out="runs/first"'`. After a crash of the server, the same with
   `--run-config 'out="runs/first" resume=true'` goes on from the last checkpoint.

A site that does not fit (other classes, another image shape, another version of fedkd, a name that is taken) is
refused; the reason stands in the server's output and in that site's.
"""
_README_INSECURE = """# A federation of @count@ sites, WITHOUT encryption and WITHOUT authentication

Made by `fedkd deploy init --insecure` from `@config@`, for a trial on a network that you trust: whoever reaches the
port reads what sites send, takes part, and starts runs of any code.

1. **Hand out**: `server/` and `app/` to the server, each folder of `sites/` to its site; fedkd is installed at all.
2. **Start the server**: `server/start.sh`; `BIND=0.0.0.0 server/start.sh` where sites are on other machines.
3. **Say what each site brings**, in its `site.env`.
4. **Start the sites**: `./start.sh`.
5. **Run**: `server/run.sh --run-config 'out="runs/first"'`.
"""
