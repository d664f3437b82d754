"""Texts of a federation's folder: start scripts, settings of services, READMEs."""

from __future__ import annotations

SUPERLINK = """#!/bin/sh
# Starts Flower's SuperLink. Registered keys and messages on their way are in state.db beside this script.
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-superlink --host @listen@ --port @superlink_port@ --database state.db \\
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation
"""
SUPERLINK_INSECURE = """#!/bin/sh
# Starts Flower's SuperLink WITHOUT encryption and WITHOUT authentication: for trials on networks that you trust.
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-superlink --host "${BIND:-@listen@}" --port @port@ --database state.db --insecure \\
    --disable-runtime-dependency-installation
"""
FLWR = """#!/bin/sh
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
FLWR_INSECURE = FLWR.replace('root-certificates = "$here/ca.crt"', "insecure = true")
REGISTER = """#!/bin/sh
# Registers the sites' public keys: all of keys/, or those that are named.
set -eu
here=$(dirname "$0")
[ $# -gt 0 ] || set -- "$here"/keys/*.pub
for key in "$@"; do
    "$here/flwr.sh" supernode register "$key" federation --name "$(basename "$key" .pub)"
done
"""
RUN = """#!/bin/sh
# Starts a run, and follows it: ./run.sh --run-config 'out="runs/first"'. The run folder is on the server, beside this.
set -eu
here=$(dirname "$0")
exec "$here/flwr.sh" run "$here/../app" federation --stream "$@"
"""
SITE_ENV = """# What this site brings. start.sh reads it; a variable of the environment goes before it.
SITE="${SITE:-@name@}"                # what the federation calls this site
STATE="${STATE:-$PWD/state}"          # what it keeps between requests, such as its own model; it never leaves
RUNTIME_PORT="${RUNTIME_PORT:-9094}"  # on the loopback; one of its own for each SuperNode on a machine
MODEL="${MODEL:-}"                    # an architecture of its own, such as mlp; by default the config's
export FEDKD_DATA="${FEDKD_DATA:-$PWD/data}"  # where public sets are that the config names
"""
OWN_DATA = """DATA="${DATA:-}"                      # npz:/path/to/file.npz or images:/path/to/folder
"""
SHARE = """PARTITION="${PARTITION:-@partition@}"             # which share of the config's images it holds: for tests
"""
SUPERNODE = """#!/bin/sh
# Starts this site's SuperNode. It opens no port to the outside: it asks the server for work.
set -eu
cd "$(dirname "$0")"
. ./site.env
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-supernode --superlink @host@:@port@ --port "$RUNTIME_PORT" @security@ \\
    --node-config "name=\\"$SITE\\" @own@ state=\\"$STATE\\"${MODEL:+ model=\\"$MODEL\\"}"
"""
SECURE = "--root-certificates ca.crt --auth-supernode-private-key key"
INSECURE = "--insecure"
OWN = 'data=\\"${DATA:?set DATA in site.env}\\"'
SYSTEMD = """# systemctl enable --now fedkd-@what@; adapt the paths and the user.
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
NGINX = """\
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
BEHIND = """\
   Sites come in through nginx: put `server/nginx.conf` into its `http` block. It lets them through to the Fleet API
   of the SuperLink; the Control API, which starts runs and registers keys, has no accounts and stays on the loopback.
"""
README = """# A federation of @count@ sites

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
README_INSECURE = """# A federation of @count@ sites, WITHOUT encryption and WITHOUT authentication

Made by `fedkd deploy init --insecure` from `@config@`, for a trial on a network that you trust: whoever reaches the
port reads what sites send, takes part, and starts runs of any code.

1. **Hand out**: `server/` and `app/` to the server, each folder of `sites/` to its site; fedkd is installed at all.
2. **Start the server**: `server/start.sh`; `BIND=0.0.0.0 server/start.sh` where sites are on other machines.
3. **Say what each site brings**, in its `site.env`.
4. **Start the sites**: `./start.sh`.
5. **Run**: `server/run.sh --run-config 'out="runs/first"'`.
"""
