"""How many GPUs the nodes of a cluster offer, what NVIDIA's device plugin is doing, and why it offers none.

`Watch` judges the API's own dicts, and asks nothing itself; `Wait` asks, and says what is going on.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, job, rollout_wait, rollouts
from ansible_collections.roundhouse.llm.plugins.module_utils.rollouts import Problem, Waiting

Thing = Mapping[str, Any]

#: The resource by which pods ask for a GPU, and what else NVIDIA's plugins may call them.
GPU = "nvidia.com/gpu"
_VENDOR = "nvidia.com/"

#: What the plugin prints when the kubelet knows it, and when a GPU is broken.
_REGISTERED = re.compile(r"Registered device plugin")
_BROKEN = re.compile(r"Xid=(\d+) on Device=([^\s;:]+)")

_LOG_LINES = 200

#: Seconds for which the API may be silent.
_PATIENCE = 30.0

#: Seconds that must do for the plugin to register, if its log does not tell.
_REGISTERS = 10.0

#: Seconds for the node to count what the plugin offers: the kubelet reports every 10.
_SETTLE = 30.0

#: Seconds for which pods may be refused or find no place: k3s makes its RuntimeClasses after its API answers.
_REFUSED = 60.0
_NO_PLACE = 20.0

_LATE = (
    "If its image is still being pulled, raise device_plugin_timeout. If it hangs, its log says where. On the machine "
    "with the GPU, nvidia-smi -L must list it."
)
_OTHERWISE = "Mend what its last lines complain about, and run the same command again."

#: What goes wrong (a pattern of what Kubernetes or the plugin says), and what to do. The first that matches.
_CAUSES = (
    (
        r'RuntimeClass "?\S+ not found',
        "The cluster has no RuntimeClass of that name. k3s brings nvidia itself; elsewhere NVIDIA's GPU operator makes "
        "it, or name another one (device_plugin_runtime_class).",
    ),
    (
        r"no runtime for",
        "The node's container runtime knows no runtime nvidia, for NVIDIA's container toolkit is not in the node. "
        "Platform k3d: the cluster was made without GPUs, so make it anew with roundhouse_gpus: all and "
        "-e k3d_cluster_recreate=true. Elsewhere: install the toolkit on that node.",
    ),
    (
        r"(?i)version mismatch|LIB_RM_VERSION",
        "The driver was updated, and the kernel still has the old one: reboot the machine with the GPU.",
    ),
    (
        r"(?i)nvml: unknown error|NVML: ERROR_UNKNOWN",
        "The node has lost its GPU, as happens after systemctl daemon-reload: stop and start the cluster (make stop, "
        "make start).",
    ),
    (
        r"(?i)driver[ _]not[ _]loaded|can't communicate with the NVIDIA driver",
        "The driver is installed and not loaded: see nvidia-smi on the machine with the GPU; mostly a reboot helps.",
    ),
    (
        r"load library failed|unresolvable CDI devices|nvidia-container-cli: .*(detection|initialization) error",
        "The node has NVIDIA's container toolkit, and no GPU in it. Platform k3d: the cluster was made without --gpus, "
        "or the host's driver has gone since: see that nvidia-smi -L and docker run --rm --gpus all debian nvidia-smi "
        "-L list the GPU, and make the cluster anew (-e k3d_cluster_recreate=true). Elsewhere: install the driver.",
    ),
    (
        r"(?i)requirement error|unsatisfied condition",
        "The driver is too old for the plugin's image: update it on the machine with the GPU.",
    ),
    (
        r"number of replicas must be|(load|pars\w+|validat\w+|finalize) config",
        "The plugin does not take its configuration: go back to the default of roundhouse_device_plugin.",
    ),
    (
        r"ERROR_LIBRARY_NOT_FOUND|could not load NVML|Incompatible (strategy|platform)|NVML library",
        "The plugin runs without NVIDIA's runtime, so it sees no driver: device_plugin_runtime_class must name the "
        "RuntimeClass of that runtime (nvidia), and roundhouse_gpus must not be none.",
    ),
    (
        r"(?i)no devices found",
        "The driver answers and has no GPU: see nvidia-smi -L on that machine, and roundhouse_gpus.",
    ),
)

_NO_IMAGE = (
    "The node can't pull the image: mend its network or its proxy, name a mirror "
    "(roundhouse_device_plugin), or load the image with playbooks/images.yml."
)

Verdict = dict[str, int] | Waiting | Problem


@dataclass(frozen=True)
class View:
    """Nodes, the plugin's DaemonSet, and what belongs to it, at one moment."""

    nodes: Sequence[Thing]
    daemon_set: Thing
    pods: Sequence[Thing] = ()
    #: Of the DaemonSet, and of its pods that are not ready; the newest last.
    events: Sequence[Thing] = ()
    #: Log lines by the pod's name.
    logs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def present(self) -> list[Thing]:
        """The pods that are there to stay."""
        return [pod for pod in self.pods if not rollouts.is_ending(pod)]

    def rollout(self) -> rollouts.View:
        """The same for the functions of rollouts."""
        return rollouts.View({}, pods=self.pods, events=self.events)


