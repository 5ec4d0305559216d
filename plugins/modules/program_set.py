#!/usr/bin/python
"""Module program_set: which programs of a kind there are, and the port of each."""

from __future__ import annotations

DOCUMENTATION = r"""
module: program_set
short_description: Keep the wanted programs, remove the others, give each its port
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Stops and removes the programs of a kind that are not wanted any more.
  - Gives each wanted program a port of the range. A port once given stays with its name until the program is removed.
    A new one is only given if nothing listens on it.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
  kind:
    description: The value of the label C(kind) of the programs that this is about.
    type: str
    required: true
  names:
    description: The wanted programs.
    type: list
    elements: str
    required: true
  host:
    description: The address that they listen on.
    type: str
    default: 127.0.0.1
  first_port:
    description: The range's first port.
    type: int
    required: true
  last_port:
    description: The range's last port.
    type: int
    required: true
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says what would be removed, and the ports that would be given.
    support: full
"""

EXAMPLES = r"""
- name: Keep two engines
  roundhouse.llm.program_set:
    home: /srv/roundhouse
    kind: engine
    names: [smollm2, gemma]
    first_port: 18100
    last_port: 18999
"""

RETURN = r"""
ports:
  description: The port of each wanted program.
  type: dict
  returned: always
removed:
  description: The programs that were removed.
  type: list
  elements: str
  returned: always
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, processes, supervisor


def assign(
    names: Sequence[str], known: Mapping[str, int], candidates: range, is_free: Callable[[int], bool]
) -> dict[str, int]:
    """The port of each name: the known one, else the lowest of the range that is nobody's and free."""
    ports = {name: known[name] for name in names if name in known and known[name] in candidates}
    for name in names:
        if name in ports:
            continue
        taken = {*ports.values(), *known.values()}
        port = next((port for port in candidates if port not in taken and is_free(port)), None)
        if port is None:
            raise job.JobError(
                f"No port is free for {name} in {candidates.start}-{candidates.stop - 1}: "
                "widen the range (engines_first_port, engines_last_port)."
            )
        ports[name] = port
    return {name: ports[name] for name in names}


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "kind": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "first_port": {"type": "int", "required": True},
            "last_port": {"type": "int", "required": True},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    home = supervisor.Home(Path(given["home"]))
    record = home.folder / "state" / f"{given['kind']}-ports.json"

    def work(progress: job.Progress) -> dict[str, Any]:
        known = json.loads(supervisor.read_text(record) or "{}")
        candidates = range(given["first_port"], given["last_port"] + 1)
        ports = assign(given["names"], known, candidates, lambda port: processes.is_free(given["host"], port))
        specs = supervisor.read_specs(home)
        surplus = [
            name
            for name, spec in specs.items()
            if spec.labels.get("kind") == given["kind"] and name not in ports
        ]
        if not module.check_mode:
            daemon = supervisor.Supervisord(home)
            for name in surplus:
                remove(home, daemon, name, progress)
            if ports != known:
                record.parent.mkdir(parents=True, exist_ok=True)
                job.write_whole(record, json.dumps(ports, indent=2) + "\n")
        return {"changed": bool(surplus) or ports != known, "ports": ports, "removed": surplus}

    module.exit_json(**job.run(work, given["job"]))


def remove(home: supervisor.Home, daemon: supervisor.Supervisord, name: str, progress: job.Progress) -> None:
    """Stop a program and take it off the disk. Its log stays: it may tell why it was removed."""
    daemon.stop(name, progress)
    if daemon.process(name) is not None:
        daemon.forget(name)
    for suffix in ("ini", "json"):
        (home.programs / f"{name}.{suffix}").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
