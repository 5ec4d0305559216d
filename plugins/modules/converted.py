#!/usr/bin/python
"""Module converted: weights in the format that an engine loads."""

from __future__ import annotations

DOCUMENTATION = r"""
module: converted
short_description: Convert weights for an engine, once
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Runs an engine's converter (SCRIPT SOURCE FOLDER) and keeps the folder that it makes in the cache.
  - A whole one is reused; one that was interrupted is made again.
options:
  cache:
    description: Folder that holds the converted weights.
    type: path
    required: true
  engine:
    description: The engine's name.
    type: str
    required: true
  python:
    description: Interpreter of the engine's environment.
    type: path
    required: true
  script:
    description: The converter. It must check what it made, and exit with 0 only if that is good.
    type: path
    required: true
  source:
    description: The weights as they are.
    type: path
    required: true
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether something would be converted.
    support: full
"""

EXAMPLES = r"""
- name: Convert
  roundhouse.llm.converted:
    cache: /srv/roundhouse/cache/weights/converted
    engine: vllm
    python: /srv/roundhouse/cache/environments/vllm-1a2b3c/bin/python
    script: /srv/roundhouse/engines/vllm/convert.py
    source: /srv/models/m.gguf
"""

RETURN = r"""
folder:
  description: The converted weights.
  type: str
  returned: always
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import child, job, locks


def main() -> None:
    """Read the arguments, convert, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "cache": {"type": "path", "required": True},
            "engine": {"type": "str", "required": True},
            "python": {"type": "path", "required": True},
            "script": {"type": "path", "required": True},
            "source": {"type": "path", "required": True},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    source = Path(given["source"])

    def work(progress: job.Progress) -> dict[str, Any]:
        # The environment's name carries its pins, so other versions of the engine convert anew.
        key = f"{source}:{given['python']}:{source.stat().st_size if source.exists() else 0}"
        folder = Path(given["cache"]) / f"{given['engine']}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        result = {"changed": not folder.exists(), "folder": str(folder)}
        if folder.exists() or module.check_mode:
            return result
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(folder, progress):
            if not folder.exists():
                convert(folder, progress)
        return result

    def convert(folder: Path, progress: job.Progress) -> None:
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of an interrupted run; mostly there is none
        command = [given["python"], given["script"], str(source), str(part)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}

        def watch(lines: list[str]) -> None:
            progress.say(f"converting {source.name} for {given['engine']}: {lines[-1] if lines else ''}")

        status, lines = child.run(command, environment, watch)
        if status:
            shutil.rmtree(part, ignore_errors=True)  # it is of no use, and the error counts
            last = "\n".join(f"  {line}" for line in lines[-20:])
            raise job.JobError(
                child.full_disk(lines, folder.parent)
                or f"{source.name} can't be converted for {given['engine']}. The converter said:\n{last}\n"
                "Give weights in Hugging Face format instead, e.g. weights: {hf: owner/name}."
            )
        part.replace(folder)

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
