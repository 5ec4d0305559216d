#!/usr/bin/python
"""Module programs: all programs of an installation, or one of them, up or down."""

from __future__ import annotations

DOCUMENTATION = r"""
module: programs
short_description: Start, stop or restart the programs that an installation has
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Starts programs as they were described last, in their order, each ready before the next.
  - Stopping lets requests in flight finish.
options:
  home:
    description: The installation's folder. Its supervisord must run.
    type: path
    required: true
  state:
    description: What is to be.
    type: str
    choices: [started, restarted, stopped]
    required: true
  only:
    description: The one program that this is about; empty for all.
    type: str
    default: ''
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether a program would be started or stopped.
    support: full
"""

EXAMPLES = r"""
- name: Restart one engine
  roundhouse.llm.programs:
    home: /srv/roundhouse
    state: restarted
    only: smollm2
"""

RETURN = r"""
names:
  description: The programs that were started or stopped.
  type: list
  elements: str
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, ports, readiness, supervisor


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["started", "restarted", "stopped"], "required": True},
            "only": {"type": "str", "default": ""},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    home = supervisor.Home(Path(given["home"]))

    def work(progress: job.Progress) -> dict[str, Any]:
        daemon = supervisor.Supervisord(home)
        touched = []
        for program in supervisor.chosen(home, given["only"]):
            running = daemon.is_running(program.name)
            stops = running and given["state"] != "started"
            starts = given["state"] == "restarted" or (given["state"] == "started" and not running)
            if not module.check_mode:
                if stops:
                    daemon.stop(program.name, progress)
                if starts:
                    ports.refuse_taken(program)
                    readiness.bring_up(home, daemon, program, progress)
            if stops or starts:
                touched.append(program.name)
        return {"changed": bool(touched), "names": touched}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
