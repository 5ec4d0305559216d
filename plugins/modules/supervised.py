#!/usr/bin/python
"""Module supervised: one program under supervisord, running and ready."""

from __future__ import annotations

DOCUMENTATION = r"""
module: supervised
short_description: Run a program under supervisord and wait until it is ready
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Describes the program to supervisord, starts it if it does not run, restarts it if its description changed.
  - Waits until it answers, and shows every 5 seconds what it is doing.
  - A program that dies, or is not ready in time, is stopped; the failure shows its last 20 log lines.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
  python:
    description: Interpreter that runs the launcher.
    type: path
    required: true
  name:
    description: The program's name.
    type: str
    required: true
  command:
    description: Command line, a list of words; no shell reads it.
    type: list
    elements: str
    required: true
  environment:
    description: The program's environment, besides a few variables of the machine. Readable by its user only.
    type: dict
    default: {}
  secrets:
    description: More of its environment, which is in no log, neither here nor on the host.
    type: dict
    default: {}
  labels:
    description: What the program is. Shown by C(program_status). V(port) is checked before it is started.
    type: dict
    default: {}
  inputs:
    description: What else it depends on (names and hashes). A change restarts it.
    type: dict
    default: {}
  stop_timeout:
    description: Seconds between SIGTERM and SIGKILL.
    type: float
    default: 30
  ready:
    description: When it is ready.
    type: dict
    options:
      url:
        description: Answers 2xx when it is.
        type: str
        required: true
      json:
        description: Keys and values that the answer, a JSON object, must have.
        type: dict
        default: {}
      timeout:
        description: Seconds it may take.
        type: float
        default: 60
  memory:
    description: Bytes of memory that it needs. It is refused if fewer are free.
    type: int
    default: 0
  phases:
    description: Words of its log, and what to say when they came last.
    type: dict
    default: {}
  order:
    description: Place among the programs when all of them are started.
    type: int
    default: 0
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether the program would be started or restarted.
    support: full
  diff_mode:
    description: Shows the change of the program's description, without the values of its environment.
    support: full
"""

EXAMPLES = r"""
- name: Run an engine
  roundhouse.llm.supervised:
    home: /srv/roundhouse
    python: /srv/roundhouse/cache/environments/supervisor-1a2b3c/bin/python
    name: smollm2
    command: [/opt/engine/bin/serve, --port, "18100"]
    labels: {kind: engine, port: 18100}
    ready: {url: "http://127.0.0.1:18100/health", timeout: 120}
"""

RETURN = r"""
pid:
  description: The program's process id.
  type: int
  returned: when it runs
seconds:
  description: Seconds until it was ready, if it was started.
  type: float
  returned: when it was started
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, ports, readiness, supervisor


def difference(old: supervisor.Program | None, new: supervisor.Program) -> dict[str, str]:
    """Ansible's diff of two descriptions; of the environment only the names."""

    def shown(program: supervisor.Program | None) -> str:
        if program is None:
            return ""
        hidden = dict.fromkeys(program.environment, "***")
        return replace(program, environment=hidden).spec()

    return {"before": shown(old), "after": shown(new), "before_header": new.name, "after_header": new.name}


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "labels": {"type": "dict", "default": {}},
            "inputs": {"type": "dict", "default": {}},
            "stop_timeout": {"type": "float", "default": 30},
            "ready": {
                "type": "dict",
                "options": {
                    "url": {"type": "str", "required": True},
                    "json": {"type": "dict", "default": {}},
                    "timeout": {"type": "float", "default": 60},
                },
            },
            "memory": {"type": "int", "default": 0},
            "phases": {"type": "dict", "default": {}},
            "order": {"type": "int", "default": 0},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    home = supervisor.Home(Path(given["home"]))
    program = supervisor.Program(
        name=given["name"],
        command=given["command"],
        environment={key: str(value) for key, value in (given["environment"] | given["secrets"]).items()},
        labels=given["labels"],
        stop_timeout=given["stop_timeout"],
        inputs={key: str(value) for key, value in given["inputs"].items()},
        ready=given["ready"] or {},
        phases=given["phases"],
        order=given["order"],
    )

    def work(progress: job.Progress) -> dict[str, Any]:
        old = supervisor.read_specs(home).get(program.name)
        text = supervisor.read_text(home.programs / f"{program.name}.ini")
        same = old == program and text == program.ini(home, given["python"])
        daemon = supervisor.Supervisord(home)
        running = daemon.is_running(program.name)
        result: dict[str, Any] = {"changed": not (same and running)}
        if not same:
            result["diff"] = difference(old, program)
        if module.check_mode:
            return result
        if not running or ports.address(old) != ports.address(program):
            ports.refuse_taken(program)
        if not running:
            readiness.refuse_scarce_memory(program.name, given["memory"])
        if not same:
            supervisor.write_program(home, program, given["python"])
        begun = time.monotonic()
        if readiness.bring_up(home, daemon, program, progress):
            result["changed"] = True
        if result["changed"]:
            result["seconds"] = round(time.monotonic() - begun, 1)
        info = daemon.process(program.name)
        return {**result, "pid": info["pid"] if info else None}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
