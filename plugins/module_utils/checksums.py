"""SHA-256 of files, and what to say when it is not the wanted one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(name: str, wanted: str, found: str, origin: str) -> None:
    """Raises JobError if two checksums differ; the caller deletes what it has."""
    if found != wanted.lower():
        raise JobError(
            f"The checksum of {name} does not match: the catalog says {wanted.lower()}, and what {origin} gave "
            f"has {found}. Nothing was kept. Run again if the download may have been damaged; "
            "correct 'sha256' if the catalog is wrong; else do not trust it."
        )
