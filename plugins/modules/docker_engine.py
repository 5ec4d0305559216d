#!/usr/bin/python
"""Module docker_engine: the host's Docker engine, and what a restart of it would end."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_engine
short_description: Look at the Docker engine, its runtimes and its containers
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Changes nothing.
  - What is wrong is told in sentences for the user; it does not fail.
options:
  home:
    description: The installation's folder. Containers that carry it in the label C(roundhouse.home) are ours.
    type: path
    required: true
attributes:
  check_mode:
    description: It only looks.
    support: full
"""

EXAMPLES = r"""
- name: Look at Docker
  roundhouse.llm.docker_engine:
    home: /srv/roundhouse
"""

RETURN = r"""
state:
  description: C(ready), C(missing), C(down) or C(denied).
  type: str
  returned: always
problems:
  description: Sentences that say why it can't be used, or can't be configured.
  type: list
  elements: str
  returned: always
runtimes:
  description: The runtimes that it knows.
  type: list
  elements: str
  returned: always
live_restore:
  description: Whether containers live on while it is restarted.
  type: bool
  returned: always
desktop:
  description: Whether it is Docker Desktop.
  type: bool
  returned: always
containers:
  description: The running containers that are not ours, each as NAME (IMAGE).
  type: list
  elements: str
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import docker_engine, job, k3d


def look(home: str) -> dict[str, Any]:
    """The engine as it is."""
    engine = k3d.engine()
    nothing: dict[str, Any] = {
        "runtimes": [],
        "live_restore": False,
        "desktop": False,
        "containers": [],
    }
    if engine.state != "ready":
        return {"state": engine.state, "problems": [engine.message], **nothing}
    try:
        found = docker_engine.look()
        containers = docker_engine.running_foreign(home)
    except job.JobError as error:
        return {"state": "down", "problems": [str(error)], **nothing}
    return {
        "state": "ready",
        "problems": list(found.problems),
        "runtimes": list(found.runtimes),
        "live_restore": found.live_restore,
        "desktop": found.desktop,
        "containers": containers,
    }


def main() -> None:
    """Look, tell Ansible."""
    module = AnsibleModule(
        argument_spec={"home": {"type": "path", "required": True}}, supports_check_mode=True
    )
    module.exit_json(changed=False, **look(module.params["home"]))


if __name__ == "__main__":
    main()
