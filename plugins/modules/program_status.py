#!/usr/bin/python
"""Module program_status: what runs, where, since when, and how large it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: program_status
short_description: Tell the state of all programs of one installation
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Reads supervisord and /proc; changes nothing. An installation that is stopped or absent is an answer, too.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
attributes:
  check_mode:
    description: Reads only.
    support: full
"""

EXAMPLES = r"""
- name: Look
  roundhouse.llm.program_status:
    home: /srv/roundhouse
"""

RETURN = r"""
programs:
  description: Per program its name, labels, state, pid, uptime (seconds) and memory (bytes, of its whole group).
  type: list
  elements: dict
  returned: always
up:
  description: Whether supervisord answers.
  type: bool
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    access_keys,
    job,
    keys_store,
    local_http,
    processes,
    supervisor,
)


def look(home: supervisor.Home) -> dict[str, Any]:
    """The result."""
    specs = supervisor.read_specs(home)
    daemon = supervisor.Supervisord(home)
    up = daemon.is_up()
    infos = daemon.processes() if up else {}
    programs = []
    for name, spec in specs.items():
        info = infos.get(name, {"statename": "STOPPED", "pid": 0})
        running = info["statename"] in supervisor.RUNNING and info["pid"]
        programs.append(
            {
                "name": name,
                "labels": spec.labels,
                "state": info["statename"].lower(),
                "pid": info["pid"] if running else None,
                "uptime": info["now"] - info["start"] if running else None,
                "memory": processes.group_memory(info["pid"]) if running else None,
                "log": str(home.log(name)),
                "note": note(home, spec) if running else None,
            }
        )
    return {"changed": False, "up": up, "programs": programs}


def note(home: supervisor.Home, spec: supervisor.Program) -> str | None:
    """Of the gateway: the revision of the map that it serves."""
    if spec.labels.get("kind") != "gateway":
        return None
    key = keys_store.operator_of(home.config.parent / access_keys.KEYS_FILE)
    url = f"http://{spec.labels['host']}:{spec.labels['port']}/routes"
    try:
        routes = local_http.get_json(url, timeout=5, key=key)
    except OSError as error:
        return str(error)
    return f"revision {routes.get('revision')}"


def main() -> None:
    """Read the arguments, look, tell Ansible."""
    module = AnsibleModule(
        argument_spec={"home": {"type": "path", "required": True}}, supports_check_mode=True
    )
    home = supervisor.Home(Path(module.params["home"]))
    module.exit_json(**job.outcome(lambda _: look(home), job.Progress()))


if __name__ == "__main__":
    main()
