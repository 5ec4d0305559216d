#!/usr/bin/python
"""Module program_port: whether a program will be able to listen."""

from __future__ import annotations

DOCUMENTATION = r"""
module: program_port
short_description: Refuse a port that another process holds, before any work is done
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Fails and names the process that holds the port, unless it is the program itself. Changes nothing.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
  name:
    description: The program's name.
    type: str
    required: true
  labels:
    description: The program's labels; V(host), V(port) and V(port_setting) are read.
    type: dict
    required: true
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Look whether the gateway can listen
  roundhouse.llm.program_port:
    home: /srv/roundhouse
    name: gateway
    labels: {host: 127.0.0.1, port: 8080}
"""

RETURN = r"""
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, ports, supervisor


def main() -> None:
    """Read the arguments, look, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "labels": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    home = supervisor.Home(Path(module.params["home"]))
    wanted = supervisor.Program(module.params["name"], [], {}, module.params["labels"])

    def work(_: job.Progress) -> dict[str, Any]:
        running = supervisor.Supervisord(home).is_running(wanted.name)
        current = supervisor.read_specs(home).get(wanted.name) if running else None
        if ports.address(current) != ports.address(wanted):
            ports.refuse_taken(wanted)
        return {"changed": False}

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
