"""The Kubernetes objects of the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster import scrape_objects
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.objects import (
    ENGINE_KEYS,
    GATEWAY,
    GATEWAY_PORT,
    GATEWAY_USER,
    KEY_MARKS,
    ORDER,
    Object,
    container_security,
    labels,
    metadata,
    pod,
    probe,
    selector,
    service,
)

#: Name of the ConfigMap with the routing map, of its file, and where pods see it.
ROUTES, ROUTES_FILE, ROUTES_FOLDER = "gateway-routes", "routes.yml", "/etc/roundhouse/routes"

#: Name of the Secret with the keys that it takes, of the entry that is their file, and where pods see it. (Another
#: entry is the operator's key in plain text, which is not the pods' business.)
KEYS, KEYS_FILE, KEYS_FOLDER = "gateway-keys", "keys.yml", "/etc/roundhouse/keys"

#: Where pods see the keys that engines want.
ENGINE_KEYS_FOLDER = "/etc/roundhouse/engine-keys"

#: Files of Secrets belong to root; the gateway's group may read them.
_GROUP_READS = 0o440

#: Seconds in which the cluster's proxies learn that a pod ends, before it takes no more requests; and for which it may
#: then finish what it has (the gateway's own default), unless its settings say otherwise.
_DRAIN_DELAY, _DRAIN_TIMEOUT = 5, 30

#: It starts after the engines.
_ORDER = 1000


def routes_object(text: str, settings: Mapping[str, Any]) -> Object:
    """The ConfigMap with the routing map."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(ROUTES, settings, labels(GATEWAY, "gateway", "roundhouse-gateway")),
        "data": {ROUTES_FILE: text},
    }


def gateway_objects(settings: Mapping[str, Any]) -> list[Object]:
    """Deployment, Service, and what the settings ask for besides. Raises ValueError.

    `settings`: `namespace`, `image`, `replicas`, `environment` (further settings of the
    gateway), `node_port` (0: none), `ingress` (empty, or `host`, `class`, `tls_secret`,
    `annotations`), `key_marks` (of the keys that engines want), `scrape` and what goes with it
    (scrape_objects.monitors), `resources`, and what the user sets for all pods.
    """
    of = labels(GATEWAY, "gateway", "roundhouse-gateway")
    found = [_deployment(settings, of), _service(settings, of), *scrape_objects.monitors(settings)]
    if settings["replicas"] > 1:
        found.append(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": metadata(GATEWAY, settings, of),
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(GATEWAY)}},
            }
        )
    if settings["ingress"]:
        if not settings["ingress"].get("host"):
            raise ValueError(
                "gateway_ingress has no host: add the name by which clients reach the gateway, e.g. "
                "{host: llm.example.org}, or leave gateway_ingress empty."
            )
        found.append(_ingress(settings["ingress"], settings, of))
    return found


def _deployment(settings: Mapping[str, Any], of: Mapping[str, str]) -> Object:
    environment = {
        "ROUNDHOUSE_ROUTES": f"{ROUTES_FOLDER}/{ROUTES_FILE}",
        "ROUNDHOUSE_KEYS": f"{KEYS_FOLDER}/{KEYS_FILE}",
        "ROUNDHOUSE_HOST": "0.0.0.0",
        "ROUNDHOUSE_PORT": str(GATEWAY_PORT),
        "ROUNDHOUSE_DRAIN_DELAY": str(_DRAIN_DELAY),
        "ROUNDHOUSE_DRAIN_TIMEOUT": str(_DRAIN_TIMEOUT),
        **{name: str(value) for name, value in settings["environment"].items()},
    }
    drain = float(environment["ROUNDHOUSE_DRAIN_DELAY"]) + float(environment["ROUNDHOUSE_DRAIN_TIMEOUT"])
    mounts: list[Object] = [
        {"name": "routes", "mountPath": ROUTES_FOLDER, "readOnly": True},
        {"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True},
    ]
    container = {
        "name": "gateway",
        "image": settings["image"],
        "imagePullPolicy": settings["image_pull_policy"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "http", "containerPort": GATEWAY_PORT, "protocol": "TCP"}],
        "resources": settings["resources"],
        "securityContext": container_security(readOnlyRootFilesystem=True),
        "volumeMounts": mounts,
        "startupProbe": probe("/readyz", periodSeconds=1, failureThreshold=60),
        "readinessProbe": probe("/readyz", periodSeconds=2, timeoutSeconds=5, failureThreshold=2),
        "livenessProbe": probe("/healthz", periodSeconds=10, timeoutSeconds=10, failureThreshold=6),
    }
    keys = {
        "secretName": KEYS,
        "items": [{"key": KEYS_FILE, "path": KEYS_FILE}],
        "defaultMode": _GROUP_READS,
    }
    volumes: list[Object] = [
        {"name": "routes", "configMap": {"name": ROUTES}},
        {"name": "keys", "secret": keys},
    ]
    template: Object = {"metadata": {"labels": dict(of)}}
    annotations = scrape_objects.pod_annotations(settings["scrape"], GATEWAY_PORT)
    if settings["key_marks"]:
        # They are read with the map only: new keys want new pods.
        annotations[KEY_MARKS] = ",".join(settings["key_marks"])
        secret = {"secretName": ENGINE_KEYS, "defaultMode": _GROUP_READS}
        volumes.append({"name": "engine-keys", "secret": secret})
        mounts.append({"name": "engine-keys", "mountPath": ENGINE_KEYS_FOLDER, "readOnly": True})
    if annotations:
        template["metadata"]["annotations"] = annotations
    template["spec"] = pod(
        settings,
        GATEWAY_USER,
        terminationGracePeriodSeconds=ceil(drain) + 10,
        containers=[container],
        volumes=volumes,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(GATEWAY, settings, of, {ORDER: str(_ORDER)}),
        "spec": {
            "replicas": settings["replicas"],
            "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": selector(GATEWAY)},
            "template": template,
        },
    }


def _service(settings: Mapping[str, Any], of: Mapping[str, str]) -> Object:
    found = service(GATEWAY, settings, of, GATEWAY_PORT)
    if settings["node_port"]:
        found["spec"]["type"] = "NodePort"
        found["spec"]["ports"][0]["nodePort"] = settings["node_port"]
    return found


def _ingress(ingress: Mapping[str, Any], settings: Mapping[str, Any], of: Mapping[str, str]) -> Object:
    backend = {"service": {"name": GATEWAY, "port": {"name": "http"}}}
    rule = {
        "host": ingress["host"],
        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
    }
    spec: Object = {"rules": [rule]}
    if ingress.get("class"):
        spec["ingressClassName"] = ingress["class"]
    if ingress.get("tls_secret"):
        spec["tls"] = [{"hosts": [ingress["host"]], "secretName": ingress["tls_secret"]}]
    annotations = {name: str(value) for name, value in (ingress.get("annotations") or {}).items()}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(GATEWAY, settings, of, annotations),
        "spec": spec,
    }
