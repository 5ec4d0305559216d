"""When a Deployment is rolled out, what it is doing until then, and why it can't get there.

Judges the API's own dicts; asks nothing itself. What the log of a container would add is left to the caller:
a verdict names the container whose log is worth reading.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import readiness, remedies

Thing = Mapping[str, Any]

#: Seconds for which pods that are ending are taken for the reason why another one finds no place.
_ENDING = 120.0

_IMAGE = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
}  # fmt: skip
_CREATION = {"CreateContainerError", "RunContainerError", "PostStartHookError"}

#: With these, a container ended before its program began.
_NOT_BEGUN = {"StartError", "ContainerCannotRun"}

#: What a node can't get over: no volume to mount, no runtime for the pod.
_HOPELESS = re.compile(r"not found|hostPath type check failed|no runtime for|is not a directory")

#: What in a message of Kubernetes is no news to its reader.
_NOISE = re.compile(
    r"rpc error: code = \w+ desc = |MountVolume\.SetUp failed for (?=volume)"
    r"|[, ]*(no new claims to deallocate, )?preemption: .*"
)

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class View:
    """A Deployment and what belongs to it, at one moment."""

    deployment: Thing
    replica_sets: Sequence[Thing] = ()
    pods: Sequence[Thing] = ()
    #: Of its pods that are not ready; the newest last.
    events: Sequence[Thing] = ()
    #: Pods of the namespace that are ending, by name.
    ending: Sequence[str] = ()


@dataclass(frozen=True)
class Done:
    """It is rolled out, with these pods."""

    pods: list[Thing]


@dataclass(frozen=True)
class Subject:
    """What a verdict is about: a pod or a ReplicaSet, and of a pod perhaps a container, or its run before this."""

    kind: str
    name: str
    uid: str
    container: str = ""
    previous: bool = False


@dataclass(frozen=True)
class Waiting:
    """It is not there yet."""

    words: str
    subject: Subject | None = None
    #: What the container's log may say better; the words are then for a log that says nothing.
    in_log: bool = False
    before: str = ""


@dataclass(frozen=True)
class Problem:
    """It can't get there. `what` goes on after its name; `remedy` is a sentence."""

    what: str
    remedy: str
    subject: Subject | None = None


Verdict = Done | Waiting | Problem


@dataclass(frozen=True)
class Container:
    """A container of a pod: its part of the specification and of the status."""

    spec: Thing
    status: Thing
    init: bool

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return str(self.spec["name"])

    @property
    def title(self) -> str:
        """What to call it."""
        return f"{'init container' if self.init else 'container'} {self.name}"

    @property
    def keeps_running(self) -> bool:
        """Whether it has to run as long as the pod does."""
        return not self.init or self.spec.get("restartPolicy") == "Always"

    def state(self, kind: str) -> dict[str, Any] | None:
        """The details, if that is what it is: waiting, running, terminated."""
        found = (self.status.get("state") or {}).get(kind)
        return None if found is None else dict(found)

    @property
    def finished(self) -> bool:
        """Whether the pod's next container may begin, or this one serves."""
        if not self.keeps_running:
            return (self.state("terminated") or {}).get("exitCode") == 0
        if self.init:
            return bool(self.status.get("started"))
        return bool(self.status.get("ready"))


def containers(pod: Thing) -> Iterator[Container]:
    """A pod's containers in the order in which they start."""
    for key, statuses, init in (
        ("initContainers", "initContainerStatuses", True),
        ("containers", "containerStatuses", False),
    ):
        found = {status["name"]: status for status in pod["status"].get(statuses) or []}
        for spec in pod["spec"].get(key) or []:
            yield Container(spec, found.get(spec["name"], {}), init)


def selector(deployment: Thing) -> str:
    """The labels of its pods, as the API takes them."""
    wanted = deployment["spec"]["selector"]
    parts = [f"{key}={value}" for key, value in (wanted.get("matchLabels") or {}).items()]
    for rule in wanted.get("matchExpressions") or []:
        values = ",".join(rule.get("values") or [])
        parts.append(
            {
                "In": f"{rule['key']} in ({values})",
                "NotIn": f"{rule['key']} notin ({values})",
                "Exists": rule["key"],
                "DoesNotExist": f"!{rule['key']}",
            }[rule["operator"]]
        )
    return ",".join(parts)


