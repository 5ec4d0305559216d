"""A k3d cluster of ours: what the docker and k3d commands tell of it, and how it differs from the wanted one.

The cluster carries its own record. Two labels of its server node, there from the moment the node is created, tell
which installation it belongs to and what it was made from; a mark, a file in the node, tells that it was made whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from getpass import getuser
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import job, processes

#: Labels of the server node: the installation's folder, and the configuration as JSON.
LABEL_HOME = "roundhouse.home"
LABEL_CONFIG = "roundhouse.config"

#: The file in the server node.
MARK = "/etc/roundhouse-made"

#: Seconds within which the engine answers a question.
_PATIENCE = 60

#: Seconds that a node gets to stop.
_STOP = 5

_LOG_LINES = 20
_LOG_WIDTH = 240

#: What the kubectl of k3d's entrypoint repeats.
_WAITING = re.compile(r"memcache\.go.*connection refused|^The connection to the server \S+ was refused")

#: Characters of a time stamp up to its seconds.
_SECONDS = len("2026-01-31T12:00:00")


# The Docker engine


@dataclass(frozen=True)
class Engine:
    """Whether there is a Docker engine to work with: `ready`, `missing`, `down` or `denied`, and a sentence if not."""

    state: str
    message: str = ""


def engine() -> Engine:
    """Ask Docker whether it answers."""
    if shutil.which("docker") is None:
        return Engine("missing", _MISSING)
    try:
        answer = _run(["docker", "version", "--format", "{{.Server.Version}}"])
    except subprocess.TimeoutExpired:
        return judge(1, f"no answer within {_PATIENCE} s", os.environ.get("DOCKER_HOST"))
    return judge(answer.returncode, answer.stderr, os.environ.get("DOCKER_HOST"))


_MISSING = (
    "Docker is not installed (there is no command docker on PATH), and k3d runs its nodes in it: install it (Debian "
    "and Ubuntu: sudo apt install docker.io), or let this playbook do it as root with "
    "-e k3d_cluster_install_docker=true; without Docker, serve on the CPU with -e roundhouse_platform=local."
)


def judge(status: int, stderr: str, host: str | None) -> Engine:
    """What `docker version` means; `host` is DOCKER_HOST if it is set."""
    if status == 0:
        return Engine("ready")
    reason = " ".join(stderr.split()) or f"docker version ended with status {status}"
    if "permission denied" in reason.lower():
        user = getuser()
        return Engine(
            "denied",
            f"Docker is there, but {user} has no permission to use its socket: join its group "
            f"(sudo usermod -aG docker {user}), log in again, and run the same command again.",
        )
    remedy = "start it (sudo systemctl start docker)"
    if host:
        remedy = f"correct or unset DOCKER_HOST, which is {host}, or {remedy}"
    return Engine("down", f"Docker is installed, but its engine does not answer ({reason}): {remedy}.")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PATIENCE,
        check=False,
    )


def docker(*arguments: str) -> str:
    """What a docker command prints. Raises JobError with docker's own words."""
    try:
        answer = _run(["docker", *arguments])
    except FileNotFoundError as error:
        raise job.JobError(_MISSING) from error
    except subprocess.TimeoutExpired as error:
        raise job.JobError(
            f"Docker does not answer 'docker {arguments[0]}' within {_PATIENCE} s: see whether its engine is well "
            "(docker info), restart it, and run the same command again."
        ) from error
    if answer.returncode:
        raise job.JobError(f"docker {arguments[0]} failed: {' '.join(answer.stderr.split())}")
    return answer.stdout


# What is there


@dataclass(frozen=True)
class Node:
    """A container of a cluster."""

    id: str
    name: str
    role: str
    running: bool
    labels: Mapping[str, str]


class Standing(Enum):
    """What a cluster is to us."""

    NONE = "there is none"
    LEFTOVER = "only a helper container of k3d, left by a creation that broke off"
    HALF_MADE = "ours, and its creation broke off"
    WHOLE = "ours"
    OTHER = "of another installation"
    FOREIGN = "not made by us"


