"""pip, run as a child, with its progress in words and its failures in sentences."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils.job import REMEDY_FULL_DISK, JobError, Progress

#: Seconds between two looks at what pip does.
_LOOK = 0.5

#: A stalled connection ends after so many seconds, and is tried again so many times.
_TIMEOUT = 30
_RETRIES = 2


def megabytes(size: float) -> str:
    """A size in bytes as a person reads it."""
    return f"{size / 1e6:.0f} MB"


def folder_size(folder: Path) -> int:
    """Bytes of all files under a folder that may change while it is read."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def run_pip(
    python: str, arguments: Sequence[str], scratch: Path, progress: Progress, words: Callable[[str, str], str]
) -> None:
    """Run `python -m pip arguments`, temporary files in `scratch` (its growth is the progress).

    `words` makes the progress text out of pip's last line and the megabytes so far.
    Raises JobError with a sentence if pip fails.
    """
    log = scratch / "pip.log"
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "PIP_DEFAULT_TIMEOUT": str(_TIMEOUT),
        "PIP_RETRIES": str(_RETRIES),
        "PIP_PROGRESS_BAR": "off",
    }
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        while child.poll() is None:
            lines = _lines(log)
            progress.say(words(lines[-1] if lines else "", megabytes(folder_size(scratch))))
            time.sleep(_LOOK)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    if child.returncode:
        raise JobError(explain(_lines(log), scratch), pip_output=_lines(log)[-20:])


def _lines(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def explain(lines: Sequence[str], scratch: Path) -> str:
    """Why pip failed, and what to do, from what it printed."""
    text = "\n".join(lines)
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = next(
        (line for line in errors if "No matching distribution" in line), errors[-1] if errors else text[-300:]
    )
    if "No space left on device" in text:
        return f"No space left on the disk while downloading into {scratch.parent}: {REMEDY_FULL_DISK}"
    if re.search(
        r"Max retries exceeded|NewConnectionError|Failed to establish|timed out|Name or service", text
    ):
        return (
            f"No package index answers ({reason}). Check the network, or where pip looks "
            "(PIP_INDEX_URL, a proxy, pip config list), then run the same command again."
        )
    if "No matching distribution" in reason:
        return (
            f"{reason}. It is not to be had for this machine's Python and processor where pip looks "
            "(pip config list shows where): add an index or a folder of wheels that has it."
        )
    return f"pip failed: {reason}"
