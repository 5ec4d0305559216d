#!/usr/bin/python
"""Module gpus_offered: nodes of a Kubernetes cluster that offer NVIDIA GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpus_offered
short_description: Wait until the nodes of a cluster offer NVIDIA GPUs
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Waits until NVIDIA's device plugin of a given name is rolled out, and the nodes have counted what it offers.
  - Shows every 5 seconds what it is doing.
  - Fails at once, with the plugin's log, the events and what to do, if it can't get there.
  - Without a name it only looks whether any node offers a GPU, and fails if none does.
  - Pods that an earlier failure left waiting are deleted first, so that Kubernetes tries at once. Nothing else is
    changed.
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
    description: The namespace of the plugin's DaemonSet.
    type: str
    default: kube-system
  name:
    description: The name of the plugin's DaemonSet; empty if it is not ours.
    type: str
    default: ''
  wanted:
    description: How many C(nvidia.com/gpu) all nodes together are to offer.
    type: int
    default: 1
  timeout:
    description: Seconds it may take, pulling the image included.
    type: float
    default: 300
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
- name: Wait until pods can have a share of the GPU
  roundhouse.llm.gpus_offered:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    name: nvidia-device-plugin
    wanted: 2
"""

RETURN = r"""
gpus:
  description: How many each node offers, by the node's name; nothing if this user may not see the nodes.
  type: dict
  returned: success
  sample: {k3d-roundhouse-server-0: 2}
seconds:
  description: Seconds waited.
  type: float
  returned: if O(name) is given
  sample: 9.4
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, gpu_nodes, job


def main() -> None:
    """Read the arguments, wait, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "context": {"type": "str"},
            "namespace": {"type": "str", "default": "kube-system"},
            "name": {"type": "str", "default": ""},
            "wanted": {"type": "int", "default": 1},
            "timeout": {"type": "float", "default": 300},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode and given["name"]:
        module.exit_json(changed=False, gpus={})
    access = cluster_api.Access(given["kubeconfig"], given["context"], given["namespace"])

    def work(progress: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access, given["job"]) as cluster:
            if not given["name"]:
                return {"changed": False, **gpu_nodes.look_once(access, cluster, given["wanted"])}
            wait = gpu_nodes.Wait(access, given["name"], given["wanted"], given["timeout"])
            return {"changed": False, **wait.run(cluster, progress)}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
