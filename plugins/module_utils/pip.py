"""pip, run as a child, with its progress in words and its failures in sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils import child
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress

#: A stalled connection ends after so many seconds, and is tried again so many times.
_TIMEOUT = 30
_RETRIES = 2


def run_pip(
    python: str,
    arguments: Sequence[str],
    scratch: Path,
    progress: Progress,
    words: Callable[[str, str], str],
    growing: Path | None = None,
) -> None:
    """Run `python -m pip arguments`, temporary files in `scratch`.

    The progress is the size of `growing`, else that of `scratch`.
    `words` makes the progress text out of pip's last line and the megabytes so far.
    Raises JobError with a sentence if pip fails.
    """
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "PIP_DEFAULT_TIMEOUT": str(_TIMEOUT),
        "PIP_RETRIES": str(_RETRIES),
        "PIP_PROGRESS_BAR": "off",
    }

    def watch(lines: list[str]) -> None:
        said = [line for line in lines if not line.startswith("WARNING")]
        progress.say(words(said[-1] if said else "", child.megabytes(child.folder_size(growing or scratch))))

    status, lines = child.run(command, environment, watch)
    if status:
        raise JobError(child.full_disk(lines, scratch) or explain(lines), pip_output=lines[-20:])


def explain(lines: Sequence[str]) -> str:
    """Why pip failed, and what to do, from what it printed."""
    text = "\n".join(lines)
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = next(
        (line for line in errors if "No matching distribution" in line), (errors or [text[-300:]])[-1]
    )
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
