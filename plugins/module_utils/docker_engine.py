"""The host's Docker engine, as far as it matters for a restart: its runtimes, and the containers that it would end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import job, k3d

#: What is asked of `docker inspect` for each container.
_CONTAINER = "{{json .Name}} {{json .Config.Image}} {{json .Config.Labels}}"

#: The engine's process id, where it may be.
_PID_FILES = ("/run/docker.pid", "/var/run/docker.pid")


@dataclass(frozen=True)
class Engine:
    """What `docker info` tells."""

    runtimes: tuple[str, ...]
    live_restore: bool
    desktop: bool
    problems: tuple[str, ...] = ()


def read(info: Mapping[str, Any], arguments: Sequence[str] = ()) -> Engine:
    """The engine, out of `docker info` and the arguments that it was started with."""
    problems = []
    options = " ".join(str(option) for option in info.get("SecurityOptions") or [])
    if "name=rootless" in options:
        problems.append(
            "Docker runs rootless, and a k3d cluster with GPUs needs the engine that runs as root: select it "
            "(docker context use default), or serve without a GPU with -e roundhouse_gpus=none."
        )
    if str(info.get("DockerRootDir", "")).startswith("/var/snap/"):
        problems.append(
            "This Docker is the snap, which neither reads /etc/docker/daemon.json nor sees NVIDIA's toolkit: "
            "replace it (sudo snap remove docker; sudo apt install docker.io), and run the same command again."
        )
    if any(word.partition("=")[0] == "--add-runtime" for word in arguments):
        problems.append(
            "Docker is started with the option --add-runtime, and refuses to start if daemon.json has runtimes "
            "as well: move those into the key runtimes of daemon.json (see systemctl cat docker), restart "
            "Docker, and run the same command again."
        )
    return Engine(
        runtimes=tuple(sorted(info.get("Runtimes") or {})),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        desktop=info.get("OperatingSystem") == "Docker Desktop",
        problems=tuple(problems),
    )


def look() -> Engine:
    """Ask it. Raises JobError with docker's own words."""
    return read(json.loads(k3d.docker("info", "--format", "{{json .}}")), _arguments())


def _arguments() -> list[str]:
    """What the engine was started with; nothing if that can't be told."""
    for file in _PID_FILES:
        try:
            pid = int(Path(file).read_text(encoding="ascii"))
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            continue
        return words if words[0].rpartition("/")[2] == "dockerd" else []
    return []


def foreign(lines: Sequence[str], home: str) -> list[str]:
    """The containers that are not of the installation in `home`, as NAME (IMAGE); the lines are NAME IMAGE LABELS."""
    decoder = json.JSONDecoder()
    found = []
    for line in lines:
        words: list[Any] = []
        rest = line.strip()
        while rest:
            word, end = decoder.raw_decode(rest)
            words.append(word)
            rest = rest[end:].lstrip()
        if len(words) == 3 and (words[2] or {}).get(k3d.LABEL_HOME) != home:
            found.append(f"{words[0].lstrip('/')} ({words[1]})")
    return sorted(found)


def running_foreign(home: str) -> list[str]:
    """The running ones of them."""
    ids = k3d.docker("ps", "--quiet", "--no-trunc").split()
    lines = [line for each in ids for line in _inspected(each)]
    return foreign(lines, home)


def _inspected(container: str) -> list[str]:
    try:
        return k3d.docker("inspect", "--type", "container", "--format", _CONTAINER, container).splitlines()
    except job.JobError:
        return []  # it has ended since
