#!/usr/bin/python
"""Module gpu_container: a container that lists the host's GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_container
short_description: See whether containers get the host's GPUs, by running one
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Runs C(nvidia-smi -L) in a container that is removed at once. The image is pulled if it is not here.
  - If it fails, docker's own words are shown, with the known cause.
options:
  image:
    description: The image. It needs nothing of NVIDIA's in it but the two variables that NVIDIA's own images set.
    type: str
    required: true
  gpus:
    description: What docker's option C(--gpus) gets.
    type: str
    default: all
  timeout:
    description: Seconds within which the container has told, without the pulling.
    type: int
    default: 120
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether the image would be pulled.
    support: full
"""

EXAMPLES = r"""
- name: See a GPU from a container
  roundhouse.llm.gpu_container:
    image: nvidia/cuda:12.9.1-base-ubuntu22.04
"""

RETURN = r"""
gpus:
  description: The GPUs that the container saw, as nvidia-smi lists them.
  type: list
  elements: str
  returned: success
restart:
  description: Whether it failed because Docker was started before the toolkit was there.
  type: bool
  returned: failure
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import child, gpus, images, job

_LINES = 12


def pull(image: str, progress: job.Progress) -> None:
    """Get the image. Raises JobError."""
    begun = time.monotonic()

    def watch(lines: list[str]) -> None:
        layers = sum("Pull complete" in line for line in lines)
        progress.say(f"pulling {image}: {layers} layers, {time.monotonic() - begun:.0f} s")

    status, lines = child.run(["docker", "pull", image], os.environ, watch)
    if status:
        raise failure(f"The image {image} can't be pulled", lines)


def use(image: str, request: str, timeout: int, progress: job.Progress) -> list[str]:
    """The GPUs that a container of the image sees. Raises JobError."""
    begun = time.monotonic()
    name = f"roundhouse-gpu-test-{os.getpid()}"
    command = [
        "docker",
        "run",
        "--rm",
        "--pull=never",
        f"--name={name}",
        f"--gpus={request}",
        "--network=none",
    ]

    def watch(_: list[str]) -> None:
        progress.say(f"listing the GPUs in a container of {image}")
        if time.monotonic() - begun > timeout:
            raise job.JobError(
                f"A container of {image} did not list the GPUs within {timeout} s: see whether nvidia-smi answers "
                "on the host, and whether Docker is well (docker info)."
            )

    try:
        status, lines = child.run([*command, "--entrypoint=nvidia-smi", image, "-L"], os.environ, watch)
    except job.JobError:
        child.run(["docker", "rm", "--force", name], os.environ, lambda _: None)
        raise
    seen = gpus.listed("\n".join(lines))
    if status or not seen:
        raise failure(f"A container of {image} gets no GPU", lines or [f"it ended with status {status}"])
    return seen


def failure(what: str, lines: list[str]) -> job.JobError:
    """The failure with docker's words and the known cause."""
    text = "\n".join(lines)
    shown = "\n".join(f"  {line}" for line in lines[-_LINES:])
    remedy = gpus.cause(text) or "Find the cause in what it says; NVIDIA's guide to it is " + _GUIDE
    return job.JobError(
        f"{what}. Docker says:\n{shown}\nWhat to do: {remedy}.", restart=gpus.wants_restart(text)
    )


_GUIDE = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/troubleshooting.html"


def main() -> None:
    """Read the arguments, run the container, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "gpus": {"type": "str", "default": "all"},
            "timeout": {"type": "int", "default": 120},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work(progress: job.Progress) -> dict[str, Any]:
        image = given["image"]
        here = images.on_host(image)
        if module.check_mode:
            return {"changed": not here, "gpus": []}
        if not here:
            pull(image, progress)
        return {"changed": not here, "gpus": use(image, given["gpus"], given["timeout"], progress)}

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
