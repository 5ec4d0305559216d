#!/usr/bin/python
"""Module access_served: the gateway of an installation goes by the wanted keys."""

from __future__ import annotations

DOCUMENTATION = r"""
module: access_served
short_description: Wait until the gateway of an installation goes by the keys that were written
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - The gateway looks at the file once a second. A gateway that does not run is an answer, too.
  - If it has several processes (ROUNDHOUSE_WORKERS), one of them answers for all; the others look as often.
options:
  home:
    description: The installation's folder.
    type: path
    required: true
  access:
    description: What C(/readyz) says when it goes by them, as the module M(roundhouse.llm.access_keys) returns it.
    type: str
    required: true
  timeout:
    description: Seconds it may take.
    type: float
    default: 30
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Does not wait.
    support: full
"""

EXAMPLES = r"""
- name: Wait
  roundhouse.llm.access_served:
    home: /srv/roundhouse
    access: 0f2b6c1d9e3a
"""

RETURN = r"""
running:
  description: Whether the gateway runs.
  type: bool
  returned: success
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import job, readiness, supervisor

_PAUSE = 0.2


def wait(home: supervisor.Home, access: str, timeout: float, progress: job.Progress) -> dict[str, Any]:
    """Wait. Raises JobError."""
    specs = supervisor.read_specs(home).values()
    gateway = next((spec for spec in specs if spec.labels.get("kind") == "gateway"), None)
    if gateway is None or not supervisor.Supervisord(home).is_running(gateway.name):
        return {"changed": False, "running": False}
    if "ROUNDHOUSE_KEYS" not in gateway.environment:
        raise job.JobError(
            "The keys are written, and the gateway that runs does not ask for any yet: it is of an earlier release. "
            "Serve your stack again, e.g. with make multi-models."
        )
    host, port = gateway.labels["host"], gateway.labels["port"]
    ready = readiness.Ready(f"http://{host}:{port}/readyz", {"access": access})
    begun = time.monotonic()
    while (missing := ready.missing()) is not None:
        if time.monotonic() - begun > timeout:
            raise job.JobError(
                f"The keys are written, and after {timeout:.0f} s the gateway does not go by them ({missing}). "
                f"Its log says why: {home.log(gateway.name)}."
            )
        progress.say("waiting until the gateway goes by the new keys")
        time.sleep(_PAUSE)
    return {"changed": False, "running": True}


def main() -> None:
    """Read the arguments, wait, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "access": {"type": "str", "required": True},
            "timeout": {"type": "float", "default": 30},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False, running=False)
    home = supervisor.Home(Path(given["home"]))
    module.exit_json(
        **job.run(lambda progress: wait(home, given["access"], given["timeout"], progress), given["job"])
    )


if __name__ == "__main__":
    main()
