"""Virtual environments in the cache: one per name and content, whole or absent."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils import child
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress, write_whole
from ansible_collections.roundhouse.llm.plugins.module_utils.locks import locked
from ansible_collections.roundhouse.llm.plugins.module_utils.pip import run_pip

OLDEST = (3, 11)

#: Written last: an environment without it was interrupted, and is made again.
_MARK = "roundhouse.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment: where it is, and what is to be in it (`project` is a zip file)."""

    folder: Path
    requirements: str
    project: Path | None = None

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def is_whole(self) -> bool:
        """Whether it was made to the end, and its interpreter is still there."""
        return (self.folder / _MARK).exists() and self.python.exists()


def environment(root: Path, name: str, requirements: str, project: Path | None) -> Environment:
    """The environment whose folder name carries the hash of all that it is made of."""
    digest = hashlib.sha256()
    for part in (requirements, platform.python_version(), platform.machine(), sys.base_prefix):
        digest.update(f"{len(part)}:{part}".encode())
    if project:
        digest.update(project.read_bytes())
    return Environment(root / f"{name}-{digest.hexdigest()[:12]}", requirements, project)


def check_python() -> None:
    """Raises JobError if the host's Python is too old for the engines."""
    if sys.version_info[:2] < OLDEST:
        raise JobError(
            f"The host's Python is {platform.python_version()} ({sys.executable}), and 3.11 or newer is needed: "
            "install one and name it with ansible_python_interpreter."
        )


def check_scarce(
    python: str, name: str, pins: Sequence[str], extra_index: Sequence[str], scratch: Path, progress: Progress
) -> None:
    """Raises JobError if a pin that not every index has can't be had, before anything else is downloaded."""
    scratch.mkdir(parents=True, exist_ok=True)
    arguments = ["install", "--dry-run", "--ignore-installed", "--no-deps", *extra_index, *pins]
    try:
        run_pip(python, arguments, scratch, progress, lambda *_: f"looking for {', '.join(pins)}")
    except JobError as error:
        raise JobError(
            f"{name} needs {', '.join(pins)}, which can't be had here ({error}) Name an index that has it, e.g. "
            "PyTorch's own for the CPU, with -e roundhouse_torch_index=URL, or put the "
            "wheel into a folder and set PIP_FIND_LINKS to it. Nothing was downloaded."
        ) from error


def make(wanted: Environment, name: str, extra_index: Sequence[str], progress: Progress) -> None:
    """Make the environment if it is not whole. Raises JobError."""
    wanted.folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(wanted.folder, progress):
        if wanted.is_whole:
            return
        shutil.rmtree(wanted.folder, ignore_errors=True)  # mostly there is none
        progress.say(f"making the Python environment of {name}")
        _make_venv(wanted.folder)
        scratch = wanted.folder / "scratch"
        scratch.mkdir()
        pins = scratch / "requirements.txt"
        pins.write_text(wanted.requirements, encoding="utf-8")
        python = str(wanted.python)

        def words(line: str, size: str) -> str:
            return f"installing {name} ({size} so far): {line}"

        cache = ["--cache-dir", str(wanted.folder.parent / "pip")]
        # Exact pins are the whole of it: what they need is among them.
        options = ["--no-deps", *extra_index]
        run_pip(
            python,
            ["install", *cache, *options, "--requirement", str(pins)],
            scratch,
            progress,
            words,
            wanted.folder,
        )
        if wanted.project is not None:
            source = scratch / "project"
            shutil.unpack_archive(wanted.project, source)
            options = ["--no-deps", "--no-build-isolation"]
            run_pip(python, ["install", *cache, *options, str(source)], scratch, progress, words)
        shutil.rmtree(scratch)
        write_whole(wanted.folder / _MARK, json.dumps({"name": name, "requirements": wanted.requirements}))


def _make_venv(folder: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        output = (made.stdout + made.stderr).strip()
        if full := child.full_disk([output], folder.parent):
            raise JobError(full)
        if "ensurepip is not available" in output or "No module named" in output:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise JobError(
                f"This Python can't make virtual environments: install its venv package "
                f"(Debian, Ubuntu: apt install python{version}-venv)."
            )
        raise JobError(f"Making the virtual environment {folder} failed: {output[-300:]}")
