#!/usr/bin/python
"""Module routes_served: every pod of the gateway serves the wanted routing map, and goes by the wanted keys."""

from __future__ import annotations

DOCUMENTATION = r"""
module: routes_served
short_description: Wait until every pod of the gateway serves a revision of the routing map, or goes by the new keys
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - A changed ConfigMap or Secret reaches the files of a pod within a minute or so, and the gateway then reloads. A note
    on the pod lets its node look at once.
requirements:
  - kubernetes (Python package) on the host
options:
  kubeconfig:
    description: The kubeconfig of the cluster.
    type: path
    required: true
  context:
    description: Which of its contexts.
    type: str
    required: true
  namespace:
    description: Our namespace.
    type: str
    required: true
  revision:
    description: The revision.
    type: str
  access:
    description: What C(/readyz) says when it goes by the keys, as the module M(roundhouse.llm.access_keys) returns it.
    type: str
  timeout:
    description: Seconds it may take.
    type: float
    default: 180
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Does not wait.
    support: full
"""

EXAMPLES = r"""
- name: Wait
  roundhouse.llm.routes_served:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    namespace: roundhouse
    revision: 3f9a1c2b
"""

RETURN = r"""
pods:
  description: The pods that serve it.
  type: list
  elements: str
  returned: success
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    cluster_api,
    cluster_programs,
    job,
    rollouts,
)

_GATEWAY = f"{cluster_programs.OURS},app.kubernetes.io/component=gateway"
_PAUSE = 0.5


#: What each value of /readyz is, and the note on the pod.
_WORDS = {"revision": "revision {} of the routing map", "access": "the keys {}"}
_NOTES = {"revision": cluster_programs.REVISION, "access": cluster_programs.ACCESS}


def words(values: Mapping[str, Any]) -> str:
    """What a pod serves, or is to serve."""
    return " and ".join(_WORDS[name].format(value) for name, value in values.items())


def behind(cluster: cluster_api.Cluster, wanted: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The gateway's pods, and those of them that do not serve what is wanted, with what they say."""
    pods = [pod for pod in cluster.pods(_GATEWAY) if not (rollouts.is_ending(pod) or rollouts.is_over(pod))]
    late = {}
    for pod in pods:
        port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        try:
            ready = json.loads(cluster.get_from_pod(pod["metadata"]["name"], port, "readyz"))
        except (cluster_api.UnavailableError, ValueError) as error:
            late[pod["metadata"]["name"]] = f"does not answer ({error})"
            continue
        others = {name: ready.get(name) for name, value in wanted.items() if ready.get(name) != value}
        if others:
            late[pod["metadata"]["name"]] = f"serves {words(others)}"
    return [pod["metadata"]["name"] for pod in pods], late


def wait(
    cluster: cluster_api.Cluster, wanted: Mapping[str, str], timeout: float, progress: job.Progress
) -> dict[str, Any]:
    """Wait until none is behind. Raises JobError."""
    begun = time.monotonic()
    told: set[str] = set()
    while True:
        try:
            pods, late = behind(cluster, wanted)
        except cluster_api.UnavailableError as error:
            pods, late = [], {"the cluster": f"does not answer ({error})"}
        if pods and not late:
            return {"changed": False, "pods": pods}
        said = "; ".join(f"{pod} {what}" for pod, what in late.items()) or "the gateway has no pods"
        if time.monotonic() - begun > timeout:
            raise job.JobError(
                f"After {timeout:.0f} s not every pod of the gateway serves {words(wanted)}: {said}. "
                "Its log says why: make logs ONLY=gateway."
            )
        progress.say(f"waiting for {words(wanted)}: {said}")
        for pod in (late.keys() & set(pods)) - told:
            cluster.annotate_pod(pod, {_NOTES[name]: value for name, value in wanted.items()})
            told.add(pod)
        time.sleep(_PAUSE)


def main() -> None:
    """Read the arguments, wait, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            **cluster_api.ARGUMENTS,
            "revision": {"type": "str"},
            "access": {"type": "str"},
            "timeout": {"type": "float", "default": 180},
            "job": {"type": "path"},
        },
        required_one_of=[("revision", "access")],
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False, pods=[])
    access = cluster_api.access(given)
    wanted = {name: given[name] for name in _WORDS if given[name]}

    def work(progress: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access, given["job"]) as cluster:
            return wait(cluster, wanted, given["timeout"], progress)

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
