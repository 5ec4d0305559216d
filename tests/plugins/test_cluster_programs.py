"""The life cycle in a cluster: what is ours, in which state, and what is done in which order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    cluster_api,
    cluster_changes,
    cluster_programs,
    job,
    rollout_wait,
)
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster import objects

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
Thing = dict[str, Any]


def deployment(name: str, order: int, replicas: int = 1, **annotations: str) -> Thing:
    component = "gateway" if name == "gateway" else "engine"
    kept = {objects.ORDER: str(order), objects.MODEL: f"org/{name}", objects.OWNED_BY: "vllm"} | annotations
    container = {"name": component, "ports": [{"containerPort": 8000}]}
    return {
        "metadata": {
            "name": name,
            "labels": objects.labels(name, component, "vllm"),
            "annotations": kept,
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": objects.selector(name)},
            "template": {"spec": {"containers": [container]}},
        },
    }


def pod(name: str, *, ready: bool = True, reason: str = "", restarts: int = 0) -> Thing:
    state = {"waiting": {"reason": reason}} if reason else {"running": {"startedAt": "2026-01-01T11:00:00Z"}}
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "engine"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"name": "engine", "state": state, "restartCount": restarts}],
        },
    }


class TestDescribe:
    def test_running(self) -> None:
        seen = cluster_programs.describe(deployment("a", 0, 2), [pod("a-1"), pod("a-2", restarts=3)], NOW)
        assert (seen["state"], seen["ready"], seen["restarts"], seen["uptime"]) == ("running", "2/2", 3, 3600)
        assert (seen["labels"]["model"], seen["labels"]["owned_by"]) == ("org/a", "vllm")

    @pytest.mark.parametrize(
        ("replicas", "pods", "state"),
        [
            (1, [pod("a", ready=False)], "starting"),
            (1, [], "starting"),
            (2, [pod("a"), pod("b", ready=False)], "starting"),
            (1, [pod("a", ready=False, reason="ContainerCreating")], "starting"),
            (1, [pod("a", ready=False, reason="CrashLoopBackOff")], "failing (CrashLoopBackOff)"),
            (0, [], "stopped"),
            (0, [pod("a")], "stopping"),
        ],
    )
    def test_states(self, replicas: int, pods: list[Thing], state: str) -> None:
        assert cluster_programs.describe(deployment("a", 0, replicas), pods, NOW)["state"] == state


class TestChosen:
    def test_in_order(self) -> None:
        found = [deployment("gateway", 1000), deployment("b", 1), deployment("a", 2)]
        names = [d["metadata"]["name"] for d in cluster_programs.chosen(found, "", "here")]
        assert names == ["b", "a", "gateway"]

    def test_nothing(self) -> None:
        with pytest.raises(job.JobError, match="Nothing is deployed in here: serve a stack first"):
            cluster_programs.chosen([], "", "here")

    def test_another(self) -> None:
        with pytest.raises(job.JobError, match=r"There is no program 'c'\. There are: a, b\."):
            cluster_programs.chosen([deployment("a", 0), deployment("b", 1)], "c", "here")


class FakeCluster:
    """A cluster that keeps what it is told. Pods are there as long as their Deployment wants some."""

    def __init__(self, *deployments: Thing, foreign: bool = False, ours: bool = True) -> None:
        self.kept = {d["metadata"]["name"]: d for d in deployments}
        self.done: list[str] = []
        self._foreign = foreign
        self._ours = ours

    def deployments(self, _selector: str = "") -> list[Thing]:
        return list(self.kept.values())

    def pods(self, selector: str = "") -> list[Thing]:
        found = [name for name, d in self.kept.items() if d["spec"]["replicas"]]
        return [pod(name) for name in found if f"instance={name}," in f"{selector},"]

    def things(self, kind: str, selector: str) -> list[Thing]:
        found = list(self.kept.values()) if kind in ("Deployment", "Service") else []
        if not selector and self._foreign and kind == "Pod":
            found = [pod("somebody-elses")]
        if selector and "component=engine" in selector:
            found = [d for d in found if d["metadata"]["name"] != "gateway"]
        return [*found]

    def patch_deployment(self, name: str, patch: Thing) -> None:
        if "replicas" in patch["spec"]:
            self.done.append(f"{name} {patch['spec']['replicas']}")
            self.kept[name]["spec"]["replicas"] = patch["spec"]["replicas"]
            self.kept[name]["metadata"]["annotations"] |= patch["metadata"]["annotations"]
        else:
            self.done.append(f"{name} anew")

    def delete(self, kind: str, name: str) -> None:
        self.done.append(f"delete {kind} {name}")
        if kind == "Service":
            del self.kept[name]
        elif kind == "Deployment":
            self.kept[name]["spec"]["replicas"] = 0
        elif kind == "Namespace":
            self._ours = False

    def is_namespace(self, _selector: str) -> bool:
        return self._ours


class TestChanges:
    @pytest.fixture(autouse=True)
    def waited(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        waited: list[str] = []

        def run(self: rollout_wait.Wait, cluster: Any, _progress: Any) -> Thing:
            waited.append(self.name)
            cluster.done.append(f"{self.name} ready")
            return {}

        monkeypatch.setattr(rollout_wait.Wait, "run", run)
        return waited

    def changes(self, cluster: FakeCluster, *, dry: bool = False) -> cluster_changes.Changes:
        access = cluster_api.Access("/config", "ctx", "ns")
        return cluster_changes.Changes(cluster, access, 60, job.Progress(), dry=dry)  # type: ignore[arg-type]  # a stand-in

    def test_stop_and_start(self) -> None:
        cluster = FakeCluster(deployment("a", 0, 3), deployment("b", 1), deployment("gateway", 1000, 2))
        assert self.changes(cluster).stop("") == ["gateway", "b", "a"]
        assert cluster.done == ["gateway 0", "b 0", "a 0"]
        cluster.done.clear()
        assert self.changes(cluster).stop("") == []
        assert self.changes(cluster).start("", anew=False) == ["a", "b", "gateway"]
        assert cluster.done == ["a 3", "a ready", "b 1", "b ready", "gateway 2", "gateway ready"]

    def test_what_runs_is_not_started_and_yet_awaited(self, waited: list[str]) -> None:
        cluster = FakeCluster(deployment("a", 0), deployment("b", 1, 0))
        assert self.changes(cluster).start("", anew=False) == ["b"]
        assert waited == ["a", "b"]

    def test_restart_of_one(self) -> None:
        cluster = FakeCluster(deployment("a", 0), deployment("b", 1))
        assert self.changes(cluster).start("b", anew=True) == ["b"]
        assert cluster.done == ["b anew", "b ready"]

    def test_check_mode(self, waited: list[str]) -> None:
        cluster = FakeCluster(deployment("a", 0), deployment("gateway", 1000))
        changes = self.changes(cluster, dry=True)
        assert changes.stop("") == ["gateway", "a"]
        assert changes.start("", anew=True) == ["a", "gateway"]
        assert changes.prune("engine", []) == ["Deployment a", "Service a"]
        assert "Deployment gateway" in changes.remove(purge=True)
        assert (cluster.done, waited) == ([], [])

    def test_prune_keeps_the_gateway_and_what_is_to_stay(self) -> None:
        cluster = FakeCluster(deployment("a", 0), deployment("b", 1), deployment("gateway", 1000))
        assert self.changes(cluster).prune("engine", ["Deployment a", "Service a"]) == [
            "Deployment b",
            "Service b",
        ]
        assert sorted(cluster.kept) == ["a", "gateway"]

    def test_remove_takes_the_namespace_if_it_is_ours(self) -> None:
        cluster = FakeCluster(deployment("a", 0))
        assert self.changes(cluster).remove(purge=True)[-1] == "Namespace ns"

    def test_remove_leaves_the_namespace_if_others_use_it(self) -> None:
        cluster = FakeCluster(deployment("a", 0), foreign=True)
        assert self.changes(cluster).remove(purge=True) == ["Deployment a", "Service a"]

    def test_remove_leaves_the_namespace_unless_all_is_to_go(self) -> None:
        cluster = FakeCluster(deployment("a", 0))
        assert self.changes(cluster).remove(purge=False) == ["Deployment a", "Service a"]

    def test_remove_leaves_a_namespace_that_we_did_not_make(self) -> None:
        cluster = FakeCluster(deployment("a", 0), ours=False)
        assert "Namespace ns" not in self.changes(cluster).remove(purge=True)


def test_annotations_are_those_that_the_objects_have() -> None:
    assert (cluster_programs.REPLICAS, cluster_programs.REVISION) == (objects.REPLICAS, objects.REVISION)
    assert (cluster_programs._MODEL, cluster_programs._OWNED_BY, cluster_programs._ORDER) == (
        objects.MODEL,
        objects.OWNED_BY,
        objects.ORDER,
    )
    assert all(f"{key}={value}" in cluster_programs.OURS for key, value in objects.OURS.items())
