"""The Kubernetes objects of NVIDIA's device plugin, and how many GPUs a stack wants it to offer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.objects import (
    Object,
    container_security,
    labels,
    metadata,
    pod,
    selector,
)

#: Name of the DaemonSet, of its ConfigMap, and of its pods' instance.
PLUGIN = "nvidia-device-plugin"

#: The resource by which pods ask for a GPU.
GPU = "nvidia.com/gpu"

#: Annotation of the pods: the hash of the configuration, for the plugin reads it once.
CONFIG = "roundhouse.llm/config"

_FILE, _FOLDER = "config.yaml", "/etc/nvidia-device-plugin"

#: Where the kubelet listens for device plugins.
_KUBELET = "/var/lib/kubelet/device-plugins"


def gpus_wanted(deployments: Sequence[Mapping[str, Any]]) -> int:
    """How many GPUs, or shares of GPUs, all pods of the resolved catalog's deployments ask for."""
    return sum(d["gpus"] * d["replicas"] for d in deployments)


def pods_per_gpu(deployments: Sequence[Mapping[str, Any]]) -> int:
    """How many pods share the GPU that most pods share; 0 if none has a GPU. Raises ValueError."""
    users = [d for d in deployments if d["gpus"] > 0]
    most = max((int(d["gpu_sharers"]) for d in users), default=0)
    several = [d["name"] for d in users if d["gpus"] > 1]
    if several and most > 1 and not _are_placed(users):
        raise ValueError(
            f"{', '.join(several)} wants several GPUs (gpus), and other deployments share one. A shared GPU "
            "is not given out together with another: serve them as stacks of their own, or with gpus: 1."
        )
    return most


def _are_placed(deployments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the catalog tells each pod its GPUs, so that what the plugin chooses does not matter."""
    return all(d["gpu_ids"] for d in deployments if d["gpus"] > 0)


def plugin_config(deployments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plugin's configuration: time slicing if pods share a GPU. Raises ValueError."""
    found: dict[str, Any] = {
        "version": "v1",
        # A plugin that finds no GPU is to fail, and not to wait for ever.
        "flags": {"migStrategy": "none", "failOnInitError": True},
    }
    replicas = pods_per_gpu(deployments)
    if replicas > 1:
        found["sharing"] = {
            "timeSlicing": {
                "renameByDefault": False,
                # Two shares may be of the same GPU: they are no more than one, unless the pod is told which it gets.
                "failRequestsGreaterThanOne": not _are_placed(deployments),
                "resources": [{"name": GPU, "replicas": replicas}],
            }
        }
    return found


def device_plugin_objects(
    deployments: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[Object]:
    """ConfigMap and DaemonSet for a resolved catalog's deployments. Raises ValueError.

    `settings`: `namespace`, `image`, `image_pull_policy`, `runtime_class` (empty: the nodes' default), and
    `image_pull_secrets`, `node_selector`, `tolerations`.
    """
    # JSON is YAML, and the same for the same settings.
    text = json.dumps(plugin_config(deployments), indent=2, sort_keys=True) + "\n"
    of = labels(PLUGIN, "device-plugin", PLUGIN)
    config: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(PLUGIN, settings, of),
        "data": {_FILE: text},
    }
    template = {
        "metadata": {
            "labels": dict(of),
            "annotations": {CONFIG: hashlib.sha256(text.encode()).hexdigest()[:12]},
        },
        "spec": _pod(settings),
    }
    plugin: Object = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata(PLUGIN, settings, of),
        "spec": {
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": selector(PLUGIN)},
            "template": template,
        },
    }
    return [config, plugin]


def _pod(settings: Mapping[str, Any]) -> Object:
    container: Object = {
        "name": "plugin",
        "image": settings["image"],
        "imagePullPolicy": settings["image_pull_policy"],
        "env": [{"name": "CONFIG_FILE", "value": f"{_FOLDER}/{_FILE}"}],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "config", "mountPath": _FOLDER, "readOnly": True},
            {"name": "kubelet", "mountPath": _KUBELET},
        ],
    }
    spec: Object = {
        # Without it no engine starts: it is not to be put out for one.
        "priorityClassName": "system-node-critical",
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": PLUGIN}},
            {"name": "kubelet", "hostPath": {"path": _KUBELET, "type": "Directory"}},
        ],
    }
    if settings.get("runtime_class"):
        spec["runtimeClassName"] = settings["runtime_class"]
    # Root, without capabilities: the folder belongs to root.
    return pod(settings, None, **spec)
