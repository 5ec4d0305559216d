#!/usr/bin/python
"""Module supervisord: the process supervisor of one installation, up or down."""

from __future__ import annotations

DOCUMENTATION = r"""
module: supervisord
short_description: Start or stop the supervisord of one installation
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Starts supervisord with a small, fixed environment, so that what it starts does not depend on who ran the playbook.
  - What an earlier supervisord left behind when it was killed is killed first, for it would hold ports and memory.
  - No program is started with it. The roles start theirs, in order.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
  python:
    description: Interpreter of the environment that has supervisor. Needed to start.
    type: path
  state:
    description: Whether it is to run. One that runs with an older configuration is started anew.
    type: str
    choices: [started, stopped]
    default: started
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether it would be started or stopped.
    support: full
"""

EXAMPLES = r"""
- name: Start supervisord
  roundhouse.llm.supervisord:
    home: /srv/roundhouse
    python: /srv/roundhouse/cache/environments/supervisor-1a2b3c/bin/python
"""

RETURN = r"""
killed:
  description: Processes that an earlier supervisord had left behind.
  type: list
  elements: str
  returned: when it was started
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import checksums, job, processes, supervisor

#: Seconds within which supervisord must answer, and be gone after its programs have ended.
_PATIENCE = 15

_KEPT = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "TZ", "TMPDIR", "OPENBLAS_CORETYPE")


def start(home: supervisor.Home, python: str) -> list[str]:
    """Start it and wait until it answers; returns what was killed before."""
    left = processes.kill_all(str(home.folder), old_session(home))
    killed = [f"{process.pid} ({process.program})" for process in left]
    home.socket.unlink(missing_ok=True)
    environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
    started = subprocess.run(
        [python, "-I", "-m", "supervisor.supervisord", "--configuration", str(home.config)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        check=False,
    )
    if started.returncode:
        raise job.JobError(f"supervisord can't start: {(started.stdout + started.stderr).strip()[-500:]}")
    until = time.monotonic() + _PATIENCE
    while not supervisor.Supervisord(home).is_up():
        if time.monotonic() > until:
            raise job.JobError(
                f"supervisord was started and does not answer within {_PATIENCE} s: "
                f"see {home.folder}/log/supervisord.log."
            )
        time.sleep(0.05)
    pid = supervisor.Supervisord(home).call("getPID")
    facts = {
        "config": checksums.sha256(home.config),
        "session": pid,
        "started": processes.started(pid),
        "boot": processes.boot(),
    }
    job.write_whole(record(home), json.dumps(facts))
    return killed


def record(home: supervisor.Home) -> Path:
    """The file that tells which supervisord was started last, and with which configuration."""
    return home.socket.with_name("supervisord.json")


def old_session(home: supervisor.Home) -> int | None:
    """The session of the supervisord that was started last; None if its number may be somebody else's by now."""
    facts = json.loads(supervisor.read_text(record(home)) or "{}")
    if facts.get("boot") != processes.boot():
        return None
    session = int(facts["session"])
    return session if processes.started(session) in (None, facts["started"]) else None


def stop(home: supervisor.Home, progress: job.Progress) -> None:
    """Stop all programs, the newest first, then supervisord itself; wait until both are gone."""
    daemon = supervisor.Supervisord(home)
    pid = daemon.call("getPID")
    infos = sorted(daemon.processes().values(), key=lambda info: -info["start"])
    for info in infos:
        if info["name"] != "reaper":
            daemon.stop(info["name"], progress)
    daemon.call("shutdown")
    until = time.monotonic() + _PATIENCE
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    processes.kill_all(str(home.folder), old_session(home))


def main() -> None:
    """Read the arguments, converge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "python": {"type": "path"},
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
        required_if=[("state", "started", ("python",))],
    )
    state = module.params["state"]
    home = supervisor.Home(Path(module.params["home"]))

    def work(progress: job.Progress) -> dict[str, Any]:
        home.check()
        up = supervisor.Supervisord(home).is_up()
        current = checksums.sha256(home.config) if home.config.exists() else ""
        facts = json.loads(supervisor.read_text(record(home)) or "{}")
        as_configured = up and facts.get("config") == current
        changed = not as_configured if state == "started" else up
        result: dict[str, Any] = {"changed": changed}
        if changed and not module.check_mode:
            if up:
                stop(home, progress)
            if state != "stopped":
                result["killed"] = start(home, module.params["python"])
        return result

    module.exit_json(**job.run(work, module.params["job"]))


if __name__ == "__main__":
    main()