def owned(things: Sequence[Thing], owner: Thing) -> list[Thing]:
    """Those of the things that belong to the owner."""
    uid = owner["metadata"]["uid"]
    return [
        thing
        for thing in things
        if any(reference["uid"] == uid for reference in thing["metadata"].get("ownerReferences") or [])
    ]


def newest_set(view: View) -> Thing | None:
    """The ReplicaSet that Kubernetes has made for the Deployment's present template."""

    def template(thing: Thing) -> dict[str, Any]:
        whole = thing["spec"]["template"]
        metadata = dict(whole.get("metadata") or {})
        labels = dict(metadata.get("labels") or {})
        labels.pop("pod-template-hash", None)
        return {**whole, "metadata": {**metadata, "labels": labels}}

    wanted = template(view.deployment)
    same = [one for one in owned(view.replica_sets, view.deployment) if template(one) == wanted]
    # Kubernetes, too, takes the oldest if there are several.
    return min(same, key=lambda one: str(one["metadata"].get("creationTimestamp")), default=None)


def is_ending(pod: Thing) -> bool:
    """Whether a pod has been told to end."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_over(pod: Thing) -> bool:
    """Whether a pod has ended for good."""
    return pod["status"].get("phase") in ("Failed", "Succeeded")


def is_ready(pod: Thing) -> bool:
    """Whether a pod serves."""
    return condition(pod, "Ready").get("status") == "True"


def is_unschedulable(pod: Thing) -> bool:
    """Whether the scheduler finds no place for a pod."""
    return condition(pod, "PodScheduled").get("reason") == "Unschedulable"


def backs_off(pod: Thing) -> bool:
    """Whether Kubernetes waits before it tries again what has failed: for up to five minutes."""
    reasons = {(container.state("waiting") or {}).get("reason") for container in containers(pod)}
    return bool(reasons & (_IMAGE | {"CrashLoopBackOff"}))


def has_failed(pod: Thing) -> bool:
    """Whether it is what an earlier failure left: Kubernetes waits before it tries again, or is at it once more."""
    last = [
        (container.status.get("lastState") or {}).get("terminated") or {} for container in containers(pod)
    ]
    # Of "Unknown" the node's own restart was the cause.
    ended = any(one.get("exitCode") and one.get("reason") != "Unknown" for one in last)
    return backs_off(pod) or (ended and not is_ready(pod))


def condition(thing: Thing, kind: str) -> Thing:
    """One of its conditions; empty if it has none of that kind."""
    for one in thing.get("status", {}).get("conditions") or []:
        if one["type"] == kind:
            return dict(one)
    return {}


def wanted_replicas(deployment: Thing) -> int:
    """How many pods it is to have."""
    return int(deployment["spec"].get("replicas", 1))


def pods_of(view: View) -> list[Thing]:
    """All its pods, of whatever template."""
    return [pod for one in owned(view.replica_sets, view.deployment) for pod in owned(view.pods, one)]


def new_pods(view: View) -> list[Thing]:
    """The pods of the present template that are there to stay, by name."""
    newest = newest_set(view)
    if newest is None:
        return []
    return sorted(
        (pod for pod in owned(view.pods, newest) if not is_ending(pod)),
        key=lambda pod: str(pod["metadata"]["name"]),
    )


def old_pods(view: View) -> list[Thing]:
    """The pods that have to go: those of former templates, all that are ending, and all if none are wanted."""
    newest = newest_set(view) if wanted_replicas(view.deployment) else None
    return [
        pod
        for one in owned(view.replica_sets, view.deployment)
        for pod in owned(view.pods, one)
        if not is_over(pod) and (one is not newest or is_ending(pod))
    ]


def is_observed(deployment: Thing) -> bool:
    """Whether the status is about the present specification."""
    return int(deployment["status"].get("observedGeneration", 0)) >= int(deployment["metadata"]["generation"])


def is_done(view: View) -> bool:
    """Whether what is wanted is there, and nothing else."""
    wanted = wanted_replicas(view.deployment)
    if wanted == 0:
        return not old_pods(view)
    status = view.deployment["status"]
    counts = {
        int(status.get(key, 0))
        for key in ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    }
    return counts == {wanted} and all(is_ending(pod) for pod in old_pods(view))


@dataclass
class Watch:
    """One wait for a Deployment: judges it look by look, and knows what was so before."""

    unschedulable_grace: float = 20
    _restarts: dict[tuple[str, str], int] | None = field(default=None, init=False)
    _over: set[str] = field(default_factory=set, init=False)
    _late: bool = field(default=False, init=False)
    _since: dict[str, float] = field(default_factory=dict, init=False)

    def judge(self, view: View, now: float) -> Verdict:
        """What is to be said of it now."""
        if not is_observed(view.deployment):
            return Waiting("waiting until Kubernetes takes note of the change")
        if self._restarts is None:
            self._remember(view)
        if is_done(view):
            return Done([pod for pod in new_pods(view) if not is_over(pod)])
        return self._problem(view, now) or waiting(view)

    def _remember(self, view: View) -> None:
        """What went wrong before this rollout, or in a former life of pods that were once ready, is no news."""
        progress = condition(view.deployment, "Progressing")
        self._restarts = {}
        self._late = progress.get("reason") == "ProgressDeadlineExceeded"
        if progress.get("reason") != "NewReplicaSetAvailable":
            return
        for pod in view.pods:
            uid = pod["metadata"]["uid"]
            for container in containers(pod):
                self._restarts[uid, container.name] = container.status.get("restartCount", 0)
            if is_over(pod):
                self._over.add(uid)

    def _lasts(self, key: str, now: float, is_so: bool, grace: float) -> bool:
        """Whether something has been so for as long as it may."""
        if not is_so:
            self._since.pop(key, None)
            return False
        return now - self._since.setdefault(key, now) > grace

    def _problem(self, view: View, now: float) -> Problem | None:
        newest = newest_set(view)
        if newest is None or not newest["spec"].get("replicas", 1):
            return self._of_deployment(view, newest, now)
        pods = new_pods(view)
        for find in (self._of_containers, self._of_place, self._of_node, self._of_end):
            for pod in pods:
                if problem := find(view, pod, now):
                    return problem
        return self._of_deployment(view, newest, now)

    def _of_containers(self, view: View, pod: Thing, _now: float) -> Problem | None:
        if is_over(pod):
            return None
        for container in containers(pod):
            known = (self._restarts or {}).get((pod["metadata"]["uid"], container.name), 0)
            if problem := start_problem(pod, container) or end_problem(view, pod, container, known):
                return problem
        return None

    def _of_place(self, view: View, pod: Thing, now: float) -> Problem | None:
        grace = self.unschedulable_grace + (_ENDING if view.ending else 0)
        if not self._lasts(f"place {pod['metadata']['uid']}", now, is_unschedulable(pod), grace):
            return None
        said = one_line(condition(pod, "PodScheduled").get("message", ""))
        return Problem(
            f"finds no node for its pod {pod['metadata']['name']}. The scheduler says: {said}",
            remedies.remedy(said, remedies.NO_PLACE),
            subject(pod),
        )

    def _of_node(self, view: View, pod: Thing, now: float) -> Problem | None:
        event = node_trouble(view, pod)
        said = one_line(event.get("message", ""))
        hopeless = bool(_HOPELESS.search(said))
        if not self._lasts(f"node {pod['metadata']['uid']}", now, hopeless, self.unschedulable_grace):
            return None
        return Problem(
            f"can't start its pod {pod['metadata']['name']} on node {pod['spec'].get('nodeName')}: {said}",
            remedies.remedy(said, remedies.NODE),
            subject(pod),
        )

    def _of_end(self, _view: View, pod: Thing, _now: float) -> Problem | None:
        if not is_over(pod) or pod["metadata"]["uid"] in self._over:
            return None
        status = pod["status"]
        reason = status.get("reason") or status.get("phase")
        said = one_line(status.get("message") or "no reason given")
        return Problem(
            f"lost its pod {pod['metadata']['name']} ({reason}): {said}",
            remedies.remedy(f"{reason} {said}", remedies.LOST),
            subject(pod),
        )

    def _of_deployment(self, view: View, newest: Thing | None, now: float) -> Problem | None:
        if view.deployment["spec"].get("paused") and newest is None:
            return Problem("is paused: Kubernetes makes no new pods of it", remedies.PAUSED)
        refusal = condition(view.deployment, "ReplicaFailure")
        said = one_line(refusal.get("message", ""))
        # A new namespace has its service account a moment later.
        grace = self.unschedulable_grace if "service account" in said else -1
        refused = refusal.get("status") == "True"
        if self._lasts("refusal", now, refused, grace):
            about = subject(newest, "replicaset") if newest else None
            return Problem(
                f"gets no pods: Kubernetes refuses to make them: {said}",
                remedies.remedy(said, remedies.REFUSED),
                about,
            )
        late = condition(view.deployment, "Progressing").get("reason") == "ProgressDeadlineExceeded"
        if late and not self._late:
            limit = view.deployment["spec"].get("progressDeadlineSeconds", 600)
            return late_problem(waiting(view), f"the {limit} s of its progressDeadlineSeconds")
        self._late = late
        return None


def late_problem(last: Waiting, limit: str, doing: str = "") -> Problem:
    """The time is over; `doing` is what it was still at, if its log says more of that."""
    return Problem(
        f"is not ready within {limit}. It was still: {doing or last.words}", remedies.LATE, last.subject
    )


def subject(thing: Thing, kind: str = "pod", container: str = "", previous: bool = False) -> Subject:
    """A pod or a ReplicaSet, to be asked about."""
    return Subject(kind, thing["metadata"]["name"], thing["metadata"]["uid"], container, previous)


def start_problem(pod: Thing, container: Container) -> Problem | None:
    """Why a container can't be started."""
    state = container.state("waiting") or {}
    reason, said = str(state.get("reason")), one_line(state.get("message", ""))
    where = f"{container.title} of pod {pod['metadata']['name']}"
    because = f": {reason}{f': {said}' if said else ''}"
    if reason in _IMAGE:
        return Problem(
            f"has no image {container.spec.get('image')} for {where}{because}",
            remedies.remedy(f"{reason} {said}", remedies.NO_IMAGE),
            subject(pod),
        )
    if reason == "CreateContainerConfigError":
        return Problem(f"can't set up {where}{because}", remedies.NO_CONFIGURATION, subject(pod))
    if reason in _CREATION:
        return Problem(f"can't start {where}{because}", remedies.NO_CREATION, subject(pod))
    return None


