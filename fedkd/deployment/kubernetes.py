"""Texts of manifests for Kubernetes, which start the containers that Docker Compose starts (`containers`).

They name no key: kustomize makes the secrets from the files beside them when they are applied.
"""

from __future__ import annotations

from .containers import HEALTH_OF_SERVER, HEALTH_OF_SITE

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
{_probes(HEALTH_OF_SERVER)}\
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
{_probes(HEALTH_OF_SITE)}\
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
