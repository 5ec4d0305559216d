"""One writer at a time for a thing on disk."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils.job import Progress


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold `path`.lock; while another process holds it, say so and wait. The lock ends with its process."""
    lock = path.with_name(f"{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode() or "?"
                progress.say(f"waiting for process {holder}, which is preparing {path.name}")
                time.sleep(0.5)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
