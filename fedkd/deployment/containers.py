"""Texts of a federation's containers: an image, files for Docker Compose, manifests for Kubernetes.

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

_HEALTH_OF_SERVER = (
    "import ssl, urllib.request as r; r.urlopen('https://127.0.0.1:@superlink_port@/health', timeout=5, "
    "context=ssl.create_default_context(cafile='/federation/server/ca.crt'))"
)
_HEALTH_OF_SITE = "import urllib.request as r; r.urlopen('http://127.0.0.1:9094/health', timeout=5)"

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
{_compose_health(_HEALTH_OF_SERVER)}\
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
{_compose_health(_HEALTH_OF_SITE)}"""

_POD = """\
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 30
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: {type: RuntimeDefault}
"""
_CONTAINER = """\
          securityContext:
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
"""


def _probes(program: str) -> str:
    command = f"""{{command: [python, -c, "{program}"]}}"""
    return f"""\
          readinessProbe:
            exec: {command}
            periodSeconds: 30
            timeoutSeconds: 10
          livenessProbe:
            exec: {command}
            initialDelaySeconds: 60
            periodSeconds: 30
            timeoutSeconds: 10
"""


_STATE = """\
  volumeClaimTemplates:
    - metadata: {name: state}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: 10Gi}}
"""
KUBERNETES_SERVER = f"""\
# The server: kubectl apply -k . in the folder above. The image must be where the cluster finds it. For metrics set
# FEDKD_METRICS to 0.0.0.0:9464, and let the scraper through in the network policy.
apiVersion: v1
kind: Service
metadata: {{name: fedkd-server}}
spec:
  type: LoadBalancer
  selector: {{app: fedkd-server}}
  ports:
    - {{name: fleet, port: @port@, targetPort: @port@}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: fedkd-server}}
spec:
  podSelector: {{matchLabels: {{app: fedkd-server}}}}
  policyTypes: [Ingress]
  ingress:
    - ports:
        - {{protocol: TCP, port: @port@}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: fedkd-server}}
spec:
  serviceName: fedkd-server
  replicas: 1
  selector: {{matchLabels: {{app: fedkd-server}}}}
  template:
    metadata: {{labels: {{app: fedkd-server}}}}
    spec:
{_POD}\
      containers:
        - name: superlink
          image: fedkd:@version@
          command: [/federation/server/start.sh]
          env:
            - {{name: WORK, value: /state}}
            - {{name: FEDKD_DATA, value: /state/data}}
            - {{name: FEDKD_LOG, value: json}}
            - {{name: FEDKD_METRICS, value: ""}}
          resources: {{requests: {{cpu: 500m, memory: 2Gi}}}}
{_CONTAINER}\
{_probes(_HEALTH_OF_SERVER)}\
          volumeMounts:
            - {{name: server, mountPath: /federation/server, readOnly: true}}
            - {{name: keys, mountPath: /federation/keys, readOnly: true}}
            - {{name: state, mountPath: /state}}
            - {{name: tmp, mountPath: /tmp}}
@app_mounts@
        - name: nginx  # forwards sites to the Fleet API; the Control API stays on the pod's loopback
          image: nginxinc/nginx-unprivileged:1.28.0-alpine
          ports:
            - {{name: fleet, containerPort: @port@}}
          resources: {{requests: {{cpu: 100m, memory: 64Mi}}}}
{_CONTAINER}\
          volumeMounts:
            - {{name: nginx, mountPath: /etc/nginx/conf.d, readOnly: true}}
            - {{name: server, mountPath: /opt/fedkd/server, readOnly: true}}
            - {{name: tmp, mountPath: /tmp, subPath: nginx}}
      volumes:
        - name: tmp
          emptyDir: {{}}
        - name: nginx
          configMap: {{name: fedkd-nginx}}
        - name: app
          configMap: {{name: fedkd-app}}
        - name: keys
          configMap: {{name: fedkd-keys}}
        - name: server
          projected:
            defaultMode: 360  # 0550
            sources:
              - configMap: {{name: fedkd-server}}
              - secret:
                  name: fedkd-server
                  items:
                    - {{key: server.crt, path: server.crt, mode: 288}}
                    - {{key: server.key, path: server.key, mode: 288}}
{_STATE}"""
KUSTOMIZATION_SERVER = """\
# Reads keys and scripts from this folder; nothing of them is in kubernetes.yaml, and the secret is made when you apply.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: fedkd
generatorOptions: {disableNameSuffixHash: true}  # a new key or script does not start the pod anew: you do
resources:
  - server/kubernetes.yaml
configMapGenerator:
  - name: fedkd-server
    files: [server/start.sh, server/flwr.sh, server/run.sh, server/register.sh, server/ca.crt]
  - name: fedkd-nginx
    files: [default.conf=server/nginx.conf]
  - name: fedkd-keys
    files: [@key_files@]
  - name: fedkd-app
    files: [@app_files@]
secretGenerator:
  - name: fedkd-server
    files: [server/server.crt, server/server.key]
"""
KUBERNETES_SITE = f"""\
# This site: kubectl apply -k . in this folder. The claim fedkd-@name@-data has the site's data and must be there;
# it is /data in site.env. For metrics set FEDKD_METRICS to 0.0.0.0:9464, and let the scraper through in the policy.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: fedkd-@name@}}
spec:
  podSelector: {{matchLabels: {{app: fedkd-@name@}}}}
  policyTypes: [Ingress]
  ingress: []
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: fedkd-@name@}}
spec:
  serviceName: fedkd-@name@
  replicas: 1
  selector: {{matchLabels: {{app: fedkd-@name@}}}}
  template:
    metadata: {{labels: {{app: fedkd-@name@}}}}
    spec:
{_POD}\
      containers:
        - name: supernode
          image: fedkd:@version@
          command: [/federation/site/start.sh]
          env:
            - {{name: WORK, value: /state}}
            - {{name: STATE, value: /state/kept}}
            - {{name: FEDKD_DATA, value: /data}}
            - {{name: FEDKD_LOG, value: json}}
            - {{name: FEDKD_METRICS, value: ""}}
          resources: {{requests: {{cpu: 500m, memory: 2Gi}}}}
{_CONTAINER}\
{_probes(_HEALTH_OF_SITE)}\
          volumeMounts:
            - {{name: site, mountPath: /federation/site, readOnly: true}}
            - {{name: data, mountPath: /data, readOnly: true}}
            - {{name: state, mountPath: /state}}
            - {{name: tmp, mountPath: /tmp}}
      volumes:
        - name: tmp
          emptyDir: {{}}
        - name: data
          persistentVolumeClaim: {{claimName: fedkd-@name@-data, readOnly: true}}
        - name: site
          projected:
            defaultMode: 360  # 0550
            sources:
              - configMap: {{name: fedkd-@name@}}
              - secret:
                  name: fedkd-@name@
                  items:
                    - {{key: key, path: key, mode: 288}}
{_STATE}"""
KUSTOMIZATION_SITE = """\
# Reads the key and the settings from this folder; the secret is made when you apply.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: fedkd
generatorOptions: {disableNameSuffixHash: true}  # a new setting does not start the pod anew: you do
resources:
  - kubernetes.yaml
configMapGenerator:
  - name: fedkd-@name@
    files: [start.sh, site.env, ca.crt]
secretGenerator:
  - name: fedkd-@name@
    files: [key]
"""

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
README_KUBERNETES = """
## With Kubernetes

The image is `image/Dockerfile`; build it as `fedkd:@version@` and put it where the clusters find it. No key is in it or
in a manifest: `kubectl` makes the secrets from the files in these folders.

* step 2: in this folder: `kubectl create namespace fedkd`, then `kubectl apply -k .`. nginx is one of the containers.
* step 3: `kubectl -n fedkd exec fedkd-server-0 -- sh -c '/federation/server/register.sh /federation/keys/*'`
* step 4, in each site's folder: write `DATA="npz:/data/scans.npz"` into `site.env`; make a namespace `fedkd` and in it
  the claim `fedkd-site-1-data` with the data; then `kubectl apply -k .`.
* step 5: the same with `-- /federation/server/run.sh --run-config 'out="runs/first"'`
"""