def offered(nodes: Sequence[Thing], resource: str = GPU) -> dict[str, int]:
    """What the nodes that take pods offer of a resource, by node; those without it are left out."""
    counts = {
        node["metadata"]["name"]: int((node["status"].get("allocatable") or {}).get(resource, 0))
        for node in nodes
        if rollouts.is_ready(node) and not node["spec"].get("unschedulable")
    }
    return {name: count for name, count in counts.items() if count}


def other_names(nodes: Sequence[Thing]) -> list[str]:
    """Names under which the nodes offer NVIDIA's GPUs, or parts of them, besides the usual one."""
    names = {name for node in nodes for name in (node["status"].get("allocatable") or {})}
    return sorted(name for name in names if name.startswith(_VENDOR) and name != GPU and offered(nodes, name))


def cause(said: str) -> str:
    """What to do about what Kubernetes or the plugin says."""
    return next((words for pattern, words in _CAUSES if re.search(pattern, said)), _OTHERWISE)


@dataclass
class Watch:
    """One wait for the plugin: judges it look by look, and knows what was so before."""

    wanted: int
    _since: dict[str, float] = field(default_factory=dict, init=False)
    _restarts: dict[str, int] = field(default_factory=dict, init=False)

    def judge(self, view: View, now: float) -> Verdict:
        """What is to be said of it now: what the nodes offer, if that is enough."""
        found = view.daemon_set
        status = found.get("status") or {}
        if int(status.get("observedGeneration", 0)) < int(found["metadata"]["generation"]):
            return Waiting("waiting until Kubernetes takes note of the change")
        for pod in view.present:
            for container in rollouts.containers(pod):
                self._restarts.setdefault(pod["metadata"]["uid"], container.status.get("restartCount", 0))
        desired = int(status.get("desiredNumberScheduled", 0))
        renewed = 0 < desired == int(status.get("updatedNumberScheduled", 0))
        registered = [pod for pod in view.present if self._has_registered(view, pod, now)]
        counts = offered(view.nodes)
        if renewed and registered and sum(counts.values()) >= self.wanted:
            return counts
        if not desired:
            return self._nowhere(view, now)
        if problem := self._problem(view, now):
            return problem
        if renewed and registered and len(registered) == len(view.present):
            return self._too_few(view, now)
        return waiting(view)

    def _lasts(self, key: str, now: float, is_so: bool, grace: float) -> bool:
        """Whether something has been so for as long as it may."""
        if not is_so:
            self._since.pop(key, None)
            return False
        return now - self._since.setdefault(key, now) >= grace

    def _has_registered(self, view: View, pod: Thing, now: float) -> bool:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        ready = rollouts.is_ready(pod)
        for_long = self._lasts(f"ready {uid}", now, ready, _REGISTERS)
        return ready and (for_long or any(map(_REGISTERED.search, view.logs.get(name, ()))))

    def _nowhere(self, view: View, now: float) -> Verdict:
        if self._lasts("nowhere", now, True, _NO_PLACE):
            return Problem(
                "fits on no node",
                "Let device_plugin_node_selector choose nodes that are there, or add tolerations "
                "(device_plugin_tolerations).",
                subject(view),
            )
        return Waiting("waiting for a node", subject(view))

    def _problem(self, view: View, now: float) -> Problem | None:
        refused = refusal(view)
        if self._lasts("refused", now, bool(refused), _REFUSED):
            said = rollouts.one_line(refused)
            return Problem(
                f"gets no pod: Kubernetes refuses to make it: {said}", cause(refused), subject(view)
            )
        for pod in view.present:
            found = (
                self._of_container(view, pod) or self._of_sandbox(view, pod, now) or self._of_place(pod, now)
            )
            if found:
                return found
        return None

    def _of_container(self, view: View, pod: Thing) -> Problem | None:
        log = "\n".join(view.logs.get(pod["metadata"]["name"], ()))
        for container in rollouts.containers(pod):
            if found := rollouts.start_problem(pod, container):
                image = found.what.startswith("has no image")
                return replace(found, remedy=_NO_IMAGE if image else cause(found.what))
            known = self._restarts.get(pod["metadata"]["uid"], 0)
            if found := rollouts.end_problem(view.rollout(), pod, container, known):
                return replace(found, remedy=cause(f"{found.what}\n{log}"))
        return None

    def _of_sandbox(self, view: View, pod: Thing, now: float) -> Problem | None:
        said = rollouts.node_trouble(view.rollout(), pod).get("message", "")
        if not self._lasts(f"sandbox {pod['metadata']['uid']}", now, "no runtime for" in said, _NO_PLACE):
            return None
        where = f"{pod['metadata']['name']} on node {pod['spec'].get('nodeName')}"
        what = f"can't start its pod {where}: {rollouts.one_line(said)}"
        return Problem(what, cause(said), rollouts.subject(pod))

    def _of_place(self, pod: Thing, now: float) -> Problem | None:
        uid = pod["metadata"]["uid"]
        if not self._lasts(f"place {uid}", now, rollouts.is_unschedulable(pod), _NO_PLACE):
            return None
        said = rollouts.one_line(rollouts.condition(pod, "PodScheduled").get("message", ""))
        return Problem(
            f"finds no place for its pod {pod['metadata']['name']}. The scheduler says: {said}",
            "Make room on the node, or add what it wants to be tolerated (device_plugin_tolerations).",
            rollouts.subject(pod),
        )

    def _too_few(self, view: View, now: float) -> Verdict:
        count = sum(offered(view.nodes).values())
        words = f"the nodes offer {count} {GPU} so far, and {self.wanted} are wanted"
        for pod in view.present:
            lines = view.logs.get(pod["metadata"]["name"], ())
            if broken := list(filter(None, map(_BROKEN.search, lines))):
                return _broken(count, self.wanted, broken[-1], pod)
        if not self._lasts("too few", now, True, _SETTLE):
            return Waiting(words, subject(view))
        about = view.present[0]
        return Problem(
            f"runs, and the nodes offer {count} {GPU} where the pods of the stack want {self.wanted}",
            "If nvidia-smi -L lists fewer GPUs than you think, see to the driver and to roundhouse_gpus. Otherwise let "
            "deployments share a GPU (gpu_memory), lower gpus or replicas, or take one out of the stack.",
            rollouts.subject(about, container=_container(about)),
        )


