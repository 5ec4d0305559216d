#!/usr/bin/python
"""Module images_needed: which container images a stack needs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images_needed
short_description: List the container images that a stack needs
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Lists the images of the engines and of the gateway, and on platform k3d those of the cluster, too.
  - Tells which of them the host's Docker has. Changes nothing.
options:
  platform:
    description: Where the stack runs.
    type: str
    choices: [local, k3d, kubernetes]
    required: true
  deployments:
    description: The deployments of the resolved catalog.
    type: list
    elements: dict
    required: true
  gateway:
    description: The gateway's image; empty if it is not known.
    type: str
    default: ''
  node:
    description: Platform k3d. The image of the cluster's node.
    type: str
    default: ''
  tools:
    description: Platform k3d. The image of k3d's helper.
    type: str
    default: ''
  system:
    description: Platform k3d. What k3s itself pulls, by its release, which is part of the name of O(node).
    type: dict
    default: {}
  more:
    description: Further images, each with its C(name) and C(purpose).
    type: list
    elements: dict
    default: []
  cluster:
    description: Platform k3d. The cluster's name.
    type: str
    default: ''
  home:
    description: Platform k3d. The installation's folder, which the cluster carries in a label.
    type: path
attributes:
  check_mode:
    description: It only looks.
    support: full
"""

EXAMPLES = r"""
- name: List the images of a stack in a cluster
  roundhouse.llm.images_needed:
    platform: kubernetes
    deployments: "{{ catalog_resolved.deployments }}"
    gateway: registry.example.org/roundhouse-gateway:0.1.0
"""

RETURN = r"""
images:
  description:
    - The images. Each has C(name), C(purpose), and C(in_node), whether the node of a k3d cluster is to have it.
    - Those that the host's Docker has, have C(size), in bytes, and the same for people in C(there).
  type: list
  elements: dict
  returned: always
system_known:
  description: Whether O(system) has an entry for the release of O(node).
  type: bool
  returned: always
node_runs:
  description: Whether there is a k3d cluster of this installation that runs.
  type: bool
  returned: always
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import child, image_archives, job, k3d
from ansible_collections.roundhouse.llm.plugins.module_utils.image_archives import Image


def of_cluster(node: str, tools: str, system: Sequence[Image]) -> list[Image]:
    """What a k3d cluster is made of, and what its node pulls for itself."""
    return [
        Image(node, "the cluster's node", in_node=False),
        Image(tools, "k3d's helper, when it makes a cluster", in_node=False),
        *system,
    ]


def on_host(name: str) -> dict[str, Any]:
    """What the host's Docker has of an image."""
    size = image_archives.host_size(name)
    return {} if size is None else {"size": size, "there": child.megabytes(size)}


def runs(cluster: str, home: str) -> bool:
    """Whether a cluster of ours is there and runs."""
    found = k3d.find(cluster)
    return found.standing(home) is k3d.Standing.WHOLE and found.runs


def main() -> None:
    """Read the arguments, look, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "platform": {"type": "str", "choices": ["local", "k3d", "kubernetes"], "required": True},
            "deployments": {"type": "list", "elements": "dict", "required": True},
            "gateway": {"type": "str", "default": ""},
            "node": {"type": "str", "default": ""},
            "tools": {"type": "str", "default": ""},
            "system": {"type": "dict", "default": {}},
            "more": {"type": "list", "elements": "dict", "default": []},
            "cluster": {"type": "str", "default": ""},
            "home": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    system = image_archives.system_images(given["system"], given["node"])

    def work(_: job.Progress) -> dict[str, Any]:
        found = image_archives.needed(
            given["platform"],
            given["deployments"],
            given["gateway"],
            of_cluster(given["node"], given["tools"], system or []),
            [Image(entry["name"], entry.get("purpose", "images_more")) for entry in given["more"]],
        )
        ready = k3d.engine().state == "ready"
        return {
            "changed": False,
            "images": [{**asdict(image), **(on_host(image.name) if ready else {})} for image in found],
            "system_known": system is not None,
            "node_runs": ready and given["platform"] == "k3d" and runs(given["cluster"], given["home"]),
        }

    module.exit_json(**job.run(work, None))


if __name__ == "__main__":
    main()
