#!/usr/bin/python
"""Module cluster_foreign: which of the wanted objects are there already, and somebody else's."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_foreign
short_description: Tell which objects of a cluster have the names of ours, and are somebody else's
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Looks whether objects of the kinds and names of those that are to be applied are there without our labels.
  - Changes nothing.
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
  objects:
    description: The objects that are to be applied; of each, kind and metadata.name.
    type: list
    elements: dict
    required: true
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Look
  roundhouse.llm.cluster_foreign:
    kubeconfig: /srv/roundhouse/kubeconfig
    context: k3d-roundhouse
    namespace: roundhouse
    objects:
      - {kind: Service, metadata: {name: gateway}}
"""

RETURN = r"""
foreign:
  description: Those that are somebody else's, as KIND NAME.
  type: list
  elements: str
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import cluster_api, cluster_programs, job


def main() -> None:
    """Read the arguments, look, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            **cluster_api.ARGUMENTS,
            "objects": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    access = cluster_api.access(given)

    def work(_: job.Progress) -> dict[str, Any]:
        with cluster_api.connected(access) as cluster:
            return {
                "changed": False,
                "foreign": cluster.foreign(given["objects"], cluster_programs.OURS),
            }

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
