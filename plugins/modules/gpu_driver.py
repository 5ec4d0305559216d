#!/usr/bin/python
"""Module gpu_driver: what a host has for containers that use its GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_driver
short_description: Look at the NVIDIA driver, its GPUs, and the container toolkit
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Changes nothing, and needs no rights.
  - What is wrong is told in sentences for the user, all at once; it does not fail.
options:
  cuda:
    description: The version of CUDA that the images are made with, such as C(12.9).
    type: str
    required: true
  gpus:
    description: The GPUs that are wanted; C(all), or their ids with commas between them.
    type: str
    default: all
  packages:
    description: The packages of the toolkit.
    type: list
    elements: str
    required: true
  version:
    description: Their wanted version, such as C(1.18.0-1).
    type: str
    required: true
  driver:
    description: Whether the driver is looked at.
    type: bool
    default: true
attributes:
  check_mode:
    description: It only looks.
    support: full
"""

EXAMPLES = r"""
- name: Look at the driver
  roundhouse.llm.gpu_driver:
    cuda: "12.9"
    packages: [nvidia-container-toolkit]
    version: 1.18.0-1
"""

RETURN = r"""
problems:
  description: Sentences that say what is wrong with the driver, and what to do.
  type: list
  elements: str
  returned: always
notes:
  description: Sentences that are good to know.
  type: list
  elements: str
  returned: always
gpus:
  description: The wanted GPUs, each with index, uuid, name and memory_mib (null if the driver does not tell).
  type: list
  elements: dict
  returned: always
driver:
  description: The driver's version; empty if there is none.
  type: str
  returned: always
cuda:
  description: The newest version of CUDA that the driver speaks; empty if it does not tell.
  type: str
  returned: always
apt:
  description: Whether the host gets its packages with apt.
  type: bool
  returned: always
installed:
  description: Whether the toolkit is there in the wanted version.
  type: bool
  returned: always
pinned:
  description: Whether it is, and no upgrade of the system changes it. Without apt the same as RV(installed).
  type: bool
  returned: always
present:
  description: The packages that are there, in whatever version.
  type: list
  elements: str
  returned: always
hook:
  description: Whether there is the program that Docker looks for when it starts.
  type: bool
  returned: always
found:
  description: What there is now, for people.
  type: str
  returned: always
root:
  description: Whether the task ran as root.
  type: bool
  returned: always
request:
  description: RV(gpus) for docker's option C(--gpus).
  type: str
  returned: always
"""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import gpus


def toolkit(module: AnsibleModule, names: Sequence[str], version: str) -> dict[str, Any]:
    """What there is of the toolkit."""
    apt = bool(shutil.which("apt-get") and shutil.which("dpkg-query"))
    hook = shutil.which("nvidia-container-runtime-hook") is not None
    if apt:
        command = ["dpkg-query", "--show", f"--showformat={gpus.PACKAGE_FORMAT}", *names]
        there = gpus.packages(module.run_command(command)[1])
        installed = all(name in there and there[name].version == version for name in names)
        versions = {package.version for package in there.values()}
        return {
            "apt": True,
            "hook": hook,
            "present": sorted(there),
            "installed": installed,
            "pinned": installed and all(there[name].held for name in names),
            "found": " and ".join(sorted(versions)) or "nothing",
        }
    control = shutil.which("nvidia-ctk")
    told = gpus.toolkit_version(module.run_command([control, "--version"])[1]) if control else ""
    installed = gpus.is_version(told, version)
    return {
        "apt": False,
        "hook": hook,
        "present": [],
        "installed": installed,
        "pinned": installed,
        "found": told or "nothing",
    }


def main() -> None:
    """Look, judge, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "cuda": {"type": "str", "required": True},
            "gpus": {"type": "str", "default": "all"},
            "packages": {"type": "list", "elements": "str", "required": True},
            "version": {"type": "str", "required": True},
            "driver": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    wsl = gpus.is_wsl(platform.release())
    if given["driver"]:
        found = gpus.survey(gpus.look(wsl=wsl), cuda=given["cuda"], choice=given["gpus"], wsl=wsl)
    else:
        found = gpus.Survey(gpus.Driver())
    module.exit_json(
        changed=False,
        problems=list(found.problems),
        notes=list(found.notes),
        gpus=[asdict(gpu) for gpu in found.gpus],
        driver=found.driver.version,
        cuda=found.driver.cuda,
        root=os.geteuid() == 0,
        request=gpus.request(given["gpus"]),
        **toolkit(module, given["packages"], given["version"]),
    )


if __name__ == "__main__":
    main()