def end_problem(view: View, pod: Thing, container: Container, known_restarts: int) -> Problem | None:
    """Why a container that should run has ended."""
    ended = ending(container, known_restarts)
    if ended is None:
        return None
    # Its present log is that of the run that ended, unless it runs anew or waits for that.
    about = subject(
        pod, container=container.name, previous=bool(ended) and container.state("terminated") is None
    )
    where = f"{container.title} of pod {pod['metadata']['name']}"
    limit = ((container.spec.get("resources") or {}).get("limits") or {}).get("memory")
    if ended.get("reason") == "OOMKilled":
        within = f"its limit of {limit}" if limit else "the node has"
        return Problem(
            f"ran out of memory: {where} was killed (OOMKilled), because it wanted more than {within}",
            remedies.NO_MEMORY if limit else remedies.NO_MEMORY_ON_NODE,
            about,
        )
    killed = [event for event in events_of(view, pod, container) if event.get("reason") == "Killing"]
    said = one_line((killed[-1] if killed else ended).get("message", ""))
    not_begun = ended.get("reason") in _NOT_BEGUN
    return Problem(
        f"does not stay up: {where} {how_it_ended(ended)}{f': {said}' if said else ''}",
        remedies.PROBE_KILLED if killed else remedies.NO_CREATION if not_begun else remedies.ENDED[1],
        about,
    )


