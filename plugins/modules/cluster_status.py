#!/usr/bin/python
"""Module cluster_status: what of ours runs in a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_status
short_description: Tell the state of everything of ours in a cluster
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Reads the Deployments of ours in a namespace, and their pods; changes nothing.
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
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Look
  roundhouse.llm.cluster_status:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    namespace: roundhouse
"""

RETURN = r"""
version:
  description: The release of Kubernetes.
  type: str
  returned: success
  sample: "1.34"
programs:
  description: Per Deployment its name, labels, state, ready pods, restarts, uptime (seconds), pods, and a note.
  type: list
  elements: dict
  returned: success
"""

import json
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    cluster_api,
    cluster_programs,
    job,
    keys_store,
    rollouts,
)


def look(cluster: cluster_api.Cluster) -> dict[str, Any]:
    """The result."""
    programs = []
    for deployment in cluster_programs.in_order(cluster.deployments(cluster_programs.OURS)):
        pods = cluster.pods(rollouts.selector(deployment))
        program = cluster_programs.describe(deployment, pods, datetime.now(UTC))
        if program["labels"]["kind"] == "gateway" and program["state"] == "running":
            program["note"] = note(cluster, program)
        programs.append(program)
    return {"changed": False, "version": cluster.version(), "programs": programs}


def note(cluster: cluster_api.Cluster, gateway: dict[str, Any]) -> str:
    """Of the gateway: the revision of the map that its first pod serves."""
    try:
        key = keys_store.operator_of_cluster(cluster)
        pod, port = gateway["serving"][0], gateway["labels"]["port"]
        routes = json.loads(cluster.get_from_pod(pod, port, "routes", key))
    except (cluster_api.UnavailableError, job.JobError, ValueError) as error:
        return str(error)
    return f"revision {routes.get('revision')}"


def main() -> None:
    """Read the arguments, look, tell Ansible."""
    module = AnsibleModule(
        argument_spec=cluster_api.ARGUMENTS,
        supports_check_mode=True,
    )
    access = cluster_api.access(module.params)

    def work(_: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access) as cluster:
            return look(cluster)

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
