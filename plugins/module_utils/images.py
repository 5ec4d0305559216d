"""Container images: of the host's Docker, and of a node of a k3d cluster; through their command lines."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ansible_collections.roundhouse.llm.plugins.module_utils import child, k3d
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress

_LAST_LINES = 15

#: Seconds for a question that is answered at once.
_QUICK = 60


def tag(sources: bytes, arguments: Mapping[str, str]) -> str:
    """What an image of these sources and build arguments is tagged with."""
    digest = hashlib.sha256(sources)
    digest.update(json.dumps(arguments, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def full_name(image: str) -> str:
    """The name that containerd has for what Docker calls `image`: with its registry, and a tag or a digest."""
    name, at, digest = image.partition("@")
    first, slash, rest = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}"
    elif first == "docker.io" and "/" not in rest:
        name = f"docker.io/library/{rest}"
    if at:
        # With both, the digest counts, and the tag is only for people.
        return f"{_without_tag(name)}@{digest}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _without_tag(name: str) -> str:
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def on_host(image: str) -> bool:
    """Whether the host's Docker has it. Raises JobError if Docker does not answer."""
    status, output = _ask("docker", "image", "inspect", "--format", "{{.Id}}", image)
    if status and "no such image" not in output.lower():
        raise JobError(f"Docker does not tell which images it has: {output.strip()}")
    return status == 0


def on_node(node: str) -> set[str]:
    """The images that a node (a container of k3d) has, by their full names. Raises JobError."""
    status, output = _ask("docker", "exec", node, "ctr", "--namespace", "k8s.io", "images", "list", "--quiet")
    if status:
        raise JobError(f"The cluster's node {node} does not tell which images it has: {output.strip()}")
    return set(output.split())


def build(image: str, folder: Path, arguments: Mapping[str, str], progress: Progress) -> None:
    """Build an image from a folder with a Dockerfile. Raises JobError."""
    command = ["docker", "build", "--tag", image]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    _run([*command, str(folder)], f"The image {image} can't be built", f"building {image}", progress)


def load(binary: str, cluster: str, node: str, names: Sequence[str], progress: Progress) -> None:
    """Bring images of the host into a cluster. Raises JobError if one has not arrived, whatever k3d says."""
    what = f"loading {', '.join(names)}"
    command = [binary, "image", "import", "--mode", "direct", "--cluster", cluster, *names]
    lines = _run(command, f"Images can't be brought into the cluster {cluster}", what, progress)
    missing = [name for name in names if full_name(name) not in on_node(node)]
    if missing:
        raise JobError(
            f"k3d says that it has brought {', '.join(missing)} into the cluster {cluster}, and its node has no such "
            f"image. k3d's last words:\n{_tail(lines)}\nIs the disk full? See df -h and docker system df."
        )


def _run(command: Sequence[str], failure: str, what: str, progress: Progress) -> list[str]:
    def watch(lines: list[str]) -> None:
        progress.say(f"{what}: {k3d.plain(lines[-1])}" if lines else what)

    # With the plain output of the builder, each line says something.
    status, lines = child.run(command, {**os.environ, "BUILDKIT_PROGRESS": "plain"}, watch)
    if status:
        raise JobError(f"{failure}. The last lines of {command[0]} {command[1]}:\n{_tail(lines)}")
    return lines


def _tail(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:]) or "  (it printed nothing)"


def _ask(*command: str) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_QUICK)
    except FileNotFoundError:
        raise JobError(f"There is no {command[0]} on this host: install it, or put it on the PATH.") from None
    except subprocess.TimeoutExpired:
        raise JobError(f"{command[0]} {command[1]} has not answered for {_QUICK} s.") from None
    return done.returncode, done.stderr if done.returncode else done.stdout