def ending(container: Container, known_restarts: int) -> Thing | None:
    """How a container ended that should not have, since it had been restarted so many times; None if it did not."""

    def is_bad(ended: Thing) -> bool:
        # Unknown: the node itself was restarted, and with it all that ran there.
        if ended.get("reason") in ("Unknown", "ContainerStatusUnknown"):
            return False
        return bool(container.keeps_running or ended.get("exitCode") != 0)

    last: Thing = (container.status.get("lastState") or {}).get("terminated") or {}
    present = container.state("terminated")
    if present and is_bad(present):
        return present
    if (container.state("waiting") or {}).get("reason") == "CrashLoopBackOff":
        return last
    if container.status.get("restartCount", 0) > known_restarts and last and is_bad(last):
        return last
    return None


def how_it_ended(ended: Thing) -> str:
    """A container's end as words."""
    code = ended.get("exitCode")
    if code is None:
        return "ends again and again (CrashLoopBackOff)"
    if ended.get("reason") in _NOT_BEGUN:
        return f"could not be started (exit code {code})"
    if code == 0:
        return "ended with exit code 0, though it should keep running"
    number = ended.get("signal") or (code - 128 if code > 128 else 0)
    try:
        return f"was ended by {signal.Signals(number).name} (exit code {code})"
    except ValueError:
        return f"ended with exit code {code}"


