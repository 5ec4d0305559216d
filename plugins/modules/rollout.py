#!/usr/bin/python
"""Module rollout: a Kubernetes Deployment, rolled out and ready."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout
short_description: Wait until a Kubernetes Deployment is rolled out
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Waits until all pods of a Deployment are of its present description, ready and available, and no others are left.
  - Shows every 5 seconds what they are doing.
  - Fails at once, with the events, the last log lines and what to do, if it can't get there.
  - Pods that an earlier failure left waiting are deleted first, so that Kubernetes tries at once. Nothing else is
    changed; the task that applied the Deployment says whether anything was.
requirements:
  - kubernetes (Python package) on the host
options:
  kubeconfig:
    description: The kubeconfig of the cluster.
    type: path
    required: true
  context:
    description: Which of its contexts. The current one if not given.
    type: str
  namespace:
    description: The Deployment's namespace.
    type: str
    required: true
  name:
    description: The Deployment's name.
    type: str
    required: true
  timeout:
    description: Seconds it may take.
    type: float
    default: 1800
  phases:
    description: Words of the container's log, and what to say when they came last.
    type: dict
    default: {}
  unschedulable_grace:
    description:
      - Seconds for which a pod may find no node, or a node what a pod needs.
      - Pods that are ending in the namespace get two minutes more to make room.
      - A cluster that adds nodes when they are needed takes minutes for it.
    type: float
    default: 20
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Does not wait.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Wait until the engine serves
  roundhouse.llm.rollout:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    namespace: roundhouse
    name: vllm-llama-32-1b
    timeout: 1800
    phases:
      Starting to load model: loading weights
"""

RETURN = r"""
pods:
  description: The pods' names.
  type: list
  elements: str
  returned: success
  sample: [vllm-llama-32-1b-5d8f6c7b9-x2x4k]
nodes:
  description: The names of the nodes they run on.
  type: list
  elements: str
  returned: success
  sample: [k3d-roundhouse-server-0]
image_ids:
  description: The identities of the images that their containers run.
  type: list
  elements: str
  returned: success
  sample: ["docker.io/vllm/vllm-openai@sha256:6a3f..."]
seconds:
  description: Seconds waited.
  type: float
  returned: success
  sample: 84.2
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, job, rollout_wait


def main() -> None:
    """Read the arguments, wait, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "context": {"type": "str"},
            "namespace": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "timeout": {"type": "float", "default": 1800},
            "phases": {"type": "dict", "default": {}},
            "unschedulable_grace": {"type": "float", "default": 20},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False)
    access = cluster_api.Access(given["kubeconfig"], given["context"], given["namespace"])
    wait = rollout_wait.Wait(
        access, given["name"], given["timeout"], given["phases"], given["unschedulable_grace"]
    )

    def work(progress: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access, given["job"]) as cluster:
            return wait.run(cluster, progress)

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
