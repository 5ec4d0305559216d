"""Keys for tests: the secrets, and the files that a gateway has of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def secret(name: str) -> str:
    """Return the key called `name`."""
    return f"rh-{name}-{'0' * 32}"


def bearer(name: str) -> str:
    """Return the header that presents it."""
    return f"Authorization: Bearer {secret(name)}"


def key(name: str, **changes: Any) -> dict[str, Any]:
    """Return what the keys file has of it."""
    return {"name": name, "sha256": hashlib.sha256(secret(name).encode()).hexdigest()} | changes


def write_keys(path: Path, *keys: dict[str, Any]) -> Path:
    """Put a keys file in place, at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(list(keys)))
    new.replace(path)
    return path


def remove(path: Path) -> None:
    """Take a keys file away."""
    path.unlink()


def revision(path: Path) -> str:
    """Return what the gateway tells of a keys file that is live."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
