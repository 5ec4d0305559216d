#!/usr/bin/python
"""Module run_lock: the file that says which run is changing an installation."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_lock
short_description: Keep two runs from changing one installation at the same time
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - The first run notes itself in a file of the installation; a second one fails and names the first.
  - A note whose run has ended counts for nothing, so it never needs to be taken away.
options:
  home:
    description: The installation's folder. It is made if it does not exist.
    type: path
    required: true
  controller:
    description: Set by the action plugin.
    type: str
  pid:
    description: Set by the action plugin.
    type: int
  started:
    description: Set by the action plugin.
    type: str
  take_from:
    description: Set by the action plugin.
    type: dict
attributes:
  check_mode:
    description: Looks whether another run has it.
    support: full
"""

EXAMPLES = r"""
- name: Keep others out
  roundhouse.llm.run_lock:
    home: /srv/roundhouse
"""

RETURN = r"""
file:
  description: The file.
  type: str
  returned: always
holder:
  description: The run that has the installation, if it is another one.
  type: dict
  returned: when there is one
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job


def main() -> None:
    """Read the arguments, look, write, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "controller": {"type": "str"},
            "pid": {"type": "int"},
            "started": {"type": "str"},
            "take_from": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    given = module.params
    home = Path(given["home"])
    path = home / "run.lock"
    mine = {key: given[key] for key in ("controller", "pid", "started")}

    def work(_: job.Progress) -> dict[str, Any]:
        if not home.is_absolute():
            raise job.JobError(f"roundhouse_home must be an absolute path, and is '{home}'.")
        if module.check_mode and not home.exists():
            return {"changed": True, "file": str(path)}
        created = not home.exists()
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(home, os.W_OK | os.X_OK):
            raise job.JobError(
                f"No permission to write to {home}: set roundhouse_home to a folder of your own, e.g. "
                "-e roundhouse_home=/srv/roundhouse, or change its owner."
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            holder = json.loads(text) if text.strip() else None
            who = {key: holder[key] for key in mine} if holder else None
            if holder and who != mine and holder != given["take_from"]:
                return {"changed": False, "file": str(path), "holder": holder}
            if who != mine and not module.check_mode:
                file.seek(0)
                file.truncate()
                json.dump({**mine, "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        return {"changed": created, "file": str(path)}

    module.exit_json(**job.outcome(work, job.Progress()))


if __name__ == "__main__":
    main()