@dataclass(frozen=True)
class Cluster:
    """A cluster as it is; without nodes if there is none."""

    name: str
    nodes: tuple[Node, ...] = ()
    marked: bool = False

    @property
    def server(self) -> Node | None:
        """The first server node; the one that carries the labels."""
        return next((node for node in self.nodes if node.name == server_name(self.name)), None)

    @property
    def runs(self) -> bool:
        """Whether all of its nodes run."""
        return all(node.running for node in self.nodes if node.role in ("server", "agent"))

    @property
    def made_from(self) -> dict[str, Any]:
        """The configuration that it was made from."""
        config: dict[str, Any] = json.loads(self.server.labels[LABEL_CONFIG]) if self.server else {}
        return config

    def owner(self) -> str | None:
        """The folder of the installation that made it; None if it was not one of ours."""
        return self.server.labels.get(LABEL_HOME) if self.server else None

    def standing(self, home: str) -> Standing:
        """What it is to the installation in `home`."""
        if not self.nodes:
            return Standing.NONE
        if all(node.role == "noRole" for node in self.nodes):
            return Standing.LEFTOVER
        if self.owner() is None:
            return Standing.FOREIGN
        if self.owner() != home:
            return Standing.OTHER
        return Standing.WHOLE if self.marked else Standing.HALF_MADE


def server_name(cluster: str) -> str:
    """The container of a cluster's first server node."""
    return f"k3d-{cluster}-server-0"


def find(name: str) -> Cluster:
    """Look for a cluster."""
    ids = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label=k3d.cluster={name}").split()
    if not ids:
        return Cluster(name)
    # k3d's helpers come and go: one that has gone since is missing in the list, and inspect ends with an error.
    answer = _run(["docker", "inspect", *ids])
    cluster = Cluster(name, nodes := tuple(_node(found) for found in json.loads(answer.stdout or "[]")))
    marked = cluster.owner() is not None and _is_marked(server_name(name))
    return Cluster(name, nodes, marked)


def _node(found: Mapping[str, Any]) -> Node:
    labels = found["Config"]["Labels"]
    return Node(
        id=found["Id"],
        name=found["Name"].lstrip("/"),
        role=labels.get("k3d.role", ""),
        running=bool(found["State"]["Running"]),
        labels=labels,
    )


def _is_marked(container: str) -> bool:
    done = _run(["docker", "cp", f"{container}:{MARK}", "-"])
    if done.returncode and not re.search(
        "could not find the file|no such container:path", done.stderr.lower()
    ):
        raise job.JobError(
            f"Docker does not tell whether the node {container} was made whole: {done.stderr.strip()}"
        )
    return done.returncode == 0


def mark(cluster: str, scratch: Path) -> None:
    """Note in the cluster itself that it is whole. `scratch` is a folder to write in."""
    note = scratch / f".{cluster}-made"
    note.write_text(
        "Roundhouse made this node. Without this file it takes it for half-made.\n", encoding="utf-8"
    )
    try:
        docker("cp", str(note), f"{server_name(cluster)}:{MARK}")
    finally:
        note.unlink()


def restarts(cluster: str) -> int:
    """How often Docker has started the server node anew since it was started last; 0 while there is none."""
    answer = _run(["docker", "inspect", "--format", "{{.RestartCount}}", server_name(cluster)])
    return int(answer.stdout) if answer.returncode == 0 else 0


def has_lost_k3s(cluster: str) -> bool:
    """Whether the server node runs without k3s. Its entrypoint is k3d's, which stays when k3s has died."""
    answer = _run(["docker", "top", server_name(cluster), "-eo", "pid,args"])
    return answer.returncode == 0 and not runs_k3s(answer.stdout)


def runs_k3s(top: str) -> bool:
    """Whether k3s itself is among the processes that `docker top` lists as PID COMMAND."""
    commands = [line.split()[1] for line in top.splitlines()[1:] if len(line.split()) > 1]
    return any(command.rpartition("/")[2].startswith("k3s") for command in commands)


def node_condition(cluster: str) -> str | None:
    """What keeps the server node from taking pods; None if nothing does."""
    server = server_name(cluster)
    started = docker("inspect", "--format", "{{.State.StartedAt}}", server).strip()
    answer = _run(["docker", "exec", server, "kubectl", "get", "node", server, "-o", "json"])
    if answer.returncode:
        return "the Kubernetes API does not know the node yet"
    return unready(json.loads(answer.stdout), started)


