#!/usr/bin/python
"""Module images_restored: archives of images, in the host's Docker."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images_restored
short_description: Load archives of images into the host's Docker
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Loads what M(roundhouse.llm.images_saved) has saved, elsewhere mostly. Before anything is loaded, all archives that
    are to be loaded are held against the checksums of the index.
  - An image that Docker has already, with the same id, is left alone.
  - Progress is shown at least every 5 seconds.
options:
  folder:
    description: Where the archives and their index are, on the host.
    type: path
    required: true
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Checks the archives, and says what would be loaded.
    support: full
"""

EXAMPLES = r"""
- name: Load the images that were carried here
  roundhouse.llm.images_restored:
    folder: /srv/images
"""

RETURN = r"""
loaded:
  description: The images that were (in check mode would be) loaded.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import image_archives, job


def main() -> None:
    """Read the arguments, load, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params

    def work(progress: job.Progress) -> dict[str, Any]:
        return image_archives.load(Path(given["folder"]), progress, check=module.check_mode)

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
