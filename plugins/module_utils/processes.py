"""What /proc tells of our processes, and who holds a port. Linux only.

Also copied to the host as it is, beside the reaper, so it needs the standard library alone.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: What every program of ours has in its environment: the folder it belongs to, and its name.
HOME_MARK = "ROUNDHOUSE_HOME"
NAME_MARK = "ROUNDHOUSE_PROGRAM"

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LISTEN = "0A"


@dataclass(frozen=True)
class Process:
    """One process of ours: its id, its group and the program it belongs to."""

    pid: int
    group: int
    program: str


def ours(home: str, session: int | None) -> Iterator[Process]:
    """The user's processes that carry the marks of `home`, or are of the session of its supervisord.

    The session is needed, too: a process that gives itself another title (vLLM's workers do) overwrites its
    environment.
    """
    for folder in _PROC.glob("[0-9]*"):
        try:
            stat = _stat(folder)
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # another user's, or gone meanwhile
        pairs = dict(item.partition("=")[::2] for item in os.fsdecode(environment).split("\0"))
        if stat.session == session or (pairs.get(HOME_MARK) == home and NAME_MARK in pairs):
            yield Process(int(folder.name), stat.group, pairs.get(NAME_MARK, "a program"))


def kill_leaderless(home: str, session: int) -> list[Process]:
    """Kill what a dead engine left behind: processes of ours whose group has lost its leader."""
    left = [process for process in ours(home, session) if not _alive(process.group)]
    return [process for process in left if _kill(process.pid)]


def kill_all(home: str, session: int | None) -> list[Process]:
    """Kill every process of ours: nobody supervises them any more."""
    return [process for process in ours(home, session) if _kill(process.pid)]


def boot() -> str:
    """What tells this run of the machine from others; numbers of processes and sessions mean nothing beyond it."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if there is none."""
    try:
        return _stat(_PROC / str(pid)).started
    except OSError:
        return None


@dataclass(frozen=True)
class _Stat:
    state: str
    group: int
    session: int
    started: str


def _stat(folder: Path) -> _Stat:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return _Stat(state=fields[0], group=int(fields[2]), session=int(fields[3]), started=fields[19])


def _alive(pid: int) -> bool:
    try:
        return _stat(_PROC / str(pid)).state != "Z"
    except OSError:
        return False


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def group_memory(group: int) -> int:
    """Resident bytes of all processes of a group."""
    pages = 0
    for folder in _PROC.glob("[0-9]*"):
        try:
            if _stat(folder).group == group:
                pages += int((folder / "statm").read_text().split()[1])
        except OSError:
            continue  # gone meanwhile
    return pages * _PAGE


def memory() -> tuple[int, int]:
    """Bytes of memory that a new process could take without swapping, and bytes in all."""
    lines = (_PROC / "meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes["MemAvailable"], sizes["MemTotal"]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises OSError for an address that is none of this machine's."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def port_holder(port: int) -> str:
    """The process that listens on a port, as `PID (command line)`; says so if it is not ours to see."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in _PROC.glob("[0-9]*"):
        if inodes.intersection(_open_files(folder)):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return f"process {folder.name} ({command[:120]})"
    return "a process of another user"


def _open_files(process: Path) -> Iterator[str]:
    try:
        for link in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                yield str(link.readlink())
    except OSError:
        return  # another user's, or gone meanwhile
