#!/usr/bin/python
"""Module cluster_programs: what of ours is in a cluster, started, restarted, stopped or deleted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_programs
short_description: Start, restart, stop or delete what of ours is in a cluster
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Works on the Deployments that carry our labels. They start in their order, each ready before the next, and stop the
    other way round. Stopped means without pods; start brings back as many as there were.
  - Deletes nothing that does not carry our labels.
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
  state:
    description: What is wanted.
    type: str
    choices: [started, restarted, stopped, absent]
    required: true
  only:
    description: The one program that this is about; empty for all. Not for state absent.
    type: str
    default: ''
  component:
    description: With state absent, the part that this is about; then only what of it is not in keep is deleted.
    type: str
    choices: [engine, gateway]
  keep:
    description: What of the component stays, as KIND NAME.
    type: list
    elements: str
    default: []
  purge:
    description: With state absent, whether the claims with weights are deleted, too.
    type: bool
    default: false
  timeout:
    description: Seconds that each may take to start or to end.
    type: float
    default: 1800
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says what would be touched.
    support: full
"""

EXAMPLES = r"""
- name: Restart the gateway
  roundhouse.llm.cluster_programs:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    namespace: roundhouse
    state: restarted
    only: gateway
"""

RETURN = r"""
names:
  description: What was touched.
  type: list
  elements: str
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, cluster_changes, job


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            **cluster_api.ARGUMENTS,
            "state": {
                "type": "str",
                "choices": ["started", "restarted", "stopped", "absent"],
                "required": True,
            },
            "only": {"type": "str", "default": ""},
            "component": {"type": "str", "choices": ["engine", "gateway"]},
            "keep": {"type": "list", "elements": "str", "default": []},
            "purge": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 1800},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    access = cluster_api.access(given)

    def work(progress: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access, given["job"]) as cluster:
            changes = cluster_changes.Changes(
                cluster, access, given["timeout"], progress, dry=module.check_mode
            )
            match given["state"]:
                case "absent" if given["component"]:
                    names = changes.prune(given["component"], given["keep"])
                case "absent":
                    names = changes.remove(purge=given["purge"])
                case "stopped":
                    names = changes.stop(given["only"])
                case state:
                    names = changes.start(given["only"], anew=state == "restarted")
        return {"changed": bool(names), "names": names}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
