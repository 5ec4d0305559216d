"""What all our objects in a cluster have in common: names, labels, and the ways pods are set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The port that every engine listens on, as its Service does.
ENGINE_PORT = 8000

#: The port that the gateway listens on, as its Service does.
GATEWAY_PORT = 8080

GATEWAY = "gateway"

#: The user that the gateway's image runs as, as gateway/Dockerfile has it.
GATEWAY_USER = 10001

#: What marks an object as ours, and so as one that may be changed and deleted.
OURS = {"app.kubernetes.io/part-of": "roundhouse", "app.kubernetes.io/managed-by": "roundhouse"}

#: Annotations of our own: what a Deployment serves, its place in the start order, its replicas while it is stopped.
MODEL, OWNED_BY, ORDER, REPLICAS, REVISION, ACCESS = (
    f"roundhouse.llm/{name}" for name in ("model", "owned-by", "order", "replicas", "revision", "access")
)

#: Annotation of pods: marks of the keys that they were started with. A change of a key makes new pods.
KEY_MARKS = "roundhouse.llm/engine-keys"

#: The Secret with the keys that engines want: an entry per deployment.
ENGINE_KEYS = "engine-keys"

Object = dict[str, Any]


def labels(instance: str, component: str, application: str) -> dict[str, str]:
    """The labels of everything that belongs to one deployment, or to the gateway."""
    return {
        "app.kubernetes.io/name": application,
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        **OURS,
    }


def selector(instance: str) -> dict[str, str]:
    """The labels by which its pods are found; they can't be changed later."""
    return {"app.kubernetes.io/instance": instance, "app.kubernetes.io/part-of": "roundhouse"}


def metadata(
    name: str,
    settings: Mapping[str, Any],
    of: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """The metadata of an object in our namespace."""
    found: Object = {"name": name, "namespace": settings["namespace"], "labels": dict(of)}
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def service(
    name: str, settings: Mapping[str, Any], of: Mapping[str, str], port: int, *, headless: bool = False
) -> Object:
    """A Service in front of the pods of `of`."""
    spec: Object = {
        "selector": selector(of["app.kubernetes.io/instance"]),
        "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
    }
    spec |= {"clusterIP": "None"} if headless else {"type": "ClusterIP"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(name, settings, of), "spec": spec}


def container_security(**changes: Any) -> Object:
    """The least that a container of ours needs."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, **changes}


def pod(settings: Mapping[str, Any], user: int | None, **spec: Any) -> Object:
    """A pod's spec: what `spec` says, on top of what all of ours have."""
    security: Object = {"seccompProfile": {"type": "RuntimeDefault"}}
    if user is not None:
        security |= {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    found: Object = {
        # Nothing of ours talks to the cluster.
        "automountServiceAccountToken": False,
        # Else each Service becomes variables such as VLLM_PORT, which engines take for settings of theirs.
        "enableServiceLinks": False,
        "securityContext": security,
        **spec,
    }
    optional = {
        "imagePullSecrets": [{"name": name} for name in settings.get("image_pull_secrets") or []],
        "nodeSelector": settings.get("node_selector"),
        "tolerations": settings.get("tolerations"),
    }
    return found | {key: value for key, value in optional.items() if value}


def probe(path: str, **timing: int) -> Object:
    """An HTTP probe of the container's port."""
    return {"httpGet": {"path": path, "port": "http"}, **timing}
