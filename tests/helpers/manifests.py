"""Strict forms of the compose files and manifests that `fedkd deploy init` writes, and how to read them.

The forms allow what we write and nothing else, so a key that is misspelled is found without Docker and without a
cluster. They were compared once with the Compose Specification's own schema and with the types of Kubernetes' client.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]


def _table(required: Json, **optional: Any) -> Json:
    keys = {**required, **optional}
    return {"type": "object", "properties": keys, "required": list(required), "additionalProperties": False}


def _list(item: Json, least: int = 1) -> Json:
    return {"type": "array", "items": item, "minItems": least}


TEXT: Json = {"type": "string", "minLength": 1}
ANY_TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer", "minimum": 1}
TRUE: Json = {"const": True}
NAME: Json = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}
IMAGE: Json = {"type": "string", "pattern": r"^(\$\{FEDKD_IMAGE:-)?[a-z0-9./-]+:\d[\w.-]*\}?$"}  # pinned by a tag
SECONDS: Json = {"type": "string", "pattern": r"^\d+s$"}
PORT: Json = {"type": "integer", "minimum": 1, "maximum": 65535}

COMPOSE = _table({
    "name": NAME,
    "services": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": NAME,
        "additionalProperties": _table(
            {
                "image": IMAGE,
                "user": {"const": "${FEDKD_UID:-10001}:${FEDKD_GID:-10001}"},
                "read_only": TRUE,
                "tmpfs": {"const": ["/tmp"]},
                "cap_drop": {"const": ["ALL"]},
                "security_opt": {"const": ["no-new-privileges:true"]},
                "init": TRUE,
                "restart": {"const": "unless-stopped"},
                "stop_grace_period": SECONDS,
                "volumes": _list(
                    _table(
                        {
                            "type": {"const": "bind"},
                            "source": {"type": "string", "pattern": r"^(\.|\$\{\w+:-\./)"},
                            "target": {"type": "string", "pattern": "^/"},
                        },
                        read_only=TRUE,
                    )
                ),
            },
            build={"const": "./image"},
            command=_list(TEXT),
            environment={"type": "object", "additionalProperties": ANY_TEXT},
            ports=_list({"type": "string", "pattern": r"^(127\.0\.0\.1:\$\{METRICS_PORT:-\}|\d+):\d+$"}),
            healthcheck=_table(
                {
                    "test": {"type": "array", "prefixItems": [{"const": "CMD"}], "items": TEXT, "minItems": 2},
                    "interval": SECONDS,
                    "timeout": SECONDS,
                    "start_period": SECONDS,
                    "retries": WHOLE,
                }
            ),
            network_mode={"type": "string", "pattern": "^service:[a-z]+$"},
            depends_on={
                "type": "object",
                "additionalProperties": _table({"condition": {"const": "service_healthy"}}),
            },
        ),
    },
})  # fmt: skip

_METADATA = _table({"name": NAME}, namespace=NAME)
_LABELS = _table({"app": NAME})
_EXEC = _table({"command": _list(TEXT)})
_PROBE = _table({"exec": _EXEC, "periodSeconds": WHOLE, "timeoutSeconds": WHOLE}, initialDelaySeconds=WHOLE)
_CONTAINER = _table(
    {
        "name": NAME,
        "image": IMAGE,
        "resources": _table({"requests": _table({"cpu": TEXT, "memory": TEXT})}),
        "securityContext": {
            "const": {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        },
        "volumeMounts": _list(
            _table({"name": NAME, "mountPath": {"type": "string", "pattern": "^/"}}, readOnly=TRUE, subPath=TEXT)
        ),
    },
    command=_list(TEXT),
    env=_list(_table({"name": TEXT, "value": ANY_TEXT})),
    ports=_list(_table({"name": NAME, "containerPort": PORT})),
    readinessProbe=_PROBE,
    livenessProbe=_PROBE,
)
_CONFIG_MAP = _table({"name": NAME})
_SECRET = _table({"name": NAME, "items": _list(_table({"key": TEXT, "path": TEXT, "mode": {"const": 0o440}}))})
_VOLUME = {
    "oneOf": [
        _table({"name": NAME, "emptyDir": {"const": {}}}),
        _table({"name": NAME, "configMap": _CONFIG_MAP}),
        _table({"name": NAME, "persistentVolumeClaim": _table({"claimName": NAME, "readOnly": TRUE})}),
        _table({
            "name": NAME,
            "projected": _table({
                "defaultMode": {"const": 0o550},
                "sources": _list({"oneOf": [_table({"configMap": _CONFIG_MAP}), _table({"secret": _SECRET})]}),
            }),
        }),
    ]
}  # fmt: skip
_POD = _table({
    "automountServiceAccountToken": {"const": False},
    "terminationGracePeriodSeconds": WHOLE,
    "securityContext": {
        "const": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    },
    "containers": _list(_CONTAINER),
    "volumes": _list(_VOLUME),
})  # fmt: skip


def _kind(version: str, kind: str, spec: Json) -> Json:
    return _table({"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": _METADATA, "spec": spec})


KUBERNETES: dict[str, Json] = {
    "Service": _kind("v1", "Service", _table({
        "type": {"const": "LoadBalancer"},
        "selector": _LABELS,
        "ports": _list(_table({"name": NAME, "port": PORT, "targetPort": PORT})),
    })),
    "NetworkPolicy": _kind("networking.k8s.io/v1", "NetworkPolicy", _table({
        "podSelector": _table({"matchLabels": _LABELS}),
        "policyTypes": {"const": ["Ingress"]},
        "ingress": _list(_table({"ports": _list(_table({"protocol": {"const": "TCP"}, "port": PORT}))}), 0),
    })),
    "StatefulSet": _kind("apps/v1", "StatefulSet", _table({
        "serviceName": NAME,
        "replicas": {"const": 1},
        "selector": _table({"matchLabels": _LABELS}),
        "template": _table({"metadata": _table({"labels": _LABELS}), "spec": _POD}),
        "volumeClaimTemplates": _list(_table({
            "metadata": _METADATA,
            "spec": _table({
                "accessModes": {"const": ["ReadWriteOnce"]},
                "resources": _table({"requests": _table({"storage": TEXT})}),
            }),
        })),
    })),
    "Kustomization": _table({
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "namespace": {"const": "fedkd"},
        "generatorOptions": {"const": {"disableNameSuffixHash": True}},
        "resources": _list(TEXT),
        "configMapGenerator": _list(_table({"name": NAME, "files": _list(TEXT)})),
        "secretGenerator": _list(_table({"name": NAME, "files": _list(TEXT)})),
    }),
}  # fmt: skip


def documents(text: str) -> list[Json]:
    return list(yaml.safe_load_all(text))


def with_variables(value: Any, variables: dict[str, str]) -> Any:
    """Return a value of a compose file with its `${NAME:-default}` replaced, as Compose does."""
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1]) or match[2], value)
    if isinstance(value, list):
        return [with_variables(one, variables) for one in value]
    if isinstance(value, dict):
        return {key: with_variables(one, variables) for key, one in value.items()}
    return value


def service_of(path: Path, name: str, variables: dict[str, str]) -> Json:
    """Return a service of a compose file, with the container's paths in its command and environment as local ones."""
    service = with_variables(yaml.safe_load(path.read_text())["services"][name], variables)
    mounts = {one["target"]: str((path.parent / one["source"]).resolve()) for one in service["volumes"]}

    def local(value: str) -> str:
        for target, source in sorted(mounts.items(), key=lambda mount: -len(mount[0])):
            value = re.sub(rf"(?<![\w.]){re.escape(target)}(?=[/'\"]|$)", lambda match, source=source: source, value)
        return value

    service["command"] = [local(word) for word in service["command"]]
    service["environment"] = {key: local(value) for key, value in service["environment"].items()}
    service["healthcheck"]["test"] = [local(word) for word in service["healthcheck"]["test"]]
    return service
