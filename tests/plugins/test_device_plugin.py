"""The device plugin: its objects for every stack, and what is made of what the API and its log say."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.roundhouse.llm.plugins.filter import device_plugin
from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, gpu_nodes, job
from ansible_collections.roundhouse.llm.plugins.module_utils.rollouts import Problem, Waiting
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.resolve import resolve
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster import objects
from ansible_collections.roundhouse.llm.plugins.plugin_utils.cluster.device_plugin_objects import (
    CONFIG,
    PLUGIN,
    device_plugin_objects,
    gpus_wanted,
    plugin_config,
    pods_per_gpu,
)

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "roles/k3d_cluster/files/node/Dockerfile").read_text()

Thing = dict[str, Any]

SETTINGS: Thing = {
    "namespace": "kube-system",
    "image": "nvcr.io/nvidia/k8s-device-plugin:v0.17.4",
    "image_pull_policy": "IfNotPresent",
    "image_pull_secrets": [],
    "runtime_class": "nvidia",
    "node_selector": {},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}


def user(name: str = "a", gpus: int = 1, replicas: int = 1, **more: Any) -> Thing:
    """A deployment as the catalog resolves it; `sharers`: how many pods share its GPU."""
    more.setdefault("gpu_sharers", more.pop("sharers", replicas))
    return {"name": name, "gpus": gpus, "replicas": replicas, "gpu_ids": [], **more}


class TestObjects:
    @pytest.fixture(params=["multi-models", "multi-engines"])
    def stack(
        self, request: pytest.FixtureRequest, engines: Thing, shipped_stacks: dict[str, Thing]
    ) -> list[Thing]:
        resolved = resolve(shipped_stacks["k3d"], request.param, "k3d", engines)
        assert resolved["problems"] == []
        deployments: list[Thing] = resolved["deployments"]
        return deployments

    @pytest.mark.parametrize("version", ["1.28", "1.34"])
    @pytest.mark.parametrize("changes", [{}, {"runtime_class": "", "node_selector": {"gpu": "yes"}}])
    def test_kubernetes_takes_them(self, stack: list[Thing], changes: Thing, version: str) -> None:
        for found in device_plugin_objects(stack, SETTINGS | changes):
            kubernetes_validate.validate(found, version, strict=True)
            assert found["metadata"]["namespace"] == "kube-system"
            assert found["metadata"]["labels"].items() >= objects.OURS.items()
            assert found["metadata"]["labels"]["app.kubernetes.io/component"] == "device-plugin"

    def test_both_stacks_share_one_gpu(self, stack: list[Thing]) -> None:
        config = yaml.safe_load(device_plugin_objects(stack, SETTINGS)[0]["data"]["config.yaml"])
        assert config["version"] == "v1"
        assert config["flags"]["failOnInitError"] is True
        assert config["sharing"]["timeSlicing"] == {
            "renameByDefault": False,
            "failRequestsGreaterThanOne": True,
            "resources": [{"name": "nvidia.com/gpu", "replicas": 2}],
        }
        assert gpus_wanted(stack) == 2

    def test_its_pod(self) -> None:
        _, plugin = device_plugin_objects([user()], SETTINGS)
        template = plugin["spec"]["template"]
        spec = template["spec"]
        assert spec["runtimeClassName"] == "nvidia"
        assert spec["tolerations"] == SETTINGS["tolerations"]
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        assert container["image"] == SETTINGS["image"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [volume.get("hostPath", {}).get("path") for volume in spec["volumes"]] == [
            None,
            "/var/lib/kubelet/device-plugins",
        ]
        assert template["metadata"]["labels"].items() >= plugin["spec"]["selector"]["matchLabels"].items()

    def test_another_configuration_makes_another_pod(self) -> None:
        def stamp(*deployments: Thing) -> str:
            template = device_plugin_objects(deployments, SETTINGS)[1]["spec"]["template"]
            return str(template["metadata"]["annotations"][CONFIG])

        assert stamp(user(replicas=2)) == stamp(user("a", sharers=2), user("b", sharers=2))
        assert stamp(user()) != stamp(user(replicas=2)) != stamp(user(replicas=3))

    @pytest.mark.parametrize(
        ("deployments", "shared", "wanted"),
        [
            ([], 0, 0),
            ([user(gpus=0, replicas=3)], 0, 0),
            ([user()], 1, 1),
            ([user(replicas=2, sharers=3), user("b", sharers=3), user("cpu", gpus=0, sharers=0)], 3, 3),
            ([user(gpus=2)], 1, 2),
            ([user(gpus=2), user("b")], 1, 3),
            ([user(sharers=2), user("b", sharers=2), user("c")], 2, 3),
            ([user(replicas=2, sharers=1)], 1, 2),
        ],
    )
    def test_how_many_share_a_gpu(self, deployments: list[Thing], shared: int, wanted: int) -> None:
        assert pods_per_gpu(deployments) == shared
        assert gpus_wanted(deployments) == wanted
        assert ("sharing" in plugin_config(deployments)) == (shared > 1)

    def test_a_shared_gpu_and_several_at_once(self) -> None:
        given = [user("big", gpus=2), user("b", sharers=2), user("c", sharers=2)]
        with pytest.raises(AnsibleFilterError, match=r"^big wants several GPUs .* stacks of their own"):
            device_plugin.FilterModule().filters()["device_plugin_objects"](given, SETTINGS)

    def test_pods_that_are_told_their_gpus_may_ask_for_several(self) -> None:
        placed = [user("big", gpus=2, gpu_ids=["GPU-0", "GPU-1"]), user("b", sharers=2, gpu_ids=["GPU-2"])]
        sharing = plugin_config(placed)["sharing"]["timeSlicing"]
        assert sharing["failRequestsGreaterThanOne"] is False
        assert (
            plugin_config([user(replicas=2)])["sharing"]["timeSlicing"]["failRequestsGreaterThanOne"] is True
        )


class TestNodeImage:
    def test_any_builder_takes_it(self) -> None:
        assert not DOCKERFILE.startswith("# syntax")
        assert "--exclude" not in DOCKERFILE
        assert "--mount" not in DOCKERFILE

    def test_packages_are_installed_before_k3s_replaces_their_tools(self) -> None:
        assert DOCKERFILE.index("apt-get install") < DOCKERFILE.index("COPY --from=k3s")

    def test_every_argument_is_given(self) -> None:
        tasks = yaml.safe_load((ROOT / "roles/k3d_cluster/tasks/node_image.yml").read_text())
        build = next(task["block"][0] for task in tasks if "block" in task)
        given = set(build["roundhouse.llm.image_built"]["arguments"])
        assert given == set(re.findall(r"^ARG (\w+)$", DOCKERFILE, re.MULTILINE))


def node(name: str = "n", gpus: int = 2, ready: str = "True", **spec: Any) -> Thing:
    allocatable = {"cpu": "2", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    conditions = [{"type": "Ready", "status": ready}]
    return {
        "metadata": {"name": name},
        "spec": spec,
        "status": {"allocatable": allocatable, "conditions": conditions},
    }


def daemon_set(**status: Any) -> Thing:
    counts = {"observedGeneration": 2, "desiredNumberScheduled": 1, "updatedNumberScheduled": 1}
    return {
        "metadata": {"name": PLUGIN, "uid": "d", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app.kubernetes.io/instance": PLUGIN}}},
        "status": counts | status,
    }


RUNS: Thing = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def pod(state: Thing = RUNS, *, ready: bool = True, **more: Any) -> Thing:
    image = str(SETTINGS["image"])
    status = {"name": "plugin", "ready": ready, "restartCount": 0, "state": state, **more}
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "True" if ready else "False"},
    ]
    return {
        "metadata": {"name": "p", "uid": "p", "namespace": "kube-system"},
        "spec": {"nodeName": "n", "containers": [{"name": "plugin", "image": image}]},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]},
    }


def waits(reason: str, message: str = "") -> Thing:
    return {"waiting": {"reason": reason, "message": message}}


def event(uid: str, reason: str, message: str) -> Thing:
    return {"involvedObject": {"uid": uid}, "reason": reason, "message": message}


REGISTERED = "I1125 main.go:1] Registered device plugin for 'nvidia.com/gpu' with Kubelet"


def view(
    *pods: Thing,
    nodes: Sequence[Thing] = (),
    log: Sequence[str] = (REGISTERED,),
    events: Sequence[Thing] = (),
    **status: Any,
) -> gpu_nodes.View:
    return gpu_nodes.View(nodes or [node()], daemon_set(**status), pods, events, {"p": log})


def judged(*views: gpu_nodes.View, wanted: int = 2, step: float = 40.0) -> gpu_nodes.Verdict:
    """What is said of the last of several looks."""
    watch = gpu_nodes.Watch(wanted)
    verdicts = [watch.judge(found, index * step) for index, found in enumerate(views)]
    return verdicts[-1]


class TestOffered:
    def test_only_of_nodes_that_take_pods(self) -> None:
        found = [node("a"), node("b", gpus=0), node("c", ready="False"), node("d", unschedulable=True)]
        assert gpu_nodes.offered(found) == {"a": 2}

    def test_other_names(self) -> None:
        shared = node(gpus=0)
        shared["status"]["allocatable"]["nvidia.com/gpu.shared"] = "4"
        assert gpu_nodes.other_names([node(), shared]) == ["nvidia.com/gpu.shared"]


class TestWatch:
    def test_enough(self) -> None:
        assert judged(view(pod())) == {"n": 2}

    def test_two_nodes_together(self) -> None:
        assert judged(view(pod(), nodes=[node("a", 1), node("b", 1)])) == {"a": 1, "b": 1}

    def test_the_number_of_before_does_not_count(self) -> None:
        assert isinstance(judged(view(pod(), observedGeneration=1)), Waiting)
        assert isinstance(judged(view(pod(), updatedNumberScheduled=0)), Waiting)
        assert isinstance(judged(view(pod(), log=[])), Waiting)
        ending = pod()
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        assert isinstance(judged(view(ending)), Waiting)

    def test_a_log_that_says_nothing(self) -> None:
        assert judged(view(pod(), log=[]), view(pod(), log=[])) == {"n": 2}

    @pytest.mark.parametrize(
        ("found", "words"),
        [
            (view(observedGeneration=1), "takes note of the change"),
            (view(desiredNumberScheduled=0), "waiting for a node"),
            (view(), "waiting for its pod"),
            (view(pod(waits("ContainerCreating"), ready=False)), "starting the container"),
            (view(pod(), log=[]), "looks for GPUs"),
            (view(pod(), nodes=[node(gpus=1)]), "offer 1 nvidia.com/gpu so far, and 2 are wanted"),
        ],
    )
    def test_what_it_is_doing(self, found: gpu_nodes.View, words: str) -> None:
        verdict = judged(found)
        assert isinstance(verdict, Waiting)
        assert words in verdict.words

    def test_the_image_is_being_pulled(self) -> None:
        pulling = event("p", "Pulling", "Pulling image")
        pulling["involvedObject"]["fieldPath"] = "spec.containers{plugin}"
        verdict = judged(view(pod(waits("ContainerCreating"), ready=False), events=[pulling]))
        assert isinstance(verdict, Waiting)
        assert verdict.words == f"pulling image {SETTINGS['image']}"

    CRASHED = waits("CrashLoopBackOff")

    @pytest.mark.parametrize(
        ("found", "what", "remedy"),
        [
            (
                view(events=[event("d", "FailedCreate", 'pod rejected: RuntimeClass "nvidia" not found')]),
                "refuses to make it",
                "device_plugin_runtime_class",
            ),
            (
                view(
                    pod(waits("ContainerCreating"), ready=False),
                    events=[event("p", "FailedCreatePodSandBox", 'no runtime for "nvidia" is configured')],
                ),
                "can't start its pod p on node n",
                "made without GPUs",
            ),
            (
                view(pod(waits("ImagePullBackOff", "no such host"), ready=False)),
                "has no image nvcr.io",
                "roundhouse_device_plugin",
            ),
            (
                view(pod(waits("RunContainerError", "load library failed: libnvidia-ml.so.1"), ready=False)),
                "can't start container plugin",
                "made without --gpus",
            ),
            (
                view(
                    pod(
                        {
                            "terminated": {
                                "exitCode": 128,
                                "reason": "StartError",
                                "message": "unresolvable CDI devices runtime.nvidia.com/gpu=all",
                            }
                        },
                        ready=False,
                    )
                ),
                "could not be started",
                "made without --gpus",
            ),
            (
                view(
                    pod(CRASHED, ready=False),
                    log=[
                        "failed to initialize NVML: ERROR_LIBRARY_NOT_FOUND",
                        "did you configure the NVIDIA Container Toolkit?",
                    ],
                ),
                "ends again and again",
                "runs without NVIDIA's runtime",
            ),
            (
                view(
                    pod(CRASHED, ready=False),
                    log=["failed to initialize NVML: Driver/library version mismatch"],
                ),
                "ends again and again",
                "reboot",
            ),
            (
                view(
                    pod(CRASHED, ready=False), log=["unable to load config: number of replicas must be >= 2"]
                ),
                "ends again and again",
                "roundhouse_device_plugin",
            ),
            (
                view(
                    pod(),
                    nodes=[node(gpus=1)],
                    log=[REGISTERED, "XidCriticalError: Xid=79 on Device=GPU-1::1; marking it."],
                ),
                "takes GPU GPU-1 for broken (Xid 79), so the nodes offer 1",
                "delete the plugin's pod p",
            ),
            (
                view(pod(), nodes=[node(gpus=0)]),
                "offer 0 nvidia.com/gpu where the pods of the stack want 2",
                "nvidia-smi -L",
            ),
            (view(desiredNumberScheduled=0), "fits on no node", "device_plugin_node_selector"),
        ],
    )
    def test_why_there_are_none(self, found: gpu_nodes.View, what: str, remedy: str) -> None:
        verdict = judged(found, found, found)
        assert isinstance(verdict, Problem)
        assert what in verdict.what
        assert remedy in verdict.remedy

    def test_no_place_for_its_pod(self) -> None:
        late = pod({}, ready=False)
        late["status"]["conditions"][0] = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Too many pods.",
        }
        verdict = judged(view(late), view(late))
        assert isinstance(verdict, Problem)
        assert "Too many pods" in verdict.what

    def test_restarts_of_before_are_no_news(self) -> None:
        last = {"terminated": {"exitCode": 255, "reason": "Error"}}
        before = pod(restartCount=3, lastState=last)
        assert judged(view(before)) == {"n": 2}
        again = copy.deepcopy(before)
        again["status"]["containerStatuses"][0]["restartCount"] = 4
        few = [node(gpus=0)]
        assert isinstance(judged(view(before, nodes=few), view(again, nodes=few), step=1.0), Problem)


class FakeCluster:
    """What gpu_nodes asks of a cluster."""

    address = "https://127.0.0.1:6550"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: gpu_nodes.View | None, **answers: Any) -> None:
        self.found = found
        self.deleted: list[str] = []
        self._nodes = answers.get("nodes", found.nodes if found else None)
        monkeypatch.setattr(time, "sleep", lambda _: None)

    def nodes(self) -> Any:
        return self._nodes

    def daemon_set(self, name: str) -> Any:
        assert name == PLUGIN
        return self.found.daemon_set if self.found else None

    def pods(self, selector: str) -> list[Thing]:
        assert selector == f"app.kubernetes.io/instance={PLUGIN}"
        return [dict(one) for one in self.found.pods] if self.found else []

    def events(self, uid: str) -> list[Thing]:
        found = self.found.events if self.found else []
        return [dict(one) for one in found if one["involvedObject"]["uid"] == uid]

    def log(self, name: str, container: str, lines: int, previous: bool = False) -> list[str]:
        assert container == "plugin"
        return [] if previous or not self.found else list(self.found.logs[name])

    def delete(self, kind: str, name: str) -> None:
        self.deleted.append(f"{kind} {name}")


ACCESS = cluster_api.Access("/k", "c", "kube-system")


class TestWait:
    def run(self, cluster: Any, timeout: float = 0.0) -> Thing:
        return gpu_nodes.Wait(ACCESS, PLUGIN, 2, timeout).run(cluster, job.Progress())

    def test_what_it_returns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.run(FakeCluster(monkeypatch, view(pod())))["gpus"] == {"n": 2}

    def test_a_failure_shows_the_log_and_the_next_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        crashed = pod({"terminated": {"exitCode": 1, "reason": "Error"}}, ready=False)
        log = ["failed to initialize NVML: ERROR_LIBRARY_NOT_FOUND"]
        with pytest.raises(job.JobError) as caught:
            self.run(FakeCluster(monkeypatch, view(crashed, log=log)))
        text = str(caught.value)
        assert text.startswith(
            "DaemonSet nvidia-device-plugin (namespace kube-system, context c) does not stay up: container plugin of "
            "pod p ended with exit code 1.\n"
        )
        assert f"\n  {log[0]}\n" in text
        assert "What to do: The plugin runs without NVIDIA's runtime" in text
        assert "kubectl --kubeconfig /k --context c --namespace kube-system logs p --container plugin" in text

    def test_what_waits_for_another_try_is_tried_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = FakeCluster(monkeypatch, view(pod(TestWatch.CRASHED, ready=False)))
        with pytest.raises(job.JobError):
            self.run(cluster)
        assert cluster.deleted == ["Pod p"]

    def test_too_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(
            job.JobError, match=r"is not ready within 0 s\. It was still: waiting for its pod"
        ):
            self.run(FakeCluster(monkeypatch, view()))

    def test_no_such_plugin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(job.JobError, match="There is no DaemonSet nvidia-device-plugin"):
            self.run(FakeCluster(monkeypatch, None))


class TestLookOnce:
    def look(self, monkeypatch: pytest.MonkeyPatch, nodes: list[Thing] | None) -> Thing:
        cluster: Any = FakeCluster(monkeypatch, None, nodes=nodes)
        return gpu_nodes.look_once(ACCESS, cluster, 2)

    def test_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.look(monkeypatch, [node()]) == {"gpus": {"n": 2}}

    def test_fewer_are_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.look(monkeypatch, [node(gpus=1)])
        assert "offer 1 nvidia.com/gpu, and the pods of the stack ask for 2" in found["warnings"][0]

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(
            job.JobError, match=r"^No node of context c offers .*device_plugin_install=true"
        ) as caught:
            self.look(monkeypatch, [node(gpus=0)])
        assert "\n" not in str(caught.value)

    def test_nodes_that_may_not_be_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.look(monkeypatch, None)
        assert found["gpus"] == {}
        assert "may not see the nodes" in found["warnings"][0]


def test_objects_are_plain_data() -> None:
    json.dumps(device_plugin_objects([user()], SETTINGS))
