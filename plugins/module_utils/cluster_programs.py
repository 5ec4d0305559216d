"""What of ours is in a cluster, as the life cycle speaks of it: programs in their order, each in a state.

Judges the API's own dicts; asks nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import rollouts
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError

Thing = Mapping[str, Any]

#: What marks an object as ours (plugin_utils/cluster/objects.py writes it, and the annotations).
OURS = "app.kubernetes.io/part-of=roundhouse,app.kubernetes.io/managed-by=roundhouse"

REPLICAS = "roundhouse.llm/replicas"
REVISION = "roundhouse.llm/revision"
ACCESS = "roundhouse.llm/access"
_MODEL, _OWNED_BY, _ORDER = "roundhouse.llm/model", "roundhouse.llm/owned-by", "roundhouse.llm/order"

#: Kubernetes' own: a change of it makes new pods.
RESTARTED = "kubectl.kubernetes.io/restartedAt"


def annotation(thing: Thing, key: str) -> str | None:
    """An annotation of an object; None if it has none of that name."""
    found: str | None = (thing["metadata"].get("annotations") or {}).get(key)
    return found


def in_order(deployments: Sequence[Thing]) -> list[Thing]:
    """Our Deployments in their start order."""

    def place(deployment: Thing) -> tuple[int, str]:
        order = annotation(deployment, _ORDER) or ""
        return (int(order) if order.isdigit() else 0, deployment["metadata"]["name"])

    return sorted(deployments, key=place)


def chosen(deployments: Sequence[Thing], only: str, where: str) -> list[Thing]:
    """Those that this is about, in their order. Raises JobError if there are none."""
    names = sorted(deployment["metadata"]["name"] for deployment in deployments)
    if not names:
        raise JobError(f"Nothing is deployed in {where}: serve a stack first, e.g. with make multi-models.")
    if only and only not in names:
        raise JobError(f"There is no program '{only}'. There are: {', '.join(names)}.")
    return [found for found in in_order(deployments) if not only or found["metadata"]["name"] == only]


def wanted_replicas(deployment: Thing) -> int:
    """How many pods it is to have when it runs: before it was stopped it had as many."""
    now = int(deployment["spec"].get("replicas", 1))
    before = annotation(deployment, REPLICAS) or ""
    return now or (int(before) if before.isdigit() else 1)


def scaled(replicas: int, before: int | None) -> dict[str, Any]:
    """A patch that sets the number of pods; `before` is what start is to bring back (None: nothing)."""
    kept = None if before is None else str(before)
    return {"metadata": {"annotations": {REPLICAS: kept}}, "spec": {"replicas": replicas}}


def restarted(now: datetime) -> dict[str, Any]:
    """A patch that makes new pods."""
    stamp = now.astimezone(UTC).isoformat(timespec="seconds")
    return {"spec": {"template": {"metadata": {"annotations": {RESTARTED: stamp}}}}}


def describe(deployment: Thing, pods: Sequence[Thing], now: datetime) -> dict[str, Any]:
    """What status tells of a Deployment and its pods."""
    labels = deployment["metadata"].get("labels") or {}
    wanted = int(deployment["spec"].get("replicas", 1))
    ready = [pod for pod in pods if rollouts.is_ready(pod) and not rollouts.is_ending(pod)]
    port = deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
    return {
        "name": deployment["metadata"]["name"],
        "labels": {
            "kind": labels.get("app.kubernetes.io/component"),
            "model": annotation(deployment, _MODEL),
            "owned_by": annotation(deployment, _OWNED_BY),
            "port": port,
        },
        "state": _state(wanted, ready, pods),
        "ready": f"{len(ready)}/{wanted}",
        "restarts": sum(_restarts(pod) for pod in pods) or None,
        "uptime": _uptime(ready, now),
        "pid": None,
        "memory": None,
        "pods": sorted(pod["metadata"]["name"] for pod in pods),
        "serving": sorted(pod["metadata"]["name"] for pod in ready),
        "note": None,
    }


def _state(wanted: int, ready: Sequence[Thing], pods: Sequence[Thing]) -> str:
    if wanted == 0:
        return "stopping" if pods else "stopped"
    if len(ready) >= wanted:
        return "running"
    reasons = [reason for pod in pods for reason in _reasons(pod)]
    return f"failing ({reasons[0]})" if reasons else "starting"


def _statuses(pod: Thing) -> list[Thing]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _reasons(pod: Thing) -> list[str]:
    """Why a pod does not get on, in Kubernetes' own words."""
    found = []
    for status in _statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            found.append(reason)
    if rollouts.is_unschedulable(pod):
        found.append("Unschedulable")
    return found


def _restarts(pod: Thing) -> int:
    return sum(int(status.get("restartCount", 0)) for status in _statuses(pod))


def _uptime(pods: Sequence[Thing], now: datetime) -> float | None:
    """Seconds since the oldest container of the pods started."""
    starts = [
        datetime.fromisoformat(status["state"]["running"]["startedAt"])
        for pod in pods
        for status in (pod["status"].get("containerStatuses") or [])
        if (status.get("state") or {}).get("running")
    ]
    return (now - min(starts)).total_seconds() if starts else None
