"""How a Deployment's rollout is judged: what the API shows of it, and what is said of that."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, job, rollout_wait, rollouts
from ansible_collections.roundhouse.llm.plugins.module_utils.rollouts import (
    Done,
    Problem,
    View,
    Waiting,
    Watch,
)

Thing = dict[str, Any]

IMAGE = "vllm/vllm-openai:v0.12.0"
RUNNING: Thing = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def waits(reason: str, message: str = "") -> Thing:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, reason: str = "Error", **more: Any) -> Thing:
    return {"terminated": {"exitCode": code, "reason": reason, **more}}


def template(version: int = 1) -> Thing:
    return {
        "metadata": {"labels": {"app": "llm"}},
        "spec": {"containers": [{"name": "engine", "image": IMAGE, "args": [str(version)]}]},
    }


def deployment(replicas: int = 1, ready: int = 0, *conditions: Thing, **status: Any) -> Thing:
    counts = {
        "replicas": replicas,
        "updatedReplicas": replicas,
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
    return {
        "metadata": {"name": "llm", "uid": "d", "generation": 2},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "llm"}},
            "template": template(),
        },
        # The API leaves out what is 0.
        "status": {
            "observedGeneration": 2,
            **{key: value for key, value in counts.items() if value},
            "conditions": list(conditions),
            **status,
        },
    }


def replica_set(version: int = 1, replicas: int = 1) -> Thing:
    labelled = template(version)
    labelled["metadata"]["labels"]["pod-template-hash"] = f"h{version}"
    return {
        "metadata": {"name": f"llm-{version}", "uid": f"r{version}", "ownerReferences": [{"uid": "d"}]},
        "spec": {"replicas": replicas, "template": labelled},
    }


def pod(
    state: Thing | None = None,
    *,
    name: str = "llm-1-a",
    version: int = 1,
    ready: bool = False,
    scheduled: Thing | None = None,
    restarts: int = 0,
    last: Thing | None = None,
    init: tuple[Thing, Thing] | None = None,
    limits: Thing | None = None,
    ending: bool = False,
    **status: Any,
) -> Thing:
    whole: Thing = {
        "metadata": {"name": name, "uid": name, "ownerReferences": [{"uid": f"r{version}"}]},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "engine", "image": IMAGE, "resources": {"limits": limits or {}}}],
        },
        "status": {
            "phase": "Running",
            "conditions": [
                scheduled or {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": str(ready)},
            ],
            "containerStatuses": [
                {
                    "name": "engine",
                    "ready": ready,
                    "restartCount": restarts,
                    "state": state or RUNNING,
                    "lastState": last or {},
                    "imageID": "sha256:1",
                }
            ],
            **status,
        },
    }
    if init:
        whole["spec"]["initContainers"] = [{"name": "fetch", "image": IMAGE, **init[0]}]
        whole["status"]["initContainerStatuses"] = [{"name": "fetch", "restartCount": 0, **init[1]}]
    if ending:
        whole["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return whole


def unschedulable(message: str) -> Thing:
    return pod(
        scheduled={"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
        containerStatuses=[],
    )


def event(reason: str, message: str = "", container: str = "", about: str = "llm-1-a") -> Thing:
    path = {"fieldPath": f"spec.containers{{{container}}}"} if container else {}
    return {"reason": reason, "message": message, "involvedObject": {"uid": about, **path}}


def view(*pods: Thing, of: Thing | None = None, sets: list[Thing] | None = None, **more: Any) -> View:
    whole = of or deployment(max(len(pods), 1))
    return View(whole, sets if sets is not None else [replica_set()], pods, **more)


def judge(seen: View) -> rollouts.Verdict:
    return Watch().judge(seen, 0)


def problem(seen: View) -> Problem:
    verdict = judge(seen)
    assert isinstance(verdict, Problem), verdict
    return verdict


def said(seen: View) -> str:
    verdict = judge(seen)
    assert isinstance(verdict, Waiting), verdict
    return verdict.words


SETTLED = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


class TestDone:
    def test_all_are_there(self) -> None:
        assert judge(view(pod(ready=True), of=deployment(1, 1))) == Done([pod(ready=True)])

    def test_change_not_taken_note_of(self) -> None:
        seen = view(pod(ready=True), of=deployment(1, 1, observedGeneration=1))
        assert said(seen) == "waiting until Kubernetes takes note of the change"

    @pytest.mark.parametrize(
        "count",
        [{"updatedReplicas": 0}, {"readyReplicas": 0}, {"availableReplicas": 0}, {"replicas": 2}],
        ids=str,
    )
    def test_each_count_matters(self, count: Thing) -> None:
        seen = view(pod(ready=True), of=deployment(1, 1))
        seen.deployment["status"].update(count)
        assert said(seen) == "1 of 1 ready"

    def test_old_pods_must_be_gone_or_going(self) -> None:
        sets = [replica_set(2, 0), replica_set(1)]
        old = pod(name="llm-2-z", version=2, ready=True)
        going = pod(name="llm-2-z", version=2, ready=True, ending=True)
        there = deployment(1, 1)
        assert said(view(pod(ready=True), old, of=there, sets=sets)) == (
            "1 of 1 ready; waiting for old pods to end (llm-2-z)"
        )
        assert isinstance(judge(view(pod(ready=True), going, of=there, sets=sets)), Done)

    def test_pods_of_others_do_not_matter(self) -> None:
        assert judge(
            view(pod(ready=True), pod(waits("ErrImagePull"), version=9), of=deployment(1, 1))
        ) == Done([pod(ready=True)])

    def test_none_wanted(self) -> None:
        none = deployment(0)
        assert judge(view(of=none, sets=[replica_set(1, 0)])) == Done([])
        for last in (pod(ending=True), pod(waits("ErrImagePull"))):
            assert (
                said(view(last, of=none, sets=[replica_set(1, 0)])) == "waiting for old pods to end (llm-1-a)"
            )


class TestWords:
    def test_no_pods_yet(self) -> None:
        assert said(view()) == "waiting for its pods to be made"

    def test_only_old_pods(self) -> None:
        """Strategy Recreate makes the new ReplicaSet when the old pods have ended; how those end is no failure."""
        old = pod(ended(143), name="llm-2-z", version=2, ending=True)
        assert said(view(old, sets=[replica_set(2, 0)])) == "waiting for old pods to end (llm-2-z)"

    def test_old_pods_are_ignored_when_there_are_new_ones(self) -> None:
        old = pod(waits("ErrImagePull"), name="llm-2-z", version=2)
        new = pod(waits("ContainerCreating"))
        assert said(view(old, new, of=deployment(1), sets=[replica_set(2), replica_set(1)])) == (
            "starting the container"
        )

    def test_scheduling(self) -> None:
        message = (
            "0/1 nodes are available: 1 Insufficient memory. no new claims to deallocate, preemption: 0/1 nodes are "
            "available: 1 Preemption is not helpful for scheduling."
        )
        assert said(view(unschedulable(message))) == (
            "waiting to be scheduled (0/1 nodes are available: 1 Insufficient memory.)"
        )
        assert said(view(unschedulable(message), ending=["sglang-x"])).endswith(
            "memory.; still ending: sglang-x)"
        )

    @pytest.mark.parametrize(
        ("events", "words"),
        [
            ([], "starting the container"),
            ([event("Pulling", container="engine")], f"pulling image {IMAGE}"),
            ([event("Pulling", container="other")], "starting the container"),
            ([event("Pulling", container="engine", about="llm-1-b")], "starting the container"),
            (
                [event("Pulling", container="engine"), event("Pulled", container="engine")],
                "starting the container",
            ),
            ([event("FailedMount", "timed out")], "waiting for its node (FailedMount: timed out)"),
            (
                [event("FailedMount", "timed out"), event("Pulling", container="engine")],
                f"pulling image {IMAGE}",
            ),
        ],
    )
    def test_creation(self, events: list[Thing], words: str) -> None:
        assert said(view(pod(waits("ContainerCreating")), events=events)) == words

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ('Readiness probe failed: Get "http://10.0.0.1/": connect: connection refused', "connection refused"),
            ("Readiness probe failed: HTTP probe failed with statuscode: 503", "answers 503"),
            ("Startup probe failed: Get ...: context deadline exceeded (Client.Timeout exceeded)", "no answer in time"),
            ("Readiness probe failed: cat: /ready: No such file", "cat: /ready: No such file"),
        ],
    )  # fmt: skip
    def test_probe(self, message: str, words: str) -> None:
        seen = view(pod(), events=[event("Unhealthy", message, "engine")])
        assert said(seen) == f"waiting until it is ready (probe: {words})"

    @pytest.mark.parametrize(
        ("probe", "log", "words"),
        [
            ("refused", [], "waiting until it is ready (probe: connection refused)"),
            ("refused", ["Starting to load"], "loading weights"),
            ("refused", ["Starting to load", "\x1b[32m50 %\x1b[0m"], "loading weights"),
            ("refused", ["\x1b[32mhello\x1b[0m", " "], "starting: hello"),
            ("statuscode: 503", ["hello"], "waiting until it is ready (probe: answers 503)"),
            ("statuscode: 503", ["Starting to load"], "loading weights"),
        ],
    )
    def test_log(self, probe: str, log: list[str], words: str) -> None:
        message = f"Readiness probe failed: connection {probe}"
        verdict = judge(view(pod(), events=[event("Unhealthy", message, "engine")]))
        assert isinstance(verdict, Waiting)
        assert verdict.subject
        assert (verdict.subject.name, verdict.subject.container) == ("llm-1-a", "engine")
        assert rollouts.words(verdict, log, {"Starting to load": "loading weights"}) == words

    def test_of_several_the_last_one(self) -> None:
        three = [pod(name="llm-1-a", ready=True), pod(name="llm-1-b"), pod(waits("X"), name="llm-1-c")]
        assert said(view(*three)) == "1 of 3 ready; starting the container"
        verdict = judge(view(*three[:2]))
        assert isinstance(verdict, Waiting)
        assert rollouts.words(verdict, ["hello"], {}) == "1 of 2 ready; starting: hello"

    def test_init_container(self) -> None:
        waiting = waits("PodInitializing")
        verdict = judge(view(pod(waiting, init=({}, {"state": RUNNING}))))
        assert isinstance(verdict, Waiting)
        assert rollouts.words(verdict, ["2 of 6"], {}) == "init container fetch: starting: 2 of 6"
        assert rollouts.words(verdict, [], {}) == "init container fetch: running"
        assert (
            said(view(pod(waiting, init=({}, {"state": waits("X")})))) == "starting the init container fetch"
        )
        assert said(view(pod(waiting, init=({}, {"state": ended(0)})))) == "starting the container"
        sidecar = {"restartPolicy": "Always"}
        assert (
            said(view(pod(waiting, init=(sidecar, {"state": RUNNING, "started": True}))))
            == "starting the container"
        )


class TestStart:
    @pytest.mark.parametrize(
        ("reason", "message", "remedy"),
        [
            ("ErrImagePull", "code = NotFound desc = x:1: not found", "correct its name and tag"),
            (
                "ErrImagePull",
                "dial tcp: lookup registry: no such host",
                "mend its network, or load the image",
            ),
            ("ImagePullBackOff", "pull access denied", "engines_image_pull_secrets"),
            ("ImagePullBackOff", 'Back-off pulling image "x"', "load the image with playbooks/images.yml"),
            ("ErrImagePull", "write: no space left on device", "The node's disk is full"),
            ("InvalidImageName", "invalid reference format", "Correct the image's name"),
            (
                "ErrImageNeverPull",
                "not present with pull policy of Never",
                "load it with playbooks/images.yml",
            ),
            ("CreateContainerConfigError", 'secret "hf" not found', "Create the Secret or ConfigMap"),
            ("CreateContainerError", "device busy", "container runtime"),
            ("RunContainerError", "exec: no such file", "correct the engine's command"),
        ],
    )
    def test_fails_at_once(self, reason: str, message: str, remedy: str) -> None:
        found = problem(view(pod(waits(reason, message))))
        assert f"container engine of pod llm-1-a: {reason}: " in found.what
        assert remedy in found.remedy

    def test_the_image_is_named(self) -> None:
        assert problem(view(pod(waits("ErrImagePull")))).what.startswith(
            f"has no image {IMAGE} for container"
        )

    def test_one_of_several(self) -> None:
        """Another that waits for something else does not hide it."""
        bad = pod(waits("ErrImagePull"), name="llm-1-b")
        assert "pod llm-1-b" in problem(view(pod(ready=True), bad, pod(name="llm-1-c"))).what

    def test_init_container_is_named(self) -> None:
        bad = pod(waits("PodInitializing"), init=({}, {"state": waits("ImagePullBackOff")}))
        assert "for init container fetch of" in problem(view(bad)).what

    def test_not_judged_before_the_change_is_taken_note_of(self) -> None:
        seen = view(pod(waits("ErrImagePull")), of=deployment(1, 0, observedGeneration=1))
        assert isinstance(judge(seen), Waiting)


class TestEnd:
    @pytest.mark.parametrize(
        ("code", "reason", "words"),
        [
            (1, "Error", "ended with exit code 1"),
            (139, "Error", "was ended by SIGSEGV (exit code 139)"),
            (250, "Error", "ended with exit code 250"),
            (0, "Completed", "ended with exit code 0, though it should keep running"),
            (128, "StartError", "could not be started (exit code 128)"),
        ],
    )
    def test_between_end_and_restart(self, code: int, reason: str, words: str) -> None:
        found = problem(view(pod(ended(code, reason))))
        assert found.what == f"does not stay up: container engine of pod llm-1-a {words}"
        assert found.subject
        assert (found.subject.container, found.subject.previous) == ("engine", False)
        assert ("correct the engine's command" in found.remedy) == (reason == "StartError")

    def test_runs_again(self) -> None:
        found = problem(view(pod(restarts=1, last=ended(2))))
        assert "ended with exit code 2" in found.what
        assert found.subject
        assert found.subject.previous

    def test_crash_loop(self) -> None:
        found = problem(view(pod(waits("CrashLoopBackOff"), restarts=3, last=ended(3))))
        assert "ended with exit code 3" in found.what
        assert "ends again and again" in problem(view(pod(waits("CrashLoopBackOff")))).what

    @pytest.mark.parametrize("again", [RUNNING, waits("CrashLoopBackOff")], ids=["runs", "waits"])
    def test_out_of_memory(self, again: Thing) -> None:
        found = problem(view(pod(again, restarts=1, last=ended(137, "OOMKilled"), limits={"memory": "8Gi"})))
        assert found.what.endswith("was killed (OOMKilled), because it wanted more than its limit of 8Gi")
        assert "Raise resources.limits.memory" in found.remedy
        assert "Free memory on the node" in problem(view(pod(ended(137, "OOMKilled")))).remedy

    def test_killed_for_its_probe(self) -> None:
        events = [event("Killing", "Container engine failed liveness probe, will be restarted", "engine")]
        found = problem(view(pod(restarts=1, last=ended(137)), events=events))
        assert found.what.endswith(
            "SIGKILL (exit code 137): Container engine failed liveness probe, will be restarted"
        )
        assert "raise startup_timeout" in found.remedy

    def test_init_container(self) -> None:
        bad = pod(waits("PodInitializing"), init=({}, {"state": ended(1)}))
        assert "init container fetch of pod llm-1-a ended with exit code 1" in problem(view(bad)).what
        again = pod(
            waits("PodInitializing"), init=({}, {"state": RUNNING, "restartCount": 1, "lastState": ended(0)})
        )
        assert isinstance(judge(view(again)), Waiting)

    def test_restarts_before_a_finished_rollout_are_no_news(self) -> None:
        """A pod that was ready once, and is not now: what it went through before does not count, what comes does."""
        watch, settled = Watch(), deployment(1, 0, SETTLED)
        assert isinstance(watch.judge(view(pod(restarts=2, last=ended(1)), of=settled), 0), Waiting)
        assert isinstance(watch.judge(view(pod(restarts=3, last=ended(1)), of=settled), 1), Problem)
        new = pod(name="llm-1-new", restarts=1, last=ended(1))
        assert isinstance(watch.judge(view(new, of=settled), 2), Problem)

    def test_restart_of_the_node(self) -> None:
        assert isinstance(judge(view(pod(restarts=1, last=ended(255, "Unknown")))), Waiting)

    def test_lost_pod(self) -> None:
        lost = pod(
            phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."
        )
        found = problem(view(lost, pod(name="llm-1-b"), of=deployment(1)))
        assert found.what.startswith("lost its pod llm-1-a (Evicted): The node was low on")
        assert "free some there" in found.remedy
        assert isinstance(judge(view(lost, pod(name="llm-1-b"), of=deployment(1, 0, SETTLED))), Waiting)


class TestPlace:
    @pytest.mark.parametrize(
        ("message", "remedies"),
        [
            ("1 Insufficient nvidia.com/gpu.", ["Too few GPUs are free"]),
            ("1 Insufficient memory.", ["Lower resources.requests"]),
            (
                "1 Insufficient cpu, 1 Insufficient nvidia.com/gpu.",
                ["Lower resources.requests", "Too few GPUs"],
            ),
            ("1 node(s) didn't match Pod's node affinity/selector.", ["labels that the node selector wants"]),
            ("1 node(s) had untolerated taint {dedicated: gpu}.", ["add a toleration"]),
            (
                "1 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }.",
                ["disk is nearly full"],
            ),
            ("1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.", ["A node is not ready"]),
            ("pod has unbound immediate PersistentVolumeClaims.", ["A PersistentVolumeClaim is missing"]),
            ("1 something new.", ["Change what this deployment asks for"]),
        ],
    )
    def test_remedies_by_the_words(self, message: str, remedies: list[str]) -> None:
        watch, seen = Watch(20), view(unschedulable(f"0/1 nodes are available: {message} preemption: none."))
        assert isinstance(watch.judge(seen, 100), Waiting)
        assert isinstance(watch.judge(seen, 120), Waiting)
        found = watch.judge(seen, 120.1)
        assert isinstance(found, Problem)
        assert found.what.endswith(f"The scheduler says: 0/1 nodes are available: {message}")
        starts = {
            "Too few",
            "Lower",
            "Give",
            "A node is kept",
            "The node's disk",
            "A node is not",
            "A Persistent",
            "Change",
        }
        assert sum(word in found.remedy for word in starts) == len(remedies)
        assert all(remedy in found.remedy for remedy in remedies)

    def test_found_one_in_between(self) -> None:
        watch, none = Watch(20), view(unschedulable("no"))
        watch.judge(none, 0)
        watch.judge(view(pod(waits("ContainerCreating"))), 15)
        assert isinstance(watch.judge(none, 30), Waiting)

    def test_pods_that_are_ending_make_room(self) -> None:
        watch, none = Watch(20), view(unschedulable("no"), ending=["sglang-x"])
        watch.judge(none, 0)
        assert isinstance(watch.judge(none, 100), Waiting)
        assert isinstance(watch.judge(none, 141), Problem)


class TestNode:
    @pytest.mark.parametrize(
        ("reason", "message", "remedy"),
        [
            (
                "FailedMount",
                'MountVolume.SetUp failed for volume "v" : secret "s" not found',
                "Create what is missing",
            ),
            (
                "FailedMount",
                "hostPath type check failed: /m is not a directory",
                "Make that folder on the node",
            ),
            ("FailedCreatePodSandBox", 'no runtime for "nvidia" is configured', "NVIDIA container toolkit"),
        ],
    )
    def test_hopeless_after_a_while(self, reason: str, message: str, remedy: str) -> None:
        watch, seen = Watch(20), view(pod(waits("ContainerCreating")), events=[event(reason, message)])
        assert isinstance(watch.judge(seen, 0), Waiting)
        found = watch.judge(seen, 21)
        assert isinstance(found, Problem)
        assert "on node node-1: " in found.what
        assert "MountVolume" not in found.what
        assert remedy in found.remedy

    def test_what_may_pass_is_waited_for(self) -> None:
        seen = view(pod(waits("ContainerCreating")), events=[event("FailedMount", "timed out")])
        watch = Watch(20)
        assert [type(watch.judge(seen, now)) for now in (0, 500)] == [Waiting, Waiting]


class TestDeployment:
    def refused(self, message: str) -> View:
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
        return view(of=deployment(1, 0, failure))

    @pytest.mark.parametrize(
        ("message", "remedy"),
        [
            ("exceeded quota: q, requested: memory=2", "Raise the namespace's ResourceQuota"),
            ('pod rejected: RuntimeClass "nvidia" not found', "Create the RuntimeClass"),
            ('violates PodSecurity "restricted:latest"', "Pod Security level"),
            ('admission webhook "x" denied the request', "admission webhook of the cluster"),
            ("maximum memory usage per Container is 1Gi", "LimitRange allows"),
            ("no", "Change what the message names"),
        ],
    )
    def test_refused(self, message: str, remedy: str) -> None:
        found = problem(self.refused(message))
        assert found.what == f"gets no pods: Kubernetes refuses to make them: {message}"
        assert remedy in found.remedy
        assert found.subject
        assert (found.subject.kind, found.subject.name) == ("replicaset", "llm-1")

    def test_a_new_namespace_has_no_service_account_yet(self) -> None:
        watch, seen = (
            Watch(20),
            self.refused('error looking up service account x/default: "default" not found'),
        )
        assert [type(watch.judge(seen, now)) for now in (0, 19, 21)] == [Waiting, Waiting, Problem]

    def test_deadline(self) -> None:
        watch = Watch()
        assert isinstance(watch.judge(view(pod()), 0), Waiting)
        found = watch.judge(view(pod(), of=deployment(1, 0, LATE)), 1)
        assert isinstance(found, Problem)
        assert found.what == (
            "is not ready within the 600 s of its progressDeadlineSeconds. It was still: waiting until it is ready"
        )
        assert found.subject
        assert found.subject.container == "engine"

    def test_deadline_of_a_former_wait(self) -> None:
        watch, seen = Watch(), view(pod(), of=deployment(1, 0, LATE))
        assert [type(watch.judge(seen, now)) for now in (0, 9)] == [Waiting, Waiting]

    def test_paused(self) -> None:
        paused = deployment()
        paused["spec"]["paused"] = True
        assert problem(view(of=paused, sets=[replica_set(2)])).what.startswith("is paused")


class TestReport:
    def test_layout(self) -> None:
        wait = rollout_wait.Wait(cluster_api.Access("/a b/config", "ctx", "ns"), "llm", 60, {}, 20)
        found = problem(view(pod(restarts=1, last=ended(2))))
        events = [event("Started", str(number)) for number in range(7)]
        assert rollouts.report(
            wait.title, found, events, ["one", "\x1b[31mtwo\x1b[0m"], wait.commands(found)
        ) == (
            "Deployment llm (namespace ns, context ctx) does not stay up: container engine of pod llm-1-a ended with "
            "exit code 2.\n"
            "Last events of pod llm-1-a:\n"
            "  Started: 2\n  Started: 3\n  Started: 4\n  Started: 5\n  Started: 6\n"
            "Before it was restarted, container engine printed last:\n"
            "  one\n  two\n"
            f"What to do: {found.remedy}\n"
            "To look further:\n"
            "  kubectl --kubeconfig '/a b/config' --context ctx --namespace ns describe pod llm-1-a\n"
            "  kubectl --kubeconfig '/a b/config' --context ctx --namespace ns logs llm-1-a --container engine "
            "--previous"
        )

    @pytest.mark.parametrize(
        ("line", "advice"),
        [
            (
                "ValueError: Free memory on device (5.58/16.00 GiB) on startup is less than desired GPU memory",
                "The GPU's memory is in use: lower gpu_memory",
            ),
            (
                "ValueError: No available memory for the cache blocks.",
                "raise gpu_memory, or lower context_length",
            ),
            (
                "vllm serve: error: unrecognized arguments: --nope",
                "does not take that command line: correct args",
            ),
            ("who knows", "Correct what its last lines complain about"),
        ],
    )
    def test_what_an_engine_said_last_is_understood(self, line: str, advice: str) -> None:
        found = problem(view(pod(restarts=1, last=ended(1))))
        told = rollouts.report("Deployment llm", found, [], ["Traceback", line, "more"], {})
        assert f"{line}\n  more\nWhat to do: " in told
        assert advice in told.partition("What to do: ")[2]

    def test_same_events_once(self) -> None:
        events = [
            event("FailedCreate", 'pods "llm-1" is forbidden'),
            event("Other"),
            event("FailedCreate", '(combined from similar events): pods "llm-2" is forbidden'),
        ]
        assert rollouts.event_lines(events) == ["Other: ", 'FailedCreate: pods "llm-2" is forbidden']

    def test_facts(self) -> None:
        done = judge(view(pod(ready=True), of=deployment(1, 1)))
        assert isinstance(done, Done)
        assert rollout_wait.facts(done) == {
            "pods": ["llm-1-a"],
            "nodes": ["node-1"],
            "image_ids": ["sha256:1"],
        }


class FakeCluster:
    """A cluster that answers with the next of its looks; an exception is raised, the last one stays."""

    address = "https://10.0.0.1:6443"

    def __init__(self, *looks: View | Exception | None) -> None:
        self.looks = list(looks)
        self.now = 0.0
        self.logs: list[tuple[str, bool]] = []
        self.deleted: list[tuple[str, str]] = []

    def deployment(self, _name: str) -> Thing | None:
        look = self.looks[0]
        if len(self.looks) > 1:
            self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        self.seen = look
        return dict(look.deployment) if look else None

    def replica_sets(self, _labels: str = "") -> list[Any]:
        return list(self.seen.replica_sets) if self.seen else []

    def pods(self, labels: str = "") -> list[Any]:
        leaving = [] if labels else [pod(name="sglang-x", ending=True)]
        return [*self.seen.pods, *leaving] if self.seen else leaving

    def events(self, uid: str) -> list[Any]:
        return [one for one in self.seen.events if one["involvedObject"]["uid"] == uid] if self.seen else []

    def delete(self, kind: str, name: str) -> None:
        self.deleted.append((kind, name))

    def log(self, name: str, _container: str, _lines: int, previous: bool = False) -> list[str]:
        self.logs.append((name, previous))
        return ["its dying words"] if previous else []


class TestWait:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Time passes only where something waits."""
        slept: list[float] = []
        monkeypatch.setattr(
            rollout_wait, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
        )
        return slept

    def run(
        self, *looks: View | Exception | None, timeout: float = 60
    ) -> tuple[FakeCluster, list[str], Thing | str]:
        cluster, words = FakeCluster(*looks), []

        class Listener(job.Progress):
            def say(self, text: str) -> None:
                words.append(text)

        wait = rollout_wait.Wait(cluster_api.Access("/config", None, "ns"), "llm", timeout, {}, 20)
        try:
            return cluster, words, wait.run(cluster, Listener())  # type: ignore[arg-type]  # a stand-in
        except job.JobError as error:
            return cluster, words, str(error)

    @pytest.mark.usefixtures("clock")
    def test_until_it_is_done(self) -> None:
        _, words, result = self.run(view(), view(pod()), view(pod(ready=True), of=deployment(1, 1)))
        assert words == ["llm: waiting for its pods to be made", "llm: waiting until it is ready"]
        assert isinstance(result, dict)
        assert (result["changed"], result["pods"], result["seconds"]) == (False, ["llm-1-a"], 0.6)

    def test_too_late(self, clock: list[float]) -> None:
        *_, message = self.run(view(unschedulable("no")), timeout=10)
        assert isinstance(message, str)
        assert message.startswith(
            "Deployment llm (namespace ns) is not ready within 10 s. It was still: waiting to be scheduled "
            "(no; still ending: sglang-x).\n"
        )
        assert 10 < sum(clock) < 12

    @pytest.mark.usefixtures("clock")
    def test_log_of_the_run_that_ended(self) -> None:
        """Also if the container was started anew after it was looked at."""
        cluster, _, message = self.run(view(pod(ended(1))))
        assert cluster.logs == [("llm-1-a", False), ("llm-1-a", True)]
        assert "printed last:\n  its dying words\n" in str(message)

    @pytest.mark.usefixtures("clock")
    def test_what_an_earlier_failure_left_is_tried_again_at_once(self) -> None:
        left = view(pod(waits("ImagePullBackOff")))
        cluster, _, result = self.run(left, view(pod(ready=True), of=deployment(1, 1)))
        assert cluster.deleted == [("Pod", "llm-1-a")]
        assert isinstance(result, dict)
        cluster, _, message = self.run(left, left, left)
        assert cluster.deleted == [("Pod", "llm-1-a")]
        assert "ImagePullBackOff" in str(message) or "can't" in str(message)

    @pytest.mark.usefixtures("clock")
    def test_so_is_what_is_being_tried_again_already(self) -> None:
        left = view(pod(restarts=1, last=ended(1)))
        cluster, _, result = self.run(left, view(pod(ready=True), of=deployment(1, 1)))
        assert cluster.deleted == [("Pod", "llm-1-a")]
        assert isinstance(result, dict)

    @pytest.mark.usefixtures("clock")
    def test_missing(self) -> None:
        *_, message = self.run(view(), None)
        assert str(message).startswith("There is no Deployment llm (namespace ns): apply it first")

    @pytest.mark.usefixtures("clock")
    def test_silence_for_a_moment(self) -> None:
        silent = cluster_api.UnavailableError("Connection refused")
        _, words, result = self.run(silent, silent, view(pod(ready=True), of=deployment(1, 1)))
        assert words == ["llm: the cluster does not answer (Connection refused)"] * 2
        assert isinstance(result, dict)

    def test_silence_counts_from_the_last_answer(self, clock: list[float]) -> None:
        silent = [cluster_api.UnavailableError("Connection refused")] * 20
        *_, result = self.run(
            *silent, view(), *silent, view(pod(ready=True), of=deployment(1, 1)), timeout=600
        )
        assert isinstance(result, dict)
        assert sum(clock) > 30

    @pytest.mark.usefixtures("clock")
    def test_silence_for_long(self) -> None:
        *_, message = self.run(view(), cluster_api.UnavailableError("Connection refused"), timeout=600)
        assert re.match(
            r"The Kubernetes API at https://10\.0\.0\.1:6443 has not answered for 3[01] s \(Connection refused\)",
            str(message),
        )


