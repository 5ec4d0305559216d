"""A child process that takes its time: watched while it runs, ended with the run that asked for it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils.job import REMEDY_FULL_DISK

#: Seconds between two looks.
_LOOK = 0.5

#: With less than so many bytes left, a disk is full for whoever wants to write a package.
_FULL = 1_000_000


def run(
    command: Sequence[str], environment: Mapping[str, str], watch: Callable[[list[str]], None]
) -> tuple[int, list[str]]:
    """Run a command to its end; returns its exit status and the lines it printed.

    `watch` gets the lines so far about twice a second; what it raises ends the child and all that it started.
    """
    # In memory: a full disk must not swallow the words that say so.
    output = os.memfd_create("output")
    try:
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
                watch(_lines(output))
                time.sleep(_LOOK)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        return child.returncode, _lines(output)
    finally:
        os.close(output)


def _lines(output: int) -> list[str]:
    text = os.pread(output, os.fstat(output).st_size, 0).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


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


def megabytes(size: float) -> str:
    """A size in bytes as a person reads it."""
    return f"{size / 1e6:.0f} MB"


def full_disk(lines: Sequence[str], folder: Path) -> str | None:
    """What to say if a child failed because the disk of `folder` is full; None if that was not it."""
    told = any("No space left on device" in line for line in lines)
    if told or shutil.disk_usage(folder).free < _FULL:
        return f"No space left on the disk of {folder}: {REMEDY_FULL_DISK}"
    return None
