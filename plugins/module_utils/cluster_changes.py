"""The life cycle of what is ours in a cluster: start, restart, stop, delete; in order, and to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import (
    cluster_api,
    cluster_programs,
    job,
    rollout_wait,
    rollouts,
)

#: What may be ours in a namespace. Those with data come last, and only if that is asked for.
_KINDS = (
    "ServiceMonitor", "PodMonitor", "Ingress", "PodDisruptionBudget", "Deployment", "DaemonSet", "Service", "ConfigMap",
    "Secret",
)  # fmt: skip
_DATA = "PersistentVolumeClaim"

#: Of these, what goes when a stack or its settings no longer ask for it.
_PRUNED = ("ServiceMonitor", "PodMonitor", "Ingress", "PodDisruptionBudget", "Deployment", "Service")

#: Seconds for which the API may be silent.
_PATIENCE = 30.0

#: What every namespace has without anybody's doing.
_NOBODYS = {"kube-root-ca.crt", "default", "openshift-service-ca.crt"}

_PAUSE = 0.5


class Changes:
    """Changes to a cluster. Nothing is changed if it is a `dry` run; what would be is returned all the same."""

    def __init__(
        self,
        cluster: cluster_api.Cluster,
        access: cluster_api.Access,
        timeout: float,
        progress: job.Progress,
        *,
        dry: bool,
    ) -> None:
        self._cluster = cluster
        self._access = access
        self._timeout = timeout
        self._progress = progress
        self._dry = dry

    def start(self, only: str, *, anew: bool) -> list[str]:
        """Start (or restart) in order, each ready before the next; returns the names of those that were touched."""
        touched = []
        for deployment in self._chosen(only):
            name = deployment["metadata"]["name"]
            runs = rollouts.wanted_replicas(deployment) > 0
            if not runs:
                replicas = cluster_programs.wanted_replicas(deployment)
                self._patch(name, cluster_programs.scaled(replicas, None))
            elif anew:
                self._patch(name, cluster_programs.restarted(datetime.now(UTC)))
            if anew or not runs:
                touched.append(name)
            if not self._dry:
                wait = rollout_wait.Wait(self._access, name, self._timeout)
                wait.run(self._cluster, self._progress)
        return touched

    def stop(self, only: str) -> list[str]:
        """End the pods, the gateway's first."""
        touched = []
        for deployment in reversed(self._chosen(only)):
            name, replicas = deployment["metadata"]["name"], rollouts.wanted_replicas(deployment)
            if replicas:
                self._patch(name, cluster_programs.scaled(0, replicas))
                touched.append(name)
            self._await_end(name, rollouts.selector(deployment))
        return touched

    def prune(self, component: str, keep: Sequence[str]) -> list[str]:
        """Delete what is ours of a component (engine, gateway) and not among those that stay (`KIND NAME`)."""
        touched = []
        selector = f"{cluster_programs.OURS},app.kubernetes.io/component={component}"
        for kind in _PRUNED:
            for thing in self._cluster.things(kind, selector):
                name = thing["metadata"]["name"]
                if f"{kind} {name}" in keep:
                    continue
                self._delete(kind, name)
                touched.append(f"{kind} {name}")
                if kind == "Deployment":
                    self._await_end(name, rollouts.selector(thing))
        return touched

    def remove(self, *, purge: bool) -> list[str]:
        """Delete all that is ours; with `purge` the data, too, and the namespace if we made it and it is empty."""
        touched = []
        for kind in (*_KINDS, _DATA) if purge else _KINDS:
            for thing in self._cluster.things(kind, cluster_programs.OURS):
                name = thing["metadata"]["name"]
                self._delete(kind, name)
                touched.append(f"{kind} {name}")
        self._await_end("pods", cluster_programs.OURS)
        if purge and self._cluster.is_namespace(cluster_programs.OURS) and not self._left(touched):
            self._delete("Namespace", self._access.namespace)
            touched.append(f"Namespace {self._access.namespace}")
            self._await("the namespace", lambda: self._cluster.is_namespace(""))
        return touched

    def _left(self, deleted: Sequence[str]) -> list[str]:
        """What is in the namespace and was not just deleted, our own pods aside."""
        ours = {thing["metadata"]["name"] for thing in self._cluster.things("Pod", cluster_programs.OURS)}
        return [
            f"{kind} {name}"
            for kind in cluster_api.KINDS
            for name in (thing["metadata"]["name"] for thing in self._cluster.things(kind, ""))
            if name not in _NOBODYS
            and f"{kind} {name}" not in deleted
            and not (kind == "Pod" and name in ours)
        ]

    def _chosen(self, only: str) -> list[cluster_api.Thing]:
        where = f"namespace {self._access.namespace} of context {self._access.context}"
        found = self._cluster.deployments(cluster_programs.OURS)
        return [dict(deployment) for deployment in cluster_programs.chosen(found, only, where)]

    def _patch(self, name: str, patch: dict[str, Any]) -> None:
        if not self._dry:
            self._cluster.patch_deployment(name, patch)

    def _delete(self, kind: str, name: str) -> None:
        if not self._dry:
            self._progress.say(f"deleting {kind} {name}")
            self._cluster.delete(kind, name)

    def _await_end(self, name: str, selector: str) -> None:
        self._await(f"{name}: stopping, requests in flight may finish", lambda: self._cluster.pods(selector))

    def _await(self, words: str, remains: Callable[[], Any]) -> None:
        """Wait until nothing remains. Raises JobError."""
        if self._dry:
            return
        begun = answered = time.monotonic()
        while True:
            try:
                if not remains():
                    return
                answered = time.monotonic()
            except cluster_api.UnavailableError:
                if time.monotonic() - answered > _PATIENCE:
                    raise
            if time.monotonic() - begun > self._timeout:
                raise job.JobError(
                    f"{words}: not over after {self._timeout:.0f} s. See what holds it: kubectl "
                    f"{' '.join(self._access.options())} get pods"
                )
            self._progress.say(words)
            time.sleep(_PAUSE)