class TestApi:
    @pytest.mark.parametrize(
        ("rules", "labels"),
        [
            ({"matchLabels": {"a": "1", "b": "2"}}, "a=1,b=2"),
            (
                {
                    "matchExpressions": [
                        {"key": "a", "operator": "In", "values": ["1", "2"]},
                        {"key": "b", "operator": "NotIn", "values": ["3"]},
                        {"key": "c", "operator": "Exists"},
                        {"key": "d", "operator": "DoesNotExist"},
                    ]
                },
                "a in (1,2),b notin (3),c,!d",
            ),
        ],
    )
    def test_selector(self, rules: Thing, labels: str) -> None:
        assert rollouts.selector({"spec": {"selector": rules}}) == labels

    @pytest.mark.parametrize(
        ("url", "here"),
        [
            ("https://127.0.0.1:6550", True),
            ("https://0.0.0.0:6550", True),
            ("https://localhost:6550", True),
            ("https://[::1]:6550", True),
            ("https://10.0.0.1:6443", False),
            ("https://cluster.example", False),
        ],
    )
    def test_no_proxy_to_this_machine(self, url: str, here: bool) -> None:
        assert cluster_api.is_loopback(url) is here

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                "<urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new connection: "
                "[Errno 111] Connection refused",
                "Connection refused",
            ),
            ("HTTPSConnectionPool(host='127.0.0.1', port=1): Read timed out.", "Read timed out."),
            ("SSLError\nwrong", "SSLError wrong"),
        ],
    )
    def test_reasons_are_short(self, text: str, words: str) -> None:
        assert cluster_api.reason_of(OSError(text)) == words

    def test_reason_of_the_api(self) -> None:
        error = OSError("403")
        error.body = '{"message": "pods is forbidden"}'  # type: ignore[attr-defined]  # as ApiException has it
        assert cluster_api.reason_of(error) == "pods is forbidden"
