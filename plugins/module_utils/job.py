"""Long work on a managed host, in the background, with its progress in a file that the controller reads.

A module that may take minutes hands its work to `run`. If the action plugin of the same name gave it a job
folder, the work goes on in a child of its own, the module returns at once, and the action plugin looks at the
folder until the result is there (see plugin_utils/watched_action.py). Without a job folder the work is done in place.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds without a look from the controller after which background work gives up: it was interrupted.
LEASE = 45.0


class JobError(Exception):
    """The work can't be done. The message is for the user; `facts` go into the module's result."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


class Progress:
    """What the work is doing now, in a few words."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def say(self, text: str) -> None:
        """Replace the current words; raises JobError if nobody has looked for LEASE seconds."""
        if self._folder is None:
            return
        write_whole(self._folder / "progress", text)
        try:
            idle = time.time() - (self._folder / "seen").stat().st_mtime
        except FileNotFoundError:
            idle = LEASE + 1
        if idle > LEASE:
            raise JobError("The run that asked for this is gone.")


Work = Callable[[Progress], dict[str, Any]]


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old text or the new, never half of one. Raises JobError."""
    if path.exists() and not path.is_file():
        # /dev/null, say: to put a file in its place would harm the whole machine.
        raise JobError(f"{path} is no file, so nothing is written there: name another one.")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def outcome(work: Work, progress: Progress) -> dict[str, Any]:
    """The module's result: what the work returned, or its failure as a sentence."""
    try:
        return work(progress)
    except JobError as error:
        return {"failed": True, "msg": str(error), **error.facts}
    except OSError as error:
        return {"failed": True, "msg": explain_os_error(error)}


def run(work: Work, folder: str | None) -> dict[str, Any]:
    """The result of the work, or `{"job": folder}` while it goes on in the background."""
    if not folder:
        return outcome(work, Progress())
    place = Path(folder)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / "seen").touch()
    sys.stdout.flush()
    if os.fork():
        return {"job": folder}
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        result = outcome(work, Progress(place))
    except BaseException as error:  # whatever it was, the controller must hear of it: it is waiting
        message = f"The work ended unexpectedly ({type(error).__name__}: {error}). Please report this."
        result = {"failed": True, "msg": message, "exception": traceback.format_exc()}
    try:
        write_whole(place / "result", json.dumps(result))
    finally:
        os._exit(0)


def explain_os_error(error: OSError) -> str:
    """One sentence for the errors that a user can mend."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to write{where}: choose a folder that you may write to (roundhouse_home)."
    if error.errno == errno.ENOSPC:
        return f"No space left on the disk for{where}: {REMEDY_FULL_DISK}"
    return f"{error.strerror or error}{':' if where else ''}{where}"


REMEDY_FULL_DISK = "free some, or point roundhouse_home to a larger disk, then run the same command again."
