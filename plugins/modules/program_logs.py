#!/usr/bin/python
"""Module program_logs: the last lines of programs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: program_logs
short_description: Read the last log lines of all programs, or of one
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Reads the logs of one installation; changes nothing.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
  only:
    description: The one program that this is about; empty for all.
    type: str
    default: ''
  lines:
    description: How many lines of each.
    type: int
    default: 20
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Read
  roundhouse.llm.program_logs:
    home: /srv/roundhouse
"""

RETURN = r"""
text:
  description: Per program the path of its log and its last lines.
  type: str
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, readiness, supervisor


def main() -> None:
    """Read the arguments, read the logs, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "only": {"type": "str", "default": ""},
            "lines": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    home = supervisor.Home(Path(module.params["home"]))

    def work(_: job.Progress) -> dict[str, Any]:
        parts = []
        for program in supervisor.chosen(home, module.params["only"]):
            path = home.log(program.name)
            lines = readiness.Log(path, start=0).last(module.params["lines"]) or ["(nothing yet)"]
            parts.append("\n".join([f"{program.name}: {path}", *(f"  {line}" for line in lines)]))
        return {"changed": False, "text": "\n\n".join(parts)}

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
