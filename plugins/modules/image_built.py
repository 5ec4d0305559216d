#!/usr/bin/python
"""Module image_built: a container image, built by the host's Docker from our sources."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_built
short_description: Build a container image, once for the same sources
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Builds an image with the host's Docker. Its tag is the hash of the sources and of the build arguments, so the same
    image is built once, and another one never has its name.
  - Progress is shown at least every 5 seconds.
options:
  sources:
    description: Folder with a Dockerfile, on the controller.
    type: path
    required: true
  parts:
    description: What of it is needed, as glob patterns. Read by the action plugin.
    type: list
    elements: str
  name:
    description: The image's name, without a tag.
    type: str
    required: true
  arguments:
    description: Build arguments. Those without a value are left out.
    type: dict
    default: {}
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether the image would be built.
    support: full
"""

EXAMPLES = r"""
- name: Build the gateway's image
  roundhouse.llm.image_built:
    sources: gateway
    parts: [Dockerfile, pyproject.toml, src/**/*]
    name: roundhouse-gateway
"""

RETURN = r"""
image:
  description: The image, with its tag.
  type: str
  returned: always
  sample: roundhouse-gateway:3f9a1c2b6d7e
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import images, job


def main() -> None:
    """Read the arguments, build, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "sources": {"type": "path", "required": True},
            "parts": {"type": "list", "elements": "str"},
            "name": {"type": "str", "required": True},
            "arguments": {"type": "dict", "default": {}},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    arguments = {key: str(value) for key, value in given["arguments"].items() if value not in (None, "")}

    def work(progress: job.Progress) -> dict[str, Any]:
        sources = Path(given["sources"])
        image = f"{given['name']}:{images.tag(sources.read_bytes(), arguments)}"
        if images.on_host(image):
            return {"changed": False, "image": image}
        if not module.check_mode:
            # In memory where there is room: the sources are small, and gone when the work ends.
            with tempfile.TemporaryDirectory() as folder:
                shutil.unpack_archive(sources, folder, "zip")
                images.build(image, Path(folder), arguments, progress)
        return {"changed": True, "image": image}

    # The archive is the task's, which ends in check mode before the work would.
    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