def node_trouble(view: View, pod: Thing) -> Thing:
    """The event with which the node says that it can't start a pod; empty if its last word was another."""
    events = [event for event in view.events if event["involvedObject"]["uid"] == pod["metadata"]["uid"]]
    started = any(container.state("running") is not None for container in containers(pod))
    if not events or started:
        return {}
    last = events[-1]
    return (
        last if last.get("reason") in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox") else {}
    )


def waiting(view: View) -> Waiting:
    """What it is doing, in words: of several pods, the one that has farthest to go."""
    wanted = wanted_replicas(view.deployment)
    newest = newest_set(view)
    old = old_pods(view)
    pods = [pod for pod in new_pods(view) if not is_over(pod)]
    if old and (not pods or wanted == 0):
        names = ", ".join(pod["metadata"]["name"] for pod in old)
        return Waiting(f"waiting for old pods to end ({names})", subject(old[0]))
    if not pods:
        about = subject(newest, "replicaset") if newest else None
        return Waiting("waiting for its pods to be made", about)
    ready = sum(map(is_ready, pods))
    counted = f"{ready} of {wanted} ready"
    late = [pod for pod in pods if not is_ready(pod)]
    if not late:
        names = ", ".join(pod["metadata"]["name"] for pod in old)
        rest = f"; waiting for old pods to end ({names})" if old and ready >= wanted else ""
        return Waiting(f"{counted}{rest}", subject((old or pods)[0]))
    _, found = min((stage(view, pod) for pod in late), key=lambda one: one[0])
    if wanted == 1:
        return found
    return Waiting(f"{counted}; {found.words}", found.subject, found.in_log, f"{counted}; {found.before}")


def stage(view: View, pod: Thing) -> tuple[int, Waiting]:
    """How far a pod is, and what it is doing."""
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "True":
        said = one_line(scheduled.get("message", ""))
        ends = f"; still ending: {', '.join(view.ending)}" if view.ending else ""
        why = f" ({said}{ends})" if said else ""
        return 0, Waiting(f"waiting to be scheduled{why}", subject(pod))
    for container in containers(pod):
        if container.finished:
            continue
        title = f"{container.title}: " if container.init else ""
        about = subject(pod, container=container.name)
        if container.state("running") is not None:
            return 2, Waiting(f"{title}{until_ready(view, pod, container)}", about, in_log=True, before=title)
        return 1, Waiting(creation(view, pod, container), about)
    return 3, Waiting("waiting until it is ready", subject(pod))


