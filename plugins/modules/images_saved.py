#!/usr/bin/python
"""Module images_saved: images as archives in a folder."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images_saved
short_description: Save images as archives, for a machine without a registry
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Writes one archive for each image, as C(docker save) does, and an index C(images.json) with the image's name and id
    and the archive's size and checksum. What the host's Docker does not have is pulled first.
  - An archive of the same image is left alone. Archives and entries of other images in the folder stay.
  - An archive has its name only once it is whole. Progress is shown at least every 5 seconds.
options:
  folder:
    description: Where the archives are, on the host. It is made if it does not exist.
    type: path
    required: true
  images:
    description: The images, with their tags.
    type: list
    elements: str
    required: true
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says what would be pulled and saved.
    support: full
"""

EXAMPLES = r"""
- name: Save what the gateway runs in
  roundhouse.llm.images_saved:
    folder: /srv/images
    images: ["roundhouse-gateway:3f9a1c2b6d7e"]
"""

RETURN = r"""
folder:
  description: Where the archives are.
  type: str
  returned: success
pulled:
  description: The images that were (in check mode would be) pulled.
  type: list
  elements: str
  returned: success
saved:
  description: The images whose archives were (in check mode would be) written.
  type: list
  elements: str
  returned: success
bytes:
  description: The size of all archives in the folder.
  type: int
  returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import image_archives, job


def main() -> None:
    """Read the arguments, save, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "images": {"type": "list", "elements": "str", "required": True},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work(progress: job.Progress) -> dict[str, Any]:
        return image_archives.save(Path(given["folder"]), given["images"], progress, check=module.check_mode)

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