def _broken(count: int, wanted: int, found: re.Match[str], pod: Thing) -> Problem:
    xid, device = found.groups()
    return Problem(
        f"takes GPU {device} for broken (Xid {xid}), so the nodes offer {count} {GPU} where {wanted} are wanted",
        f"Look up Xid {xid} (https://docs.nvidia.com/deploy/xid-errors/) and what the kernel says (dmesg | grep -i "
        "xid); mostly a reboot helps. When the GPU is well again, delete the plugin's pod "
        f"{pod['metadata']['name']}, for until it starts anew it does not look again; then run the same command again.",
        rollouts.subject(pod, container=_container(pod)),
    )


def subject(view: View) -> rollouts.Subject:
    """The DaemonSet, to be asked about."""
    return rollouts.subject(view.daemon_set, "daemonset")


def _container(pod: Thing) -> str:
    return str(pod["spec"]["containers"][0]["name"])


def refusal(view: View) -> str:
    """Why Kubernetes makes no pod, if it makes none."""
    about = view.daemon_set["metadata"]["uid"]
    said = [event for event in view.events if event["involvedObject"]["uid"] == about]
    if view.present or not said or said[-1].get("reason") != "FailedCreate":
        return ""
    return str(said[-1].get("message", ""))


def waiting(view: View) -> Waiting:
    """What the plugin is doing, in words."""
    late = [pod for pod in view.present if not rollouts.is_ready(pod)]
    if not late:
        if view.present and len(view.present) == len(view.pods):
            return Waiting("the plugin looks for GPUs", subject(view))
        return Waiting("waiting for its pod to be made", subject(view))
    for container in rollouts.containers(late[0]):
        if not container.finished:
            words = rollouts.creation(view.rollout(), late[0], container)
            return Waiting(words, rollouts.subject(late[0], container=container.name))
    return Waiting("waiting until it is ready", rollouts.subject(late[0]))


# Asking


def look_once(access: cluster_api.Access, cluster: cluster_api.Cluster, wanted: int) -> dict[str, Any]:
    """What the nodes offer, where the plugin is not ours. Raises JobError if they offer nothing."""
    found = cluster.nodes()
    if found is None:
        words = f"This user may not see the nodes, so it is unknown whether any offers {GPU}."
        return {"gpus": {}, "warnings": [words]}
    counts = offered(found)
    context = f" of context {access.context}" if access.context else ""
    if not counts:
        others = f" They offer {', '.join(other_names(found))} instead." if other_names(found) else ""
        raise job.JobError(
            f"No node{context} offers {GPU}, which {wanted} pods of the stack ask for.{others} Where the cluster has "
            "GPUs, its owner installs NVIDIA's device plugin or GPU operator; with -e device_plugin_install=true "
            "Roundhouse installs the plugin. Where nodes are added when they are needed, -e "
            "device_plugin_check=false leaves this check out. Without GPUs, choose engines with gpus: 0."
        )
    total = sum(counts.values())
    result: dict[str, Any] = {"gpus": counts}
    if total < wanted:
        result["warnings"] = [
            f"The nodes{context} offer {total} {GPU}, and the pods of the stack ask for {wanted}: some will wait. How "
            "GPUs are shared is up to the cluster's device plugin."
        ]
    return result


