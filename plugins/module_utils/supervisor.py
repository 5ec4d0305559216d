"""A supervisord of our own: its folder, its programs on disk, and its XML-RPC over a Unix socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import shlex
import socket
import time
import xmlrpc.client
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress, write_whole

#: The longest path that a Unix socket may have on Linux, in bytes.
_LONGEST_SOCKET = 107

RUNNING = ("STARTING", "RUNNING")
DEAD = ("BACKOFF", "FATAL", "EXITED", "UNKNOWN")


@dataclass(frozen=True)
class Home:
    """The folder under which everything of one installation lives."""

    folder: Path

    @property
    def config(self) -> Path:
        """supervisord's configuration."""
        return self.folder / "etc" / "supervisord.conf"

    @property
    def programs(self) -> Path:
        """One .ini (for supervisord) and one .json (for the launcher and for us) per program."""
        return self.folder / "etc" / "programs"

    @property
    def socket(self) -> Path:
        """Where supervisord listens."""
        return self.folder / "run" / "supervisor.sock"

    @property
    def launcher(self) -> Path:
        """The script that turns a program's .json into a process."""
        return self.folder / "bin" / "launch.py"

    def log(self, program: str) -> Path:
        """All that a program prints."""
        return self.folder / "log" / f"{program}.log"

    def check(self) -> None:
        """Raises JobError if the folder can't be used."""
        length = len(bytes(self.socket))
        if length > _LONGEST_SOCKET:
            raise JobError(
                f"roundhouse_home is too long: {self.socket} has {length} bytes, and a Unix socket's path "
                f"may have {_LONGEST_SOCKET}: choose a shorter folder."
            )


@dataclass(frozen=True)
class Program:
    """What is to run: command line, environment, and labels that say what it is."""

    name: str
    command: list[str]
    environment: dict[str, str]
    labels: dict[str, Any]
    stop_timeout: float = 30.0
    inputs: dict[str, str] = field(default_factory=dict)
    ready: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, str] = field(default_factory=dict)
    order: int = 0

    def spec(self) -> str:
        """The .json: read by the launcher; other users can't, for an environment may hold secrets."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def identity(self) -> str:
        """What makes a running program another one when it changes; when it counts as ready does not."""
        identity = asdict(self)
        for key in ("ready", "phases", "order"):
            del identity[key]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def ini(self, home: Home, python: str) -> str:
        """The .ini. It carries the identity, so that supervisord sees every change that matters."""
        words = [python, "-I", str(home.launcher), str(home.programs / f"{self.name}.json")]
        settings = {
            "command": shlex.join(words),
            "environment": f'ROUNDHOUSE_SPEC="{self.identity()}"',
            "autostart": "false",
            "autorestart": "true",
            "startsecs": "1",
            "stopasgroup": "true",
            "killasgroup": "true",
            "stopwaitsecs": str(round(self.stop_timeout)),
            "redirect_stderr": "true",
            "stdout_logfile": str(home.log(self.name)),
            "stdout_logfile_maxbytes": "20MB",
            "stdout_logfile_backups": "2",
        }
        # supervisord expands %(...)s in every value.
        lines = [f"{key}={value.replace('%', '%%')}" for key, value in settings.items()]
        return "\n".join([f"[program:{self.name}]", *lines, ""])


def read_specs(home: Home) -> dict[str, Program]:
    """The programs on disk, by name."""
    found = {}
    for file in sorted(home.programs.glob("*.json")):
        try:
            found[file.stem] = Program(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise JobError(f"{file} is damaged ({error}): delete it and run the playbook again.") from error
    return found


def chosen(home: Home, only: str) -> list[Program]:
    """The programs that this is about, in their order. Raises JobError if there is none."""
    specs = read_specs(home)
    if not specs:
        raise JobError(
            f"Nothing is deployed below {home.folder}: serve a stack first, e.g. with make multi-models."
        )
    if only and only not in specs:
        raise JobError(f"There is no program '{only}'. There are: {', '.join(sorted(specs))}.")
    programs = sorted(specs.values(), key=lambda program: (program.order, program.name))
    return [program for program in programs if not only or program.name == only]


def write_program(home: Home, program: Program, python: str) -> None:
    """Put both files of a program in place, each whole or not at all."""
    home.programs.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(home.programs / f"{program.name}.json", program.spec())
    write_whole(home.programs / f"{program.name}.ini", program.ini(home, python))


def read_text(path: Path) -> str:
    """A file's text; nothing if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, _host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


class Supervisord:
    """A running supervisord. Its calls raise JobError with supervisord's own words."""

    def __init__(self, home: Home) -> None:
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(home.socket))
        self._home = home

    def call(self, method: str, *arguments: Any) -> Any:
        """One call of the `supervisor` namespace."""
        try:
            return getattr(self._proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise JobError(f"supervisord refused {method}{arguments}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise JobError(
                f"supervisord does not answer at {self._home.socket} ({error}): see "
                f"{self._home.folder}/log/supervisord.log, and run the playbook again."
            ) from error

    def is_up(self) -> bool:
        """Whether one answers."""
        try:
            self.call("getState")
        except JobError:
            return False
        return True

    def processes(self) -> dict[str, dict[str, Any]]:
        """What supervisord knows of each of its programs, by name."""
        infos: list[dict[str, Any]] = self.call("getAllProcessInfo")
        return {info["name"]: info for info in infos}

    def process(self, name: str) -> dict[str, Any] | None:
        """What supervisord knows of one program; None if it does not know it."""
        return self.processes().get(name)

    def is_running(self, name: str) -> bool:
        """Whether a program runs, or is about to; it does not if supervisord itself is down."""
        info = self.process(name) if self.is_up() else None
        return info is not None and info["statename"] in RUNNING

    def take_in(self, name: str, progress: Progress) -> None:
        """Let supervisord know a program as it is on disk; stops it if it changed."""
        [[added, changed, _removed]] = self.call("reloadConfig")
        if name in changed:
            self.stop(name, progress)
            self.call("removeProcessGroup", name)
        if name in added or name in changed:
            self.call("addProcessGroup", name)

    def stop(self, name: str, progress: Progress) -> None:
        """Stop a program and wait for its end (SIGTERM, its stop time-out, then SIGKILL to the whole group)."""
        info = self.process(name)
        if info is not None and info["statename"] in (*RUNNING, "BACKOFF"):
            self.call("stopProcess", name, False)
        while info is not None and info["statename"] in (*RUNNING, "BACKOFF", "STOPPING"):
            progress.say(f"{name}: stopping, requests in flight may finish")
            time.sleep(0.1)
            info = self.process(name)

    def forget(self, name: str) -> None:
        """Remove a stopped program."""
        self.call("removeProcessGroup", name)
