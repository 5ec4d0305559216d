#!/usr/bin/python
"""Module k3d_binary: what a host has to make k3d clusters with."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3d_binary
short_description: Look for a Docker engine that answers, and for k3d
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Changes nothing.
  - Finds out whether a Docker engine answers the connecting user, and if not, what is wrong and what to do.
  - Finds the k3d of one version, on PATH or at a place of ours.
options:
  version:
    description: The version of k3d that is wanted, such as C(v5.9.0).
    type: str
    required: true
  place:
    description: Where k3d is kept if PATH has none of that version.
    type: path
    required: true
attributes:
  check_mode:
    description: It only looks.
    support: full
"""

EXAMPLES = r"""
- name: Look for Docker and k3d
  roundhouse.llm.k3d_binary:
    version: v5.9.0
    place: /srv/roundhouse/bin/k3d
"""

RETURN = r"""
docker:
  description: State of the engine (C(ready), C(missing), C(down) or C(denied)), and a sentence if it is not ready.
  type: dict
  returned: always
path:
  description: The k3d to use. It is of the wanted version, or O(place) if there is none.
  type: str
  returned: always
found:
  description: Whether there is a k3d of the wanted version.
  type: bool
  returned: always
"""

import shutil
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import k3d


def main() -> None:
    """Look, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "place": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    wanted, place = module.params["version"], module.params["place"]
    candidates = [path for path in (shutil.which("k3d"), place) if path]
    suitable = next((path for path in candidates if k3d.version_of(path) == wanted), None)
    module.exit_json(
        changed=False,
        docker=asdict(k3d.engine()),
        path=suitable or place,
        found=suitable is not None,
    )


if __name__ == "__main__":
    main()