def events_of(view: View, pod: Thing, container: Container) -> list[Thing]:
    """What happened to one container; the newest last."""
    path = f"spec.{'initContainers' if container.init else 'containers'}{{{container.name}}}"
    return [
        event
        for event in view.events
        if event["involvedObject"]["uid"] == pod["metadata"]["uid"]
        and event["involvedObject"].get("fieldPath") == path
    ]


def creation(view: View, pod: Thing, container: Container) -> str:
    """What a container that does not run yet is waiting for."""
    if trouble := node_trouble(view, pod):
        return f"waiting for its node ({trouble['reason']}: {one_line(trouble.get('message', ''))})"
    events = events_of(view, pod, container)
    if events and events[-1].get("reason") == "Pulling":
        return f"pulling image {container.spec.get('image')}"
    return f"starting the {container.title if container.init else 'container'}"


def until_ready(view: View, pod: Thing, container: Container) -> str:
    """What a running container's probe says."""
    if container.init and not container.keeps_running:
        return "running"
    said = [event for event in events_of(view, pod, container) if event.get("reason") == "Unhealthy"]
    probe = f" (probe: {short_probe(said[-1].get('message', ''))})" if said else ""
    return f"waiting until it is ready{probe}"


def short_probe(message: str) -> str:
    """Why a probe failed, in a few words."""
    if status := re.search(r"statuscode: (\d+)", message):
        return f"answers {status[1]}"
    if "connection refused" in message:
        return "connection refused"
    if "deadline exceeded" in message or "timed out" in message:
        return "no answer in time"
    return one_line(message.partition("probe failed: ")[2] or message)[:60]


def words(verdict: Waiting, log: Sequence[str], phases: Mapping[str, str]) -> str:
    """What to show: the phase that the log names, or its last line, or what the probe says.

    A probe that gets an answer knows more than a line that names no phase.
    """
    lines = [line for line in (_COLOURS.sub("", line).strip() for line in log) if line]
    if not verdict.in_log or not lines:
        return verdict.words
    said = readiness.phase(lines, phases)
    asked = "probe: " in verdict.words and "connection refused" not in verdict.words
    if said not in phases.values() and asked:
        return verdict.words
    return f"{verdict.before}{said}"


def one_line(text: str) -> str:
    """A message of Kubernetes as one line, without noise, and not without end."""
    line = _NOISE.sub("", " ".join(text.split()))
    return line if len(line) <= 600 else f"{line[:600]} ..."


def event_lines(events: Sequence[Thing]) -> list[str]:
    """The events as lines; of those that differ only in a name, the last."""
    lines: dict[str, str] = {}
    for event in events:
        line = f"{event.get('reason')}: {one_line(event.get('message', ''))}"
        key = re.sub(r'"[^"]*"|\(combined from similar events\): ', "", line)
        lines.pop(key, None)
        lines[key] = line.replace("(combined from similar events): ", "")
    return list(lines.values())


def report(
    title: str,
    problem: Problem,
    events: Sequence[Thing],
    log: Sequence[str],
    commands: Mapping[str, Sequence[str]],
) -> str:
    """The message of a failure: what is wrong, what shows it, what to do; commands by what they are for."""
    about = problem.subject
    parts = [f"{title} {problem.what.rstrip('.')}."]
    if events:
        parts.append(f"Last events of {about.kind} {about.name}:" if about else "Last events:")
        parts += [f"  {line}" for line in event_lines(events)[-5:]]
    if about and about.container:
        run = "Before it was restarted, container" if about.previous else "Container"
        lines = [_COLOURS.sub("", line) for line in log]
        title = f"{run} {about.container} printed last:"
        parts += [title, *(f"  {line}" for line in lines or ["(it printed nothing)"])]
    known = remedies.remedy("\n".join(log), remedies.ENDED)
    parts.append(f"What to do: {known if problem.remedy == remedies.ENDED[1] else problem.remedy}")
    for purpose, typed in commands.items():
        parts += [f"{purpose}:", *(f"  {line}" for line in typed)]
    return "\n".join(parts)
