"""Texts of a federation's folder: start scripts, settings of services, READMEs."""

from __future__ import annotations

_LAUNCH = """\
[ -z "${FEDKD_LOG:-}${FEDKD_METRICS:-}" ] || set -- fedkd deploy launch --name @source@ -- "$@"
exec "$@"
"""
_SUPERLINK = """\
# FEDKD_LOG=json: its output is one JSON object a line. FEDKD_METRICS=9464: metrics for Prometheus, on the loopback.
set -eu
umask 077  # its state is for its owner
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
cd -- "${WORK:-$here}"
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
"""
SUPERLINK = f"""#!/bin/sh
# Starts Flower's SuperLink. Registered keys and messages in transit are in state.db in this folder, or in $WORK.
{_SUPERLINK}\
set -- flower-superlink --host @listen@ --port @superlink_port@ --database state.db \\
    --ssl-ca-certfile "$here/ca.crt" --ssl-certfile "$here/server.crt" --ssl-keyfile "$here/server.key" \\
    --enable-supernode-auth --disable-runtime-dependency-installation
{_LAUNCH}""".replace("@source@", "server")
SUPERLINK_INSECURE = f"""#!/bin/sh
# Starts Flower's SuperLink WITHOUT encryption and WITHOUT authentication: for tests on networks that you trust.
{_SUPERLINK}\
set -- flower-superlink --host "${{BIND:-@listen@}}" --port @port@ --database state.db --insecure \\
    --disable-runtime-dependency-installation
{_LAUNCH}""".replace("@source@", "server")
FLWR = """#!/bin/sh
# Flower's command line, set up for this federation: ./flwr.sh ls, ./flwr.sh supernode list, ./flwr.sh stop RUN_ID
set -eu
umask 077
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
export FLWR_HOME="${WORK:-$here}/operator" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
quoted=$(printf %s "$here" | sed 's/[\\"]/\\\\&/g')  # as TOML's text
mkdir -p -- "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" <<END
[superlink]
default = "federation"

[superlink.federation]
address = "@superlink@"
root-certificates = "$quoted/ca.crt"
END
exec flwr "$@"
"""
FLWR_INSECURE = FLWR.replace('root-certificates = "$quoted/ca.crt"', "insecure = true")
REGISTER = """#!/bin/sh
# Registers the sites' public keys: all keys in keys/, or those given as arguments.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
[ $# -gt 0 ] || set -- "$here"/keys/*.pub
for key in "$@"; do
    "$here/flwr.sh" supernode register "$key" federation --name "$(basename "$key" .pub)"
done
"""
RUN = """#!/bin/sh
# Starts a run and shows its output: ./run.sh --run-config 'out="runs/first"'. The run folder is in this folder.
# Exit codes: 0 the run is done, 1 it failed, 2 its config was refused, 130 Ctrl-C, which does not stop the run.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
goes_on() {
    printf 'The run goes on. Its output: %s. ' "$here/flwr.sh log $run" >&2
    printf 'To end it: %s\\n' "$here/flwr.sh stop $run" >&2
}

started=$("$here/flwr.sh" run "$here/../app" federation "$@")
printf '%s\\n' "$started"
run=$(printf '%s\\n' "$started" | sed -n 's/.*started run \\([0-9][0-9]*\\).*/\\1/p')
trap 'goes_on; exit 130' INT
"$here/flwr.sh" log "$run" federation || true
ended=$("$here/flwr.sh" ls federation --run-id "$run" --format json)
case $ended in
*'"status": "finished:completed"'*) exit 0 ;;
*'exception: refused: '*) exit 2 ;;
*'"status": "finished:'*) exit 1 ;;
esac
goes_on  # the connection to the SuperLink was lost
exit 1
"""
SITE_ENV = """# The settings of this site. start.sh reads them; environment variables have priority.
SITE="${SITE:-@name@}"                # the name of this site in the federation
STATE="${STATE:-$PWD/state}"          # the site's state between requests, such as its personal model; it is never sent
RUNTIME_PORT="${RUNTIME_PORT:-9094}"  # on the loopback address; each SuperNode on a machine needs another port
MODEL="${MODEL:-}"                    # the site's own architecture, such as mlp; by default the config's
export FEDKD_DATA="${FEDKD_DATA:-$PWD/data}"  # the folder of public sets that the config names
export FEDKD_LOG="${FEDKD_LOG:-}"      # json: the output is one JSON object a line
export FEDKD_METRICS="${FEDKD_METRICS:-}"  # a port, such as 9464: metrics for Prometheus, on the loopback
"""
OWN_DATA = """DATA="${DATA:-}"                      # npz:FILE, images:FOLDER, file:TABLE.csv, or a TOML file
"""
SHARE = """PARTITION="${PARTITION:-@partition@}"             # the site's part of the config's images: for tests
"""
SUPERNODE = f"""#!/bin/sh
# Starts this site's SuperNode. It opens no port to other machines: it asks the server for work.
set -eu
umask 077  # the site's state is for its owner
CDPATH= cd -- "$(dirname -- "$0")"
. ./site.env
work=${{WORK:-$PWD}}
export FLWR_HOME="$work/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
give() {{  # a key of the node config, and its value as TOML's text
    case $2 in *[[:cntrl:]]*) echo "start.sh: $1 has a newline or another control character" >&2; exit 2 ;; esac
    printf '%s = "%s"\\n' "$1" "$(printf %s "$2" | sed 's/[\\"]/\\\\&/g')"
}}
{{
    give name "$SITE"
    @own@
    give state "$STATE"
    [ -z "$MODEL" ] || give model "$MODEL"
}} > "$work/node.toml"
set -- flower-supernode --superlink @host@:@port@ --port "$RUNTIME_PORT" @security@ --node-config "$work/node.toml"
{_LAUNCH}""".replace("@source@", '"$SITE" --state "$STATE"')
SECURE = "--root-certificates ca.crt --auth-supernode-private-key key"
INSECURE = "--insecure"
OWN = 'give data "${DATA:?set DATA in site.env}"'
OWN_SHARE = """case $PARTITION in '' | *[!0-9]*) echo "start.sh: PARTITION is no number" >&2; exit 2 ;; esac
    echo "partition-id = $PARTITION\""""
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
KillMode=mixed
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=@home@

