#!/usr/bin/python
"""Module python_env: a virtual environment in the cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_env
short_description: Make a virtual environment from exact pins, once
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Makes a virtual environment whose folder name carries the hash of its pins, its project and the host's Python.
  - A whole one is reused. One that was interrupted is made again. Two runs at once wait for each other.
  - Progress is shown at least every 5 seconds.
options:
  root:
    description: Folder that holds the environments.
    type: path
    required: true
  name:
    description: What the environment is for; the first part of its folder's name.
    type: str
    required: true
  requirements:
    description: Exact pins, as in a requirements file.
    type: str
    required: true
  project:
    description:
      - Folder of a Python project on the controller, installed after the pins, without its dependencies.
      - The pins must hold what builds it.
    type: path
  scarce:
    description: Pins that not every index has. They are looked for before anything is downloaded.
    type: list
    elements: str
    default: []
  python:
    description: Interpreter with pip that looks for the scarce pins.
    type: path
  index:
    description: A further package index.
    type: str
    default: ''
  only_look:
    description: Look for the scarce pins, unless the environment is whole; make nothing.
    type: bool
    default: false
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether the environment would be made.
    support: full
"""

EXAMPLES = r"""
- name: Make the supervisor's environment
  roundhouse.llm.python_env:
    root: /srv/roundhouse/cache/environments
    name: supervisor
    requirements: supervisor==4.3.0
"""

RETURN = r"""
folder:
  description: The environment.
  type: str
  returned: always
python:
  description: Its interpreter.
  type: str
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, pythons


def main() -> None:
    """Read the arguments, make the environment, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "requirements": {"type": "str", "required": True},
            "project": {"type": "path"},
            "scarce": {"type": "list", "elements": "str", "default": []},
            "python": {"type": "path"},
            "index": {"type": "str", "default": ""},
            "only_look": {"type": "bool", "default": False},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    project = module.params["project"]

    def work(progress: job.Progress) -> dict[str, Any]:
        pythons.check_python()
        wanted = pythons.environment(
            Path(module.params["root"]),
            name,
            module.params["requirements"],
            Path(project) if project else None,
        )
        facts = {"folder": str(wanted.folder), "python": str(wanted.python)}
        if wanted.is_whole:
            return {"changed": False, **facts}
        extra_index = ["--extra-index-url", module.params["index"]] if module.params["index"] else []
        if module.params["only_look"]:
            pins = module.params["scarce"]
            if pins and not module.check_mode:
                scratch = wanted.folder.parent / "look"
                pythons.check_scarce(module.params["python"], name, pins, extra_index, scratch, progress)
            return {"changed": False, **facts}
        if not module.check_mode:
            pythons.make(wanted, name, extra_index, progress)
        return {"changed": True, **facts}

    module.exit_json(**job.run(work, module.params["job"]))


if __name__ == "__main__":
    main()
