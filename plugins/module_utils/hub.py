"""Weights from the Hugging Face hub, by huggingface_hub's own command line in an environment of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils import child
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress

#: What the client says when it takes an old folder for a download that it could not make.
_GAVE_UP = "Returning existing local_dir"

#: The client's last word when it may not download what it was asked about: it guesses at the network, whatever it was.
_SUMMARY = "DryRunError"

#: Duplicates of the weights in formats that none of the engines loads.
EXCLUDED = ("original/*", "onnx/*", "*.onnx", "*.pth", "*.h5", "*.msgpack", "*.gguf")


def fetch(
    hub: Path,
    repository: str,
    revision: str,
    file: str | None,
    target: Path,
    token: str,
    progress: Progress,
    *,
    only_ask: bool = False,
) -> None:
    """Download a repository, or one file of it, into the folder `target`. Raises JobError.

    What an interrupted run left in `target` is used. The token goes by the environment: it is in no command line
    and in no file. With `only_ask` nothing is downloaded: it is tried whether that is allowed.
    """
    command = [str(hub), "download", repository, *([file] if file else []), "--revision", revision]
    for pattern in () if file else EXCLUDED:
        command += ["--exclude", pattern]
    command += ["--local-dir", str(target), "--quiet", *(["--dry-run"] if only_ask else [])]
    # The hub's client keeps a token and a cache below its home: ours must neither find nor leave any.
    environment = {**os.environ, "HF_HOME": str(target / ".cache" / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        environment.pop(variable, None)
    if token:
        environment["HF_TOKEN"] = token
    target.mkdir(parents=True, exist_ok=True)

    def watch(_: list[str]) -> None:
        size = child.megabytes(child.folder_size(target))
        progress.say(f"asking for {repository}" if only_ask else f"downloading {repository} ({size} so far)")

    status, lines = child.run(command, environment, watch)
    lines = [line for line in lines if _SUMMARY not in line]
    # A folder that exists is as good as a download to the client if the hub refuses or is away: it warns and
    # exits with 0. What is in the folder may be half of an interrupted run, so to us that is a failure.
    if status or any(_GAVE_UP in line for line in lines):
        sentence = explain(lines, repository, revision, file, has_token=bool(token))
        raise JobError(child.full_disk(lines, target) or sentence)


def explain(
    lines: Sequence[str], repository: str, revision: str, file: str | None, *, has_token: bool
) -> str:
    """Why the hub's client failed, and what to do, from what it printed."""
    page = f"https://huggingface.co/{repository}"
    text = "\n".join(lines)
    last = lines[-1][:300] if lines else "it printed nothing"
    rules: Mapping[str, str] = {
        r"access gated repo|requires approval|awaiting a review": (
            f"{repository} is gated, and "
            + ("this HF_TOKEN has no access to it" if has_token else "HF_TOKEN is not set")
            + f": accept its terms at {page}, then run again with HF_TOKEN set to a token of that account."
        ),
        r"Revision not found": f"{repository} has no revision '{revision}': see {page}/tree/main.",
        r"(File|Entry) not found": f"{repository} has no file '{file}': see {page}/tree/{revision}.",
        r"Local entry not found|[Cc]onnect|[Tt]imed? ?out|[Oo]ffline": (
            f"The hub can't be reached ({last}). Check the network or proxy (HF_ENDPOINT names a mirror), "
            "or fetch the weights elsewhere and use weights: {path: /folder}."
        ),
        r"[Nn]ot [Ff]ound|Unauthorized|Forbidden": (
            f"There is no repository {repository} at the hub, or it is private: check the name at {page}, "
            "and set HF_TOKEN if it is yours."
        ),
    }
    for pattern, sentence in rules.items():
        if re.search(pattern, text):
            return sentence
    return f"Downloading {repository} failed: {last}"