def unready(node: Mapping[str, Any], started: str) -> str | None:
    """What keeps a Kubernetes node from taking pods, in words; None if nothing does.

    What it said of itself before its container `started` is of an earlier life.
    """
    conditions = {found["type"]: found for found in node.get("status", {}).get("conditions", [])}
    ready = conditions.get("Ready", {})
    if ready.get("lastHeartbeatTime", "")[:_SECONDS] < started[:_SECONDS]:
        return "its node has not reported yet"
    if ready["status"] != "True":
        return f"its node is not ready: {ready.get('message') or 'it does not say why'}"
    if node.get("spec", {}).get("unschedulable"):
        return f"its node is cordoned, so kubectl uncordon {node['metadata']['name']}"
    return None


def log_tail(container: str, since: float) -> list[str]:
    """The last lines of a container's log since a time that tell something."""
    answer = _run(["docker", "logs", "--since", str(int(since)), "--tail", str(10 * _LOG_LINES), container])
    return telling(answer.stdout.splitlines() + answer.stderr.splitlines()) if answer.returncode == 0 else []


def telling(lines: Sequence[str]) -> list[str]:
    """The last lines of a node's log, shortened, without what k3d's entrypoint says while k3s does not answer."""
    told = [plain(line) for line in lines]
    return [line[:_LOG_WIDTH] for line in told if line and not _WAITING.search(line)][-_LOG_LINES:]


def halt(cluster: Cluster) -> None:
    """Stop its containers and leave them for a look: one that can't work would start again and again."""
    if cluster.nodes:
        docker("stop", "--time", str(_STOP), *(node.id for node in cluster.nodes))


def sweep(name: str) -> None:
    """Remove the network and the volume of a cluster that has no container (any more); k3d would take them over."""
    if shutil.which("docker") is None:
        return
    if docker("network", "ls", "--quiet", "--filter", f"name=^k3d-{name}$", "--filter", "label=app=k3d"):
        docker("network", "rm", f"k3d-{name}")
    volume = f"k3d-{name}-images"
    if docker(
        "volume", "ls", "--quiet", "--filter", f"name=^{volume}$", "--filter", f"label=k3d.cluster={name}"
    ):
        docker("volume", "rm", volume)


# What is wanted


def complete(config: Mapping[str, Any], name: str, home: str) -> dict[str, Any]:
    """The config file that k3d gets: the wanted one, its name, our labels, and how we work with k3d.

    There is no rollback, for it would take the node's log away. The user's own kubeconfig is left alone.
    """
    options: Mapping[str, Any] = config.get("options", {})
    runtime: Mapping[str, Any] = options.get("runtime", {})
    texts = {LABEL_HOME: home, LABEL_CONFIG: json.dumps(config, sort_keys=True, separators=(",", ":"))}
    labels = [{"label": f"{key}={text}", "nodeFilters": ["server:*"]} for key, text in texts.items()]
    return {
        "apiVersion": "k3d.io/v1alpha5",
        "kind": "Simple",
        "metadata": {"name": name},
        **config,
        "options": {
            **options,
            "k3d": {"wait": True, "disableRollback": True, **options.get("k3d", {})},
            "kubeconfig": {"updateDefaultKubeconfig": False, "switchCurrentContext": False},
            "runtime": {**runtime, "labels": [*runtime.get("labels", []), *labels]},
        },
    }


def render(config: Mapping[str, Any]) -> str:
    """The text of a config file. JSON is YAML, and needs nothing but Python on the host."""
    return f"# Written by Ansible. This is what the cluster was made from.\n{json.dumps(config, indent=2)}\n"


def refuse_unusable(config: Mapping[str, Any], name: str) -> None:
    """Raises JobError for a configuration that k3d would misread."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise job.JobError(
            f"'{name}' can't be the name of a k3d cluster: use up to 32 lower-case letters, digits and dashes "
            "(roundhouse_cluster)."
        )
    for place, text in _texts(config):
        if "$" in text:
            raise job.JobError(
                f"'{text}' ({place}) has a $, and k3d would put a variable of the environment in its place: "
                "choose a name without it."
            )
    for mount in mounts(config):
        if mount.count(":") > 2 or not mount.startswith("/"):
            raise job.JobError(
                f"'{mount}' can't be mounted into the node: write FOLDER:FOLDER_IN_NODE[:ro] with absolute paths "
                "that have no colon."
            )


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, place)
    elif isinstance(value, str):
        yield place, value


def mounts(config: Mapping[str, Any]) -> list[str]:
    """The folders to mount, as SOURCE:TARGET[:OPTIONS]."""
    return [str(entry["volume"]) for entry in config.get("volumes", [])]


def host_folders(config: Mapping[str, Any]) -> list[Path]:
    """The host's folders that are mounted into the node."""
    return [Path(mount.partition(":")[0]) for mount in mounts(config)]


