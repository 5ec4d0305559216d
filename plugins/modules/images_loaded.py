#!/usr/bin/python
"""Module images_loaded: images of the host, in a k3d cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images_loaded
short_description: Bring images that the host's Docker has into a k3d cluster
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - A node of k3d has images of its own, which are gone when the cluster is made anew. What the host has already need
    not be pulled again, and what only the host has could not be.
  - Images that the host does not have are left to the node, which pulls them when a pod needs them.
options:
  binary:
    description: The k3d command.
    type: str
    required: true
  cluster:
    description: The cluster's name.
    type: str
    required: true
  images:
    description: The images, with their tags.
    type: list
    elements: str
    required: true
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether any would be brought.
    support: full
"""

EXAMPLES = r"""
- name: Bring the gateway's image into the cluster
  roundhouse.llm.images_loaded:
    binary: k3d
    cluster: roundhouse
    images: ["roundhouse-gateway:3f9a1c2b6d7e"]
"""

RETURN = r"""
loaded:
  description: The images that were (in check mode would be) brought.
  type: list
  elements: str
  returned: success
pulled:
  description: The images that the node has to pull.
  type: list
  elements: str
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import images, job


def main() -> None:
    """Read the arguments, bring the images, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "binary": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "images": {"type": "list", "elements": "str", "required": True},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work(progress: job.Progress) -> dict[str, Any]:
        node = f"k3d-{given['cluster']}-server-0"
        there = images.on_node(node)
        missing = [name for name in dict.fromkeys(given["images"]) if images.full_name(name) not in there]
        # What is saved and loaded loses its digest, so an image that is named by one has to be pulled.
        loaded = [name for name in missing if "@" not in name and images.on_host(name)]
        if loaded and not module.check_mode:
            images.load(given["binary"], given["cluster"], node, loaded, progress)
        return {
            "changed": bool(loaded),
            "loaded": loaded,
            "pulled": [name for name in missing if name not in loaded],
        }

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
