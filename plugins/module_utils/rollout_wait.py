"""Wait until a Deployment is rolled out, show what it is doing, and fail at once if it can't get there."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, job, rollouts

_LOG_LINES = 20

#: Log lines that are searched for the present phase.
_PHASE_LINES = 200

#: Seconds for which the API may be silent.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Wait:
    """What is waited for."""

    access: cluster_api.Access
    name: str
    timeout: float
    phases: Mapping[str, str] = field(default_factory=dict)
    unschedulable_grace: float = 20

    @property
    def title(self) -> str:
        """What to call it in a failure."""
        context = f", context {self.access.context}" if self.access.context else ""
        return f"Deployment {self.name} (namespace {self.access.namespace}{context})"

    def kubectl(self, *words: str) -> str:
        """A command to look further."""
        return shlex.join(["kubectl", *self.access.options(), *words])

    def run(self, cluster: cluster_api.Cluster, progress: job.Progress) -> dict[str, Any]:
        """Wait. Raises JobError if it can't get there, or not in time."""
        watch = rollouts.Watch(self.unschedulable_grace)
        begun = answered = time.monotonic()
        verdict: rollouts.Verdict = rollouts.Waiting("waiting for the first answer of the cluster")
        first = True
        while True:
            try:
                view = self.look(cluster)
                if first and self.try_again(cluster, view):
                    view = self.look(cluster)
                first = False
                verdict = watch.judge(view, time.monotonic())
                if isinstance(verdict, rollouts.Waiting):
                    progress.say(f"{self.name}: {self.words(cluster, verdict)}")
                answered = time.monotonic()
            except cluster_api.UnavailableError as error:
                self.endure(cluster.address, error, time.monotonic() - answered)
                progress.say(f"{self.name}: the cluster does not answer ({error})")
            if isinstance(verdict, rollouts.Done):
                return {"changed": False, **facts(verdict), "seconds": round(time.monotonic() - begun, 1)}
            if isinstance(verdict, rollouts.Problem):
                raise self.failure(cluster, verdict)
            waited = time.monotonic() - begun
            if waited > self.timeout:
                raise self.failure(cluster, self.late(cluster, verdict))
            time.sleep(min(2.0, 0.3 + waited / 20))

    def try_again(self, cluster: cluster_api.Cluster, view: rollouts.View) -> bool:
        """Delete pods that an earlier failure left waiting: else Kubernetes tries again in some minutes only."""
        late = [pod for pod in rollouts.new_pods(view) if rollouts.has_failed(pod)]
        for pod in late:
            cluster.delete("Pod", pod["metadata"]["name"])
        return bool(late)

    def look(self, cluster: cluster_api.Cluster) -> rollouts.View:
        """The Deployment and what belongs to it, now."""
        deployment = cluster.deployment(self.name)
        if deployment is None:
            raise job.JobError(
                f"There is no {self.title}: apply it first, or correct the name. To see those that are there:\n"
                f"  {self.kubectl('get', 'deployments')}"
            )
        labels = rollouts.selector(deployment)
        sets = cluster.replica_sets(labels)
        view = rollouts.View(deployment, sets, cluster.pods(labels))
        late = [pod for pod in rollouts.new_pods(view) if not rollouts.is_ready(pod)]
        ending = []
        if any(map(rollouts.is_unschedulable, late)):
            ending = [pod["metadata"]["name"] for pod in cluster.pods() if rollouts.is_ending(pod)]
        events = [event for pod in late for event in cluster.events(pod["metadata"]["uid"])]
        return rollouts.View(deployment, sets, view.pods, events, ending)

    def words(self, cluster: cluster_api.Cluster, verdict: rollouts.Waiting) -> str:
        """What it is doing, with what its log says of it."""
        about = verdict.subject
        if not verdict.in_log or about is None:
            return verdict.words
        return rollouts.words(verdict, cluster.log(about.name, about.container, _PHASE_LINES), self.phases)

    def endure(self, address: str, error: Exception, silence: float) -> None:
        """Raises JobError if the API has been silent for too long."""
        if silence > _PATIENCE:
            raise job.JobError(
                f"The Kubernetes API at {address} has not answered for {silence:.0f} s ({error}), so it is unknown "
                f"how {self.title} does. See whether the cluster runs, and is reached from this host:\n"
                f"  {self.kubectl('get', 'nodes')}"
            )

    def late(self, cluster: cluster_api.Cluster, verdict: rollouts.Waiting) -> rollouts.Problem:
        """The time is over."""
        try:
            doing = self.words(cluster, verdict)
        except cluster_api.UnavailableError:
            doing = verdict.words
        return rollouts.late_problem(verdict, f"{self.timeout:.0f} s", doing)

    def failure(self, cluster: cluster_api.Cluster, problem: rollouts.Problem) -> job.JobError:
        """A problem with all that shows it."""
        about = problem.subject
        events, log = evidence(cluster, about) if about else ([], [])
        return job.JobError(rollouts.report(self.title, problem, events, log, self.commands(problem)))

    def commands(self, problem: rollouts.Problem) -> dict[str, list[str]]:
        """What to type, by what it is for."""
        about = problem.subject
        if about is None:
            return {"To look further": [self.kubectl("describe", "deployment", self.name)]}
        look = [self.kubectl("describe", about.kind, about.name)]
        if about.container:
            previous = ["--previous"] if about.previous else []
            look.append(self.kubectl("logs", about.name, "--container", about.container, *previous))
        return {"To look further": look}


def evidence(
    cluster: cluster_api.Cluster, about: rollouts.Subject
) -> tuple[list[cluster_api.Thing], list[str]]:
    """Events and log lines, as far as the cluster gives them."""
    events, log = [], []
    try:
        events = cluster.events(about.uid)
        if about.container:
            log = cluster.log(about.name, about.container, _LOG_LINES, about.previous)
            # It may have been started anew since it was judged.
            log = log or cluster.log(about.name, about.container, _LOG_LINES, not about.previous)
    except (cluster_api.UnavailableError, job.JobError):
        pass
    return events, log


def facts(done: rollouts.Done) -> dict[str, list[str]]:
    """What the pods are, for the module's result."""
    statuses = [status for pod in done.pods for status in pod["status"].get("containerStatuses") or []]
    return {
        "pods": [pod["metadata"]["name"] for pod in done.pods],
        "nodes": sorted({pod["spec"]["nodeName"] for pod in done.pods}),
        "image_ids": sorted({status["imageID"] for status in statuses}),
    }
