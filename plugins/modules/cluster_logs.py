#!/usr/bin/python
"""Module cluster_logs: the last log lines of what is ours in a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_logs
short_description: Read the last log lines of one or all of our pods
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Reads the logs of the pods of our Deployments; of a container that was restarted, those of the run before, too.
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
  only:
    description: The one program that this is about; empty for all.
    type: str
    default: ''
  lines:
    description: How many lines of each.
    type: int
    default: 20
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Read
  roundhouse.llm.cluster_logs:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    namespace: roundhouse
"""

RETURN = r"""
text:
  description: The lines, each pod's below its name, and how to see more.
  type: str
  returned: success
"""

import shlex
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    cluster_api,
    cluster_programs,
    job,
    rollouts,
)


def read(cluster: cluster_api.Cluster, access: cluster_api.Access, only: str, count: int) -> Iterator[str]:
    """Yield the lines."""
    where = f"namespace {access.namespace} of context {access.context}"
    for deployment in cluster_programs.chosen(cluster.deployments(cluster_programs.OURS), only, where):
        name = deployment["metadata"]["name"]
        pods = cluster.pods(rollouts.selector(deployment))
        if not pods:
            yield f"--- {name}: it has no pods"
        for pod in pods:
            pod_name = pod["metadata"]["name"]
            more = shlex.join(["kubectl", *access.options(), "logs", pod_name])
            for container in rollouts.containers(pod):
                for previous in (True, False) if container.status.get("restartCount") else (False,):
                    lines = cluster.log(pod_name, container.name, count, previous=previous)
                    if not lines and (container.init or previous):
                        continue
                    run = ", the run before" if previous else ""
                    yield f"--- {name}: {container.name} of pod {pod_name}{run} (more: {more})"
                    yield from lines or ["(nothing was printed)"]


def main() -> None:
    """Read the arguments, read the logs, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            **cluster_api.ARGUMENTS,
            "only": {"type": "str", "default": ""},
            "lines": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    given = module.params
    access = cluster_api.access(given)

    def work(_: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access) as cluster:
            return {
                "changed": False,
                "text": "\n".join(read(cluster, access, given["only"], given["lines"])),
            }

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
