#!/usr/bin/python
"""Module routes_served: every pod of the gateway serves the wanted routing map."""

from __future__ import annotations

DOCUMENTATION = r"""
module: routes_served
short_description: Wait until every pod of the gateway serves a revision of the routing map
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - A changed ConfigMap reaches the files of a pod within a minute or so, and the gateway then reloads. A note on the
    pod lets its node look at once.
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
    required: true
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


def behind(cluster: cluster_api.Cluster, revision: str) -> tuple[list[str], dict[str, str]]:
    """The gateway's pods, and those of them that do not serve the revision, with what they say."""
    pods = [pod for pod in cluster.pods(_GATEWAY) if not (rollouts.is_ending(pod) or rollouts.is_over(pod))]
    late = {}
    for pod in pods:
        port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        try:
            routes = json.loads(cluster.get_from_pod(pod["metadata"]["name"], port, "routes"))
        except (cluster_api.UnavailableError, ValueError) as error:
            late[pod["metadata"]["name"]] = f"does not answer ({error})"
            continue
        if routes.get("revision") != revision:
            said = f"; it says: {routes['last_error']}" if routes.get("last_error") else ""
            late[pod["metadata"]["name"]] = f"serves revision {routes.get('revision')}{said}"
    return [pod["metadata"]["name"] for pod in pods], late


def wait(
    cluster: cluster_api.Cluster, revision: str, timeout: float, progress: job.Progress
) -> dict[str, Any]:
    """Wait until none is behind. Raises JobError."""
    begun = time.monotonic()
    told: set[str] = set()
    while True:
        try:
            pods, late = behind(cluster, revision)
        except cluster_api.UnavailableError as error:
            pods, late = [], {"the cluster": f"does not answer ({error})"}
        if pods and not late:
            return {"changed": False, "pods": pods}
        words = "; ".join(f"{pod} {what}" for pod, what in late.items()) or "the gateway has no pods"
        if time.monotonic() - begun > timeout:
            raise job.JobError(
                f"After {timeout:.0f} s not every pod of the gateway serves revision {revision} of the routing map: "
                f"{words}. Its log says why: make logs ONLY=gateway."
            )
        progress.say(f"waiting for the new map: {words}")
        for pod in (late.keys() & set(pods)) - told:
            cluster.annotate_pod(pod, {cluster_programs.REVISION: revision})
            told.add(pod)
        time.sleep(_PAUSE)


def main() -> None:
    """Read the arguments, wait, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            **cluster_api.ARGUMENTS,
            "revision": {"type": "str", "required": True},
            "timeout": {"type": "float", "default": 180},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False, pods=[])
    access = cluster_api.access(given)

    def work(progress: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access, given["job"]) as cluster:
            return wait(cluster, given["revision"], given["timeout"], progress)

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
