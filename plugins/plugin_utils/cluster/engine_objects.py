"""The Kubernetes objects of a deployment: a Deployment and a Service of its name, and a headless one for replicas."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.deployments import fill
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.weights import CLAIM_FOLDER
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.objects import (
    ENGINE_KEYS,
    ENGINE_PORT,
    GATEWAY_USER,
    KEY_MARKS,
    MODEL,
    ORDER,
    OWNED_BY,
    Object,
    container_security,
    labels,
    metadata,
    pod,
    probe,
    selector,
    service,
)
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.scrape_objects import engine_annotations

#: Seconds in which the cluster's proxies learn that a pod ends, before its engine does.
_LEAVE = 5

_STARTUP_PERIOD = 5


def engine_objects(
    deployments: Sequence[Mapping[str, Any]],
    weights: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[list[Object]]:
    """The objects of each deployment of the resolved catalog, in its order. Raises ValueError.

    `weights` are the results of the module weights (`path` on the host), or nothing if the engines fetch them.
    `settings`: `namespace`; `folders` (host folders that the nodes see, as a mapping of host path to node path; the
    first is that of the weights) or
    `claim` (name of the PersistentVolumeClaim for weights); `token_secret` (name, or empty); `gateway_image`;
    `pull_timeout` (seconds for the image, on top of the deployment's own startup_timeout);
    and what the user sets for all pods: `image_pull_secrets`, `image_pull_policy`, `node_selector`,
    `tolerations`, `runtime_class`.
    """
    given = weights or [{}] * len(deployments)
    return [
        _objects(deployment, order, found, settings)
        for order, (deployment, found) in enumerate(zip(deployments, given, strict=True))
    ]


def shared_objects(settings: Mapping[str, Any]) -> list[Object]:
    """What all deployments share: the claim for weights, and the Secrets with what nobody else may see.

    Of `settings`: `namespace`, `claim` (empty: none) with `claim_size`, `claim_access_mode`, `storage_class`, and
    `token_secret` (empty: none) with `token`, for gated repositories, and `api_keys`, which engines want, by name.
    """
    of = labels("engines", "engine", "roundhouse")
    found: list[Object] = []
    if settings["claim"]:
        spec: Object = {
            "accessModes": [settings["claim_access_mode"]],
            "resources": {"requests": {"storage": settings["claim_size"]}},
        }
        if settings["storage_class"]:
            spec["storageClassName"] = settings["storage_class"]
        found.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": metadata(settings["claim"], settings, of),
                "spec": spec,
            }
        )
    if settings["token_secret"]:
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": metadata(settings["token_secret"], settings, of),
                "type": "Opaque",
                "stringData": {"token": settings["token"]},
            }
        )
    if settings["api_keys"]:
        keys = {name: base64.b64encode(key.encode()).decode() for name, key in settings["api_keys"].items()}
        found.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": metadata(ENGINE_KEYS, settings, of),
                "type": "Opaque",
                # Not stringData: what is no longer in that would stay.
                "data": keys,
            }
        )
    return found


def _objects(
    deployment: Mapping[str, Any], order: int, weights: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Object]:
    name = deployment["name"]
    of = labels(name, "engine", deployment["engine"])
    annotations = {
        MODEL: deployment["model"],
        OWNED_BY: deployment["owned_by"],
        ORDER: str(order),
    }
    template: Object = {"metadata": {"labels": of}, "spec": _pod(deployment, weights, settings)}
    of_pods = engine_annotations(settings["scrape"], ENGINE_PORT, deployment["model"], deployment["owned_by"])
    if deployment["key_env"]:
        of_pods[KEY_MARKS] = deployment["key_mark"]
    if of_pods:
        template["metadata"]["annotations"] = of_pods
    found: list[Object] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(name, settings, of, annotations),
            "spec": {
                "replicas": deployment["replicas"],
                "revisionHistoryLimit": 2,
                "progressDeadlineSeconds": round(deployment["startup_timeout"] + settings["pull_timeout"]),
                "strategy": _strategy(deployment),
                "selector": {"matchLabels": selector(name)},
                "template": template,
            },
        },
        service(name, settings, of, ENGINE_PORT),
    ]
    if deployment["replicas"] > 1:
        found.append(service(headless(name), settings, of, ENGINE_PORT, headless=True))
    return found


def headless(name: str) -> str:
    """The name of the Service by which the replicas of a deployment are found one by one."""
    return f"{name}-replicas"


def cluster_addresses(deployments: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Per deployment its backend, as the gateway in the same namespace reaches it."""
    return {
        d["name"]: [
            {"name": d["name"], "url": f"http://{headless(d['name'])}:{ENGINE_PORT}", "resolve": True}
            if d["replicas"] > 1
            else {"name": d["name"], "url": f"http://{d['name']}:{ENGINE_PORT}"}
        ]
        for d in deployments
    }


def _strategy(deployment: Mapping[str, Any]) -> Object:
    """With a GPU the old pod has to go first: two of them would not fit."""
    if deployment["gpus"]:
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def _pod(deployment: Mapping[str, Any], weights: Mapping[str, Any], settings: Mapping[str, Any]) -> Object:
    volume, mount, path = _weights(deployment, weights, settings)
    volumes, mounts = [volume], [mount]
    if deployment["cache"]:
        kept = _kept(deployment, settings)
        volumes += kept[0]
        mounts += kept[1]
    words = fill(deployment["command"], {"weights": path, "host": "0.0.0.0", "port": ENGINE_PORT})
    health = deployment["health"]
    patience = max(1, ceil(health["timeout"]))
    period = max(1, ceil(health["interval"]))
    container: Object = {
        "name": "engine",
        "image": deployment["image"],
        "imagePullPolicy": settings["image_pull_policy"],
        "command": words + deployment["args"],
        "env": _environment(deployment, settings),
        "ports": [{"name": "http", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
        "resources": _resources(deployment),
        "securityContext": container_security(),
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - where engines want it
        "startupProbe": probe(
            health["path"],
            periodSeconds=_STARTUP_PERIOD,
            timeoutSeconds=patience,
            failureThreshold=max(1, ceil(deployment["startup_timeout"] / _STARTUP_PERIOD)),
        ),
        "readinessProbe": probe(
            health["path"], periodSeconds=period, timeoutSeconds=patience, failureThreshold=3
        ),
        # An engine under load may answer late; only one that is silent for long is killed.
        "livenessProbe": probe(
            health["path"],
            periodSeconds=max(10, period),
            timeoutSeconds=max(10, patience),
            failureThreshold=6,
        ),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_LEAVE)]}}},
    }
    spec: Object = {
        "terminationGracePeriodSeconds": round(deployment["stop_timeout"]) + _LEAVE,
        "containers": [container],
        "volumes": [*volumes, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if deployment["after"]:
        spec["initContainers"] = [_wait(deployment, settings)]
    runtime = settings.get("runtime_class")
    if runtime and deployment["gpus"]:
        spec["runtimeClassName"] = runtime
    return pod(settings, deployment["user"], **spec)


def _wait(deployment: Mapping[str, Any], settings: Mapping[str, Any]) -> Object:
    """Wait for those that share the GPU and come first: also after a reboot, when nobody else keeps the order."""
    health = deployment["health"]["path"]
    urls = [f"http://{name}:{ENGINE_PORT}{health}" for name in deployment["after"]]
    return {
        "name": "after-those-before",
        "image": settings["gateway_image"],
        "imagePullPolicy": settings["image_pull_policy"],
        "command": ["python", "-m", "roundhouse_gateway.until_ready", *urls],
        "securityContext": container_security(
            readOnlyRootFilesystem=True, runAsNonRoot=True, runAsUser=GATEWAY_USER
        ),
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
    }


def _environment(deployment: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Object]:
    env: list[Object] = []
    if deployment["gpu_ids"]:
        # The pod's own words come after the device plugin's, and NVIDIA's runtime goes by the last.
        env.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": ",".join(deployment["gpu_ids"])})
    if settings.get("claim"):
        env.append({"name": "HF_HOME", "value": f"{CLAIM_FOLDER}/huggingface"})
    if settings.get("token_secret"):
        # Where there is none, engines load what needs none.
        reference = {"name": settings["token_secret"], "key": "token", "optional": True}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    if deployment["key_env"]:
        reference = {"name": ENGINE_KEYS, "key": deployment["name"]}
        env.append({"name": deployment["key_env"], "valueFrom": {"secretKeyRef": reference}})
    return env + [{"name": name, "value": str(value)} for name, value in deployment["env"].items()]


def _resources(deployment: Mapping[str, Any]) -> Object:
    resources: Object = {key: dict(value) for key, value in deployment["resources"].items()}
    if deployment["gpus"]:
        resources.setdefault("limits", {})["nvidia.com/gpu"] = str(deployment["gpus"])
    return resources


def _weights(
    deployment: Mapping[str, Any], weights: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Object, Object, str]:
    """The volume with the weights, its mount, and their path in the pod."""
    volume: Object
    mount: Object = {"name": "weights", "mountPath": CLAIM_FOLDER}
    if settings.get("claim"):
        volume = {"name": "weights", "persistentVolumeClaim": {"claimName": settings["claim"]}}
        return volume, mount, deployment["weights"].get("path") or ""
    host, node = _folder(weights["path"], settings["folders"])
    volume = {"name": "weights", "hostPath": {"path": node, "type": "Directory"}}
    mount |= {"readOnly": True}
    return volume, mount, posixpath.join(CLAIM_FOLDER, posixpath.relpath(weights["path"], host))


def _kept(deployment: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[list[Object], list[Object]]:
    """Volumes and mounts for what the engine compiles: it is kept beside the weights, and used again."""
    mount = {"mountPath": deployment["cache"]}
    if settings.get("claim"):
        return [], [{"name": "weights", "subPath": f"compiled/{deployment['name']}", **mount}]
    path = posixpath.join(next(iter(settings["folders"].values())), "compiled", deployment["name"])
    volume = {"name": "compiled", "hostPath": {"path": path, "type": "Directory"}}
    return [volume], [{"name": "compiled", **mount}]


def _folder(path: str, folders: Mapping[str, str]) -> tuple[str, str]:
    """The host folder that a path is in, and where nodes see it. Raises ValueError if they do not."""
    for host, node in folders.items():
        if posixpath.commonpath([host, path]) == posixpath.normpath(host):
            return host, node
    raise ValueError(
        f"{path} is in no folder that the cluster's node sees ({', '.join(folders)}): "
        "add its folder to k3d_cluster_folders, and recreate the cluster with -e k3d_cluster_recreate=true."
    )
