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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    job,
    local_http,
    ports,
    processes,
    supervisor,
)

_LOG_LINES = 20


@dataclass(frozen=True)
class Ready:
    """What a program answers when it is ready."""

    url: str
    json: Mapping[str, Any]
    timeout: float

    def missing(self) -> str | None:
        """What is still missing; None if it is ready."""
        try:
            if not self.json:
                local_http.get(self.url, timeout=25)
                return None
            found = local_http.get_json(self.url, timeout=25)
        except OSError as error:
            return f"{self.url} {error}"
        wrong = {key: found.get(key) for key, value in self.json.items() if found.get(key) != value}
        if wrong:
            note = f"; it says: {found['last_error']}" if found.get("last_error") else ""
            return f"{self.url} has {wrong} and not {dict(self.json)}{note}"
        return None


class Log:
    """A program's log from where it was when we began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def last(self, count: int) -> list[str]:
        """The last lines printed since."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                # A log that was rotated meanwhile is new from its beginning.
                start = self._start if size >= self._start else 0
                file.seek(max(start, size - 65536))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def await_ready(
    daemon: supervisor.Supervisord,
    name: str,
    ready: Ready,
    log: Log,
    progress: job.Progress,
    phases: Mapping[str, str],
) -> None:
    """Wait for it. Raises JobError, with the program stopped, if it dies or takes too long."""
    begun = time.monotonic()
    pid = None
    while True:
        info = daemon.process(name) or {"statename": "UNKNOWN", "pid": 0}
        died = info["statename"] in supervisor.DEAD or (pid and info["pid"] != pid)
        pid = info["pid"] or pid
        missing = "it died" if died else ready.missing()
        if missing is None:
            return
        waited = time.monotonic() - begun
        if died or waited > ready.timeout:
            daemon.stop(name, progress)
            what = (
                "died while it started" if died else f"was not ready within {ready.timeout:.0f} s ({missing})"
            )
            lines = log.last(_LOG_LINES)
            tail = "\n".join(f"  {line}" for line in lines) or "  (it printed nothing)"
            raise job.JobError(
                f"{name} {what} and was stopped. Its last {len(lines)} log lines:\n{tail}\n"
                f"The whole log: {log.path}",
                log=str(log.path),
            )
        progress.say(f"{name}: {phase(log.last(200), phases)}")
        time.sleep(min(0.5, 0.05 + waited / 20))


def phase(lines: Sequence[str], phases: Mapping[str, str]) -> str:
    """What a program is doing, from its log: the last phase that it named, else its last line."""
    for line in reversed(lines):
        for words, meaning in phases.items():
            if words in line:
                return meaning
    return f"starting: {lines[-1]}" if lines else "starting"


def refuse_scarce_memory(name: str, needed: int) -> None:
    """Raises JobError if less memory is free than a program needs, in bytes."""
    free, total = processes.memory()
    if needed > free:
        raise job.JobError(
            f"{name} needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} of {total / 1e9:.1f} GB are "
            "free: stop what else takes memory, take the deployment out of the stack, or choose a smaller model."
        )


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
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    home = supervisor.Home(Path(given["home"]))
    program = supervisor.Program(
        name=given["name"],
        command=given["command"],
        environment={key: str(value) for key, value in given["environment"].items()},
        labels=given["labels"],
        stop_timeout=given["stop_timeout"],
        inputs={key: str(value) for key, value in given["inputs"].items()},
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
            refuse_scarce_memory(program.name, given["memory"])
        if not same:
            supervisor.write_program(home, program, given["python"])
        log = Log(home.log(program.name))
        begun = time.monotonic()
        daemon.take_in(program.name, progress)
        if not daemon.is_running(program.name):
            daemon.call("startProcess", program.name, False)
            result["changed"] = True
        if given["ready"]:
            await_ready(daemon, program.name, Ready(**given["ready"]), log, progress, given["phases"])
        if result["changed"]:
            result["seconds"] = round(time.monotonic() - begun, 1)
        info = daemon.process(program.name)
        return {**result, "pid": info["pid"] if info else None}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
