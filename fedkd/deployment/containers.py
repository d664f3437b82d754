"""Texts of a federation's containers: an image, files for Docker Compose.

The scripts of `templates` start in them as they start without containers. Keys and settings are mounted, never copied
into an image. Root file systems are read-only; what is written lies in /state and in a /tmp in memory.
"""

from __future__ import annotations

DOCKERFILE = """\
# The image of the server and of all sites: fedkd and nothing else. This folder has no key and no setting.
FROM python:3.11.13-slim-bookworm
ARG FEDKD_VERSION=@version@
# Wheels in this folder are taken before those of the package index; without a network all of them must be here.
COPY . /wheels/
RUN pip install --no-cache-dir --find-links /wheels "fedkd[metrics]==${FEDKD_VERSION}" && rm -rf /wheels
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp fedkd
ENV HOME=/tmp MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1
USER 10001:10001
"""

HEALTH_OF_SERVER = (
    "import ssl, urllib.request as r; r.urlopen('https://127.0.0.1:@superlink_port@/health', timeout=5, "
    "context=ssl.create_default_context(cafile='/federation/server/ca.crt'))"
)
HEALTH_OF_SITE = "import urllib.request as r; r.urlopen('http://127.0.0.1:9094/health', timeout=5)"

_CONFINED = """\
    user: "${FEDKD_UID:-10001}:${FEDKD_GID:-10001}"
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    init: true
    restart: unless-stopped
    stop_grace_period: 30s
"""
_SERVICE = f"""\
    image: "${{FEDKD_IMAGE:-fedkd:@version@}}"
    build: ./image
{_CONFINED}"""


def _compose_health(program: str) -> str:
    return f"""\
    healthcheck:
      test: ["CMD", "python", "-c", "{program}"]
      interval: 30s
      timeout: 10s
      start_period: 60s
      retries: 3
"""


COMPOSE_SERVER = f"""\
# The server: docker compose up --detach --wait. Settings are in .env: FEDKD_UID and FEDKD_GID, this folder's owner;
# FEDKD_IMAGE; FEDKD_LOG, text or json; FEDKD_METRICS=0.0.0.0:9464 and METRICS_PORT, its port on this loopback.
name: fedkd-server
services:
  superlink:
{_SERVICE}\
    command: [/federation/server/start.sh]
    environment:
      WORK: /state
      FEDKD_DATA: /data
      FEDKD_LOG: "${{FEDKD_LOG:-json}}"
      FEDKD_METRICS: "${{FEDKD_METRICS:-}}"
    volumes:
      - {{type: bind, source: ., target: /federation/server, read_only: true}}
      - {{type: bind, source: ../app, target: /federation/app, read_only: true}}
      - {{type: bind, source: ./data, target: /data, read_only: true}}
      - {{type: bind, source: ./state, target: /state}}
    ports:
      - "@port@:@port@"
      - "127.0.0.1:${{METRICS_PORT:-}}:9464"
{_compose_health(HEALTH_OF_SERVER)}\
  # forwards sites to the Fleet API; the Control API stays on the loopback that both share
  nginx:
    image: nginxinc/nginx-unprivileged:1.28.0-alpine
{_CONFINED}\
    network_mode: service:superlink
    depends_on:
      superlink: {{condition: service_healthy}}
    volumes:
      - {{type: bind, source: ./nginx.conf, target: /etc/nginx/conf.d/default.conf, read_only: true}}
      - {{type: bind, source: ./server.crt, target: /opt/fedkd/server/server.crt, read_only: true}}
      - {{type: bind, source: ./server.key, target: /opt/fedkd/server/server.key, read_only: true}}
      - {{type: bind, source: ./ca.crt, target: /opt/fedkd/server/ca.crt, read_only: true}}
"""
COMPOSE_SITE = f"""\
# This site: docker compose up --detach --wait. Settings of the site are in site.env, where its data are below /data.
# Settings of the container are in .env: DATA_FOLDER, the folder that is /data; FEDKD_UID and FEDKD_GID, this folder's
# owner; FEDKD_IMAGE; FEDKD_LOG, text or json; FEDKD_METRICS=0.0.0.0:9464 and METRICS_PORT, its port on the loopback.
name: fedkd-@name@
services:
  supernode:
{_SERVICE}\
    command: [/federation/site/start.sh]
    environment:
      WORK: /state
      STATE: /state/kept
      FEDKD_DATA: /data
      FEDKD_LOG: "${{FEDKD_LOG:-json}}"
      FEDKD_METRICS: "${{FEDKD_METRICS:-}}"
    volumes:
      - {{type: bind, source: ., target: /federation/site, read_only: true}}
      - {{type: bind, source: "${{DATA_FOLDER:-./data}}", target: /data, read_only: true}}
      - {{type: bind, source: ./state, target: /state}}
    ports:
      - "127.0.0.1:${{METRICS_PORT:-}}:9464"
{_compose_health(HEALTH_OF_SITE)}"""

README_COMPOSE = """
## With Docker Compose

The folders are the same; each has a `compose.yaml` and an `image/` with the Dockerfile. No key is in an image: all are
mounted, read-only. What the containers write is in `state/` beside `compose.yaml`, the server's run folders too. They
run as the user with the number 10001, or as the owner of the folder:

    printf 'FEDKD_UID=%s\\nFEDKD_GID=%s\\n' "$(id -u)" "$(id -g)" > .env    # in server/, and in each site's folder

* step 2: in `server/`: `docker compose build`, `docker compose up --detach --wait`. nginx is one of the containers.
* step 3: `docker compose exec superlink /federation/server/register.sh`
* step 4, at each site: write `DATA="npz:/data/scans.npz"` into `site.env` and `DATA_FOLDER=/srv/scans` into `.env`, for
  the data in `/srv/scans/scans.npz`; `docker compose build`, then `docker compose up --detach --wait`.
* step 5: `docker compose exec superlink /federation/server/run.sh --run-config 'out="runs/first"'`

A machine without a network: put the wheels of fedkd and of all that it needs into `image/` before the build.
"""