def refuse_absent_folders(config: Mapping[str, Any]) -> None:
    """Raises JobError if a folder to mount is not there; Docker would make it, as root."""
    for folder in host_folders(config):
        if not folder.exists():
            raise job.JobError(
                f"{folder} is to be mounted into the cluster's node and is not there: make it, or take it out of "
                "k3d_cluster_folders."
            )


def published(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Addresses and ports of the host that the cluster takes."""
    api = config.get("kubeAPI", {})
    found = [(api.get("hostIP") or "0.0.0.0", int(api["hostPort"]))] if api.get("hostPort") else []
    for entry in config.get("ports", []):
        words = str(entry["port"]).partition("/")[0].rsplit(":", 2)
        if len(words) > 1:
            found.append((words[0] if len(words) == 3 else "0.0.0.0", int(words[-2])))
    return found


def refuse_taken(config: Mapping[str, Any], settings: Mapping[str, str], ours: frozenset[str]) -> None:
    """Raises JobError if a port is taken by anything but the containers `ours`; `settings` name the variables."""
    addresses = published(config)
    ports = [port for _, port in addresses]
    for host, port in addresses:
        setting = settings.get(str(port), "its setting")
        if ports.count(port) > 1:
            raise job.JobError(
                f"Port {port} is wanted twice for the same cluster: choose others ({setting})."
            )
        containers = set(docker("ps", "--filter", f"publish={port}", "--format", "{{.Names}}").split())
        try:
            # What we hold ourselves is free for us; any port will do to see whether the address can be had.
            holder = _holder(host, 0 if containers & ours else port)
        except OSError as error:
            raise job.JobError(
                f"The cluster can't listen on {host}:{port}: {error.strerror or error}. "
                "Choose an address of this machine."
            ) from error
        if containers - ours:
            holder = f"the container {min(containers - ours)}"
        if holder:
            raise job.JobError(
                f"The cluster needs port {port} on {host}, and {holder} holds it: stop that, or choose another port "
                f"({setting})."
            )


def _holder(host: str, port: int) -> str | None:
    return None if processes.is_free(host, port) else processes.port_holder(port)


# How they differ

#: What the places of a configuration are called. Those of lists end in [].
_CALLED = {
    "servers": "number of servers",
    "agents": "number of agents",
    "kubeAPI.hostPort": "port of the Kubernetes API",
    "kubeAPI.hostIP": "address of the Kubernetes API",
    "ports[]": "published port",
    "volumes[]": "mounted folder",
    "env[]": "variable of the node",
    "options.k3s.extraArgs[]": "k3s argument",
    "options.runtime.gpuRequest": "GPU request",
}

#: The keys of a list's entry that tell what it is about.
_SUBJECTS = ("port", "volume", "arg", "envVar", "label", "source")


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """How a cluster made from one configuration differs from another one, in words."""
    old, new = _facts(made), _facts(wanted)
    told = []
    for place in dict.fromkeys([*new, *old]):
        called = _CALLED.get(place, place.removesuffix("[]"))
        has, wants = old.get(place, []), new.get(place, [])
        if place.endswith("[]"):
            told += [f"it lacks the {called} {fact}" for fact in wants if fact not in has]
            told += [f"it has the {called} {fact}, which is not wanted" for fact in has if fact not in wants]
        elif has != wants:
            told.append(
                f"its {called} is {' '.join(has) or 'not set'}, and {' '.join(wants) or 'not set'} is wanted"
            )
    return told


def _facts(value: Any, place: str = "") -> dict[str, list[str]]:
    if isinstance(value, Mapping):
        found: dict[str, list[str]] = {}
        for key, part in value.items():
            found |= _facts(part, f"{place}.{key}" if place else str(key))
        return found
    if isinstance(value, list | tuple):
        return {f"{place}[]": [_entry(part) for part in value]}
    return {place: [value if isinstance(value, str) else json.dumps(value)]}


def _entry(value: Any) -> str:
    subject = next((key for key in _SUBJECTS if key in value), None) if isinstance(value, Mapping) else None
    if subject is None:
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    filters = ", ".join(value.get("nodeFilters", [])) or "all nodes"
    return str(value[subject]) if filters == "server:*" else f"{value[subject]} on {filters}"


# What k3d says

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"^(?P<level>[A-Z]{4})\[\d+\] ?")

#: What k3d or the node's log may say, and what helps.
_REMEDIES = (
    (
        r"pull access denied|manifest unknown|failed to pull|manifest for .* not found|Client\.Timeout|no such host",
        "An image can't be had: check its name (k3d_cluster_image), the network and its proxy, or a registry's login. "
        "k3d itself needs ghcr.io/k3d-io/k3d-tools; its variable K3D_IMAGE_TOOLS names a copy elsewhere",
    ),
    (
        r"could not select device driver|unknown device|nvidia-container-cli|unresolvable CDI",
        "Docker gives containers no GPU: nvidia-smi -L must list it, and docker info the runtime nvidia (role "
        "container_toolkit); roundhouse_gpus must name GPUs that are there",
    ),
    (
        r"too many open files|inotify",
        "The host lets too few files be watched: sudo sysctl -w fs.inotify.max_user_instances=8192",
    ),
    (r"no space left on device", "The disk of Docker is full: see docker system df, and free some"),
    (
        r"flag provided but not defined|unknown flag",
        "k3s does not know one of its arguments: correct k3d_cluster_arguments",
    ),
    (
        r"port is already allocated|address already in use",
        "A port was taken meanwhile: stop what holds it, or choose another one (roundhouse_gateway_port, "
        "k3d_cluster_api_port)",
    ),
)


def plain(line: str) -> str:
    """A line without colours."""
    return _COLOUR.sub("", line).rstrip()


def doing(lines: Sequence[str]) -> str | None:
    """What k3d is doing, out of what it printed."""
    for line in reversed(lines):
        text = plain(line)
        if level := _LEVEL.match(text):
            return text[level.end() :]
    return None


def errors(lines: Sequence[str]) -> str:
    """What k3d failed of, out of what it printed."""
    texts = [plain(line) for line in lines]
    told = [
        _LEVEL.sub("", text) for text in texts if text.startswith(("ERRO", "FATA")) and "rollback" not in text
    ]
    return "; ".join(dict.fromkeys(told)) or "; ".join(texts[-3:]) or "k3d printed nothing"


def remedy(lines: Sequence[str]) -> str | None:
    """What helps against what was printed; None if we don't know."""
    text = "\n".join(lines)
    return next((words for pattern, words in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), None)


def version(printed: str) -> str | None:
    """The version out of what `k3d version` prints."""
    found = re.search(r"^k3d version (v\S+)", printed, re.MULTILINE)
    return found[1] if found else None


def version_of(binary: str) -> str | None:
    """The version of a k3d; None if it can't be run."""
    try:
        return version(_run([binary, "version"]).stdout)
    except (OSError, subprocess.TimeoutExpired):
        return None


def kubeconfig(binary: str, cluster: str) -> str:
    """The kubeconfig of a cluster, which may be stopped."""
    answer = _run([binary, "kubeconfig", "get", cluster])
    if answer.returncode:
        raise job.JobError(
            f"k3d can't give the kubeconfig of {cluster}: {errors(answer.stderr.splitlines())}"
        )
    return reachable(answer.stdout)


def reachable(text: str) -> str:
    """A kubeconfig whose server can be reached: k3d may write the address that it listens on, 0.0.0.0."""
    return re.sub(r"(server: https://)0\.0\.0\.0:", r"\g<1>127.0.0.1:", text)


def others(text: str, cluster: str) -> set[str]:
    """The clusters in a kubeconfig's text but this one: it is not ours to write or delete if there are any."""
    names = re.findall(r"^- cluster:\n(?:    .*\n)*  name: (\S+)", text, re.MULTILINE)
    return set(names) - {f"k3d-{cluster}"}
