"""Several workers on one port: a parent that serves nothing, and one process with an event loop for each.

The parent opens the listening socket and forks; whichever worker is free accepts. Orders reach a worker by a
pipe of its own and not as signals, because a signal to the whole group (Ctrl-C, systemd) would reach it twice
then. The end of the pipe, when the parent is gone, is the order to stop.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from roundhouse_gateway.logs import fields

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

STOP, RELOAD = b"s", b"r"

_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT))
_AWAITED = _STOPPING | {signal.SIGHUP, signal.SIGCHLD}

# Seconds until a worker that died is replaced. Without the pause one that can't live would keep a core busy.
_PAUSE = 0.5

# Serves with the reading end of the pipe until it is told to stop, and returns the exit code. The second number is the
# place of the worker, from 0; the one that replaces it has the same.
Work = Callable[[int, int], int]


class _Worker(NamedTuple):
    pid: int
    orders: int
    place: int


class Supervisor:
    """Starts workers, passes orders on, and replaces workers that die. `run` blocks until all is over."""

    def __init__(self, sock: socket.socket, count: int, work: Work) -> None:
        self._sock = sock
        self._count = count
        self._work = work
        self._workers: dict[int, _Worker] = {}
        # When workers that died are replaced, and their places.
        self._due: list[tuple[float, int]] = []
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        """Supervise. Returns 0 if all workers ended well, else 1."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        for place in range(self._count):
            self._start(place)
        while self._workers or self._due:
            number = self._await_signal()
            if number in _STOPPING:
                self._stop()
            elif number == signal.SIGHUP:
                self._order(RELOAD)
            self._bury()
            self._replace()
        return self._code

    def _await_signal(self) -> int | None:
        """Return the next signal, or None when it is time to replace a worker."""
        wait = max(min(self._due)[0] - time.monotonic(), 0.0) if self._due else 3600.0
        info = signal.sigtimedwait(_AWAITED, wait)
        return info.si_signo if info is not None else None

    def _start(self, place: int) -> _Worker:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(reading)
            worker = self._workers[pid] = _Worker(pid, writing, place)
            return worker
        code = 1
        try:
            # Only the parent may hold the writing ends, or a worker would not notice its death.
            for fd in (writing, *(worker.orders for worker in self._workers.values())):
                os.close(fd)
            for number in (*_STOPPING, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
            code = self._work(reading, place)
        except Exception:
            log.exception("worker failed")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _stop(self) -> None:
        """Let all workers stop. The second time they hurry."""
        self._stopping = True
        self._due.clear()
        # A listening socket is closed when the last process has closed it.
        self._sock.close()
        self._order(STOP)

    def _order(self, order: bytes) -> None:
        for worker in self._workers.values():
            try:
                os.write(worker.orders, order)
            except BrokenPipeError:
                log.debug("worker has gone", extra=fields(pid=worker.pid))

    def _bury(self) -> None:
        """Take note of all workers that have ended."""
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            del self._workers[pid]
            os.close(worker.orders)
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                self._code = self._code or int(code != 0)
            else:
                log.error("worker died", extra=fields(pid=pid, code=code))
                self._due.append((time.monotonic() + _PAUSE, worker.place))

    def _replace(self) -> None:
        now = time.monotonic()
        for due in [due for due in self._due if due[0] <= now]:
            self._due.remove(due)
            worker = self._start(due[1])
            # Its map and keys are those of the parent, which may be old.
            os.write(worker.orders, RELOAD)
