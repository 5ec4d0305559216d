#!/usr/bin/python
"""Module docker_runtime: NVIDIA's runtime in Docker's configuration file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_runtime
short_description: Merge NVIDIA's runtime into Docker's daemon.json, or take it out
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Comes to the same configuration as C(nvidia-ctk runtime configure --runtime=docker), and needs no nvidia-ctk.
  - All other keys stay as they are, in their order. A file that holds what is wanted is not written.
  - A file that is no valid JSON is told about, with the place, and left alone.
  - Docker reads the file when it starts. This module does not restart it.
options:
  path:
    description: The file.
    type: path
    default: /etc/docker/daemon.json
  state:
    description:
      - C(absent) takes the runtime out, and the default runtime if it was that one. If nothing is left, the file is
        deleted.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says whether the file would change; fails where a run would.
    support: full
  diff_mode:
    description: Shows the change.
    support: full
"""

EXAMPLES = r"""
- name: Let Docker have NVIDIA's runtime
  roundhouse.llm.docker_runtime:
  become: true
"""

RETURN = r"""
differs:
  description: Whether the file was not as it should be.
  type: bool
  returned: always
backup_file:
  description: The copy of the file as it was before.
  type: str
  returned: when there was a file, and it was changed
"""

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import daemon_json, job


def write(module: AnsibleModule, file: Path, text: str | None) -> None:
    """Write the file as a whole, with its owner and mode as they are; None deletes it."""
    if text is None:
        file.unlink()
        return
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(part).chmod(0o644)
    module.atomic_move(part, str(file))


def main() -> None:
    """Read the file, merge, write it if it changes."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    named = module.params["path"]
    present = module.params["state"] == "present"
    file = Path(named).resolve()  # a link stays a link
    try:
        there = file.is_file()
        before = daemon_json.decode(file.read_bytes(), named) if there else ""
        config = daemon_json.read(before, named)
        wanted = daemon_json.merged(config) if present else daemon_json.without(config)
        if wanted == config:
            module.exit_json(changed=False, differs=False)
        after = daemon_json.render(wanted, before) if wanted else None
        result = {
            "changed": True,
            "differs": True,
            "diff": {
                "before_header": named,
                "after_header": named,
                "before": before,
                "after": after or "",
            },
        }
        if not module.check_mode:
            if there:
                result["backup_file"] = module.backup_local(str(file))
            write(module, file, after)
    except daemon_json.Unusable as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"Docker's configuration can't be changed. {job.explain_os_error(error)}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