@dataclass(frozen=True)
class Wait:
    """What is waited for: the plugin of this name, and as many GPUs."""

    access: cluster_api.Access
    name: str
    wanted: int
    timeout: float

    @property
    def title(self) -> str:
        """What to call it in a failure."""
        context = f", context {self.access.context}" if self.access.context else ""
        return f"DaemonSet {self.name} (namespace {self.access.namespace}{context})"

    def kubectl(self, *words: str) -> str:
        """A command to look further."""
        return shlex.join(["kubectl", *self.access.options(), *words])

    def run(self, cluster: cluster_api.Cluster, progress: job.Progress) -> dict[str, Any]:
        """Wait. Raises JobError if it can't get there, or not in time."""
        watch = Watch(self.wanted)
        begun = answered = time.monotonic()
        verdict: Verdict = Waiting("waiting for the first answer of the cluster")
        first = True
        while True:
            try:
                view = self.look(cluster)
                if first and self.try_again(cluster, view):
                    view = self.look(cluster)
                first = False
                verdict = watch.judge(view, time.monotonic())
                answered = time.monotonic()
            except cluster_api.UnavailableError as error:
                self.endure(cluster.address, error, time.monotonic() - answered)
            waited = time.monotonic() - begun
            if isinstance(verdict, dict):
                return {"gpus": verdict, "seconds": round(waited, 1)}
            if isinstance(verdict, Waiting) and waited > self.timeout:
                words = f"is not ready within {self.timeout:.0f} s. It was still: {verdict.words}"
                verdict = Problem(words, _LATE, verdict.subject)
            if isinstance(verdict, Problem):
                raise self.failure(cluster, verdict)
            progress.say(f"{self.name}: {verdict.words}")
            time.sleep(min(2.0, 0.3 + waited / 20))

    def look(self, cluster: cluster_api.Cluster) -> View:
        """The DaemonSet and what belongs to it, and the nodes, now."""
        found = cluster.daemon_set(self.name)
        if found is None:
            raise job.JobError(f"There is no {self.title}: apply it first.")
        pods = cluster.pods(rollouts.selector(found))
        events = [*cluster.events(found["metadata"]["uid"])]
        for pod in pods:
            if not rollouts.is_ready(pod):
                events += cluster.events(pod["metadata"]["uid"])
        logs = {pod["metadata"]["name"]: self.log(cluster, pod) for pod in pods}
        return View(cluster.nodes() or [], found, pods, events, logs)

    def log(self, cluster: cluster_api.Cluster, pod: Thing) -> list[str]:
        """The log of a pod's container, or of its run before this one."""
        name, container = pod["metadata"]["name"], _container(pod)
        return cluster.log(name, container, _LOG_LINES) or cluster.log(name, container, _LOG_LINES, True)

    def try_again(self, cluster: cluster_api.Cluster, view: View) -> bool:
        """Delete pods that an earlier failure left waiting: else Kubernetes tries again in some minutes only."""
        late = [pod for pod in view.present if rollouts.backs_off(pod)]
        for pod in late:
            cluster.delete("Pod", pod["metadata"]["name"])
        return bool(late)

    def endure(self, address: str, error: Exception, silence: float) -> None:
        """Raises JobError if the API has been silent for too long."""
        if silence > _PATIENCE:
            raise job.JobError(
                f"The Kubernetes API at {address} has not answered for {silence:.0f} s ({error}), so it is unknown how "
                f"{self.title} does. See whether the cluster runs:\n  {self.kubectl('get', 'nodes')}"
            )

    def failure(self, cluster: cluster_api.Cluster, problem: Problem) -> job.JobError:
        """A problem with all that shows it."""
        about = problem.subject
        events, log = rollout_wait.evidence(cluster, about) if about else ([], [])
        look = [self.kubectl("describe", about.kind, about.name)] if about else []
        if about and about.container:
            previous = ["--previous"] if about.previous else []
            look.append(self.kubectl("logs", about.name, "--container", about.container, *previous))
            look.append(self.kubectl("delete", about.kind, about.name))
        purpose = "To look further, and to start it anew" if about and about.container else "To look further"
        return job.JobError(rollouts.report(self.title, problem, events, log, {purpose: look}))
