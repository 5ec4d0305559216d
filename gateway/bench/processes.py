"""Processes under measurement: how they start, what they cost, and that they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_KILL_AFTER = 3.0  # seconds


class BenchError(Exception):
    """Something can't be measured; the message says why."""


class Running:
    """A process with all its children, in a session of its own: Ctrl-C reaches this program only."""

    def __init__(self, command: Sequence[str | Path], log: Path, **environment: object) -> None:
        kept: Mapping[str, str] = {k: v for k, v in os.environ.items() if not k.startswith("ROUNDHOUSE_")}
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env={**kept, **{key: str(value) for key, value in environment.items()}},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and its children."""
        pids = list(self._tree())
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_AFTER)
        for pid in pids:
            # A child may have made a session of its own; its number can't be another's so soon.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def wait_for_port(self, port: int, seconds: float = 60.0) -> None:
        """Return when something listens on `port`. Raises BenchError."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            time.sleep(0.05)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise BenchError(f"did not start: {lines[-1] if lines else 'it said nothing'}")

    def cpu(self) -> float:
        """Return the seconds of CPU, user and system, that the whole tree has used.

        From /proc/PID/task/*/schedstat, which counts in nanoseconds, where the kernel has it; else from
        /proc/PID/stat, in ticks of 10 ms. Threads that have ended are in the second only.
        """
        return sum(self._cpu_of(pid) for pid in self._tree())

    def rss(self) -> int:
        """Return the resident memory of the whole tree, in bytes."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return total

    def _tree(self) -> Iterator[int]:
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())

    @staticmethod
    def _cpu_of(pid: int) -> float:
        with contextlib.suppress(OSError, IndexError, ValueError):
            tasks = Path(f"/proc/{pid}/task").iterdir()
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