[Install]
WantedBy=multi-user.target
"""
NGINX = """\
# Forwards sites to the Fleet API of the SuperLink. Its Control API, which starts runs and registers keys, has no
# accounts, and is only available on this machine's loopback address. Put this into the http block; adapt the paths.
server {
    listen @port@ ssl;@listen_also@
    server_name @host@;
    ssl_certificate /opt/fedkd/server/server.crt;
    ssl_certificate_key /opt/fedkd/server/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 64m;  # for one request; Flower sends large arrays in pieces

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
   Sites connect through nginx: put `server/nginx.conf` into its `http` block. It forwards them to the Fleet API of the
   SuperLink. The Control API, which starts runs and registers keys, has no accounts and is only available on the
   loopback address.
"""
README = """# A federation of @count@ sites

Made by `fedkd deploy init` from `@config@`. Flower sends `app/` to the sites with a run: the config
(`federation.toml`), a few lines of code that name fedkd, and plug-in files if the config has any. Install fedkd on the
server and at each site (`pip install fedkd`); its major and minor version must be equal everywhere, such as 0.1.

1. **Copy the folders.** Copy `server/` and `app/` to the server, and each folder of `sites/` to its site, over a
   connection that you trust, because they contain private keys. `ca/ca.key` is only needed for further certificates:
   keep it offline.
2. **Start the server**: `server/start.sh` (or `fedkd-server.service`).
@nginx@3. **Register the keys** on the server: `server/register.sh`. They are in `server/keys/`. A site may make its
   own key instead (`ssh-keygen -t ecdsa -b 384 -f key -N ''`) and send you only `key.pub`; put it into
   `server/keys/` under the site's name.
4. **Start the sites**: write the site's settings into `site.env`, then run `./start.sh` (or `fedkd-site.service`).
   `server/flwr.sh supernode list` shows the connected sites.
5. **Run**: `server/run.sh --run-config 'out="runs/first"'`. After a crash of the server, the same command with
   `--run-config 'out="runs/first" resume=true'` continues from the last checkpoint.

A site that does not fit (other classes, another image shape, fedkd 0.2 beside 0.1, a name in use) is refused; the
reason is in the output of the server and of the site.
"""
README_INSECURE = """# A federation of @count@ sites, WITHOUT encryption and WITHOUT authentication

Made by `fedkd deploy init --insecure` from `@config@`, for a test on a network that you trust: anyone who can reach
the port can read what sites send, take part, and start runs of any code.

1. **Copy the folders**: `server/` and `app/` to the server, each folder of `sites/` to its site. Install fedkd on all.
2. **Start the server**: `server/start.sh`; if sites are on other machines: `BIND=0.0.0.0 server/start.sh`.
3. **Write the settings of each site** into its `site.env`.
4. **Start the sites**: `./start.sh`.
5. **Run**: `server/run.sh --run-config 'out="runs/first"'`.
"""


def fill(text: str, values: dict[str, str]) -> str:
    """Return a text in which each `@name@` is replaced by the value of that name."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
