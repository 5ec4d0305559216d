"""When a program is ready, what it is doing until then, and what to say when it does not get there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import job, local_http, processes, supervisor

_LOG_LINES = 20


@dataclass(frozen=True)
class Ready:
    """What a program answers when it is ready."""

    url: str
    json: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60

    def missing(self) -> str | None:
        """What is still missing; None if it is ready."""
        try:
            if not self.json:
                local_http.get(self.url, timeout=25)
                return None
            found = local_http.get_json(self.url, timeout=25)
        except OSError as error:
            return f"{self.url} {error}"
        wrong = {key: found.get(key) for key, value in self.json.items() if found.get(key) != value}
        if wrong:
            note = f"; it says: {found['last_error']}" if found.get("last_error") else ""
            return f"{self.url} has {wrong} and not {dict(self.json)}{note}"
        return None


class Log:
    """A program's log from where it was when we began."""

    def __init__(self, path: Path, start: int | None = None) -> None:
        self.path = path
        self._start = start if start is not None else path.stat().st_size if path.exists() else 0

    def last(self, count: int) -> list[str]:
        """The last lines printed since."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                # A log that was rotated meanwhile is new from its beginning.
                start = self._start if size >= self._start else 0
                file.seek(max(start, size - 65536))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def bring_up(
    home: supervisor.Home, daemon: supervisor.Supervisord, program: supervisor.Program, progress: job.Progress
) -> bool:
    """Let a program that is on disk run, and wait until it is ready; True if it had to be started. Raises JobError."""
    log = Log(home.log(program.name))
    daemon.take_in(program.name, progress)
    starts = not daemon.is_running(program.name)
    if starts:
        daemon.call("startProcess", program.name, False)
    if program.ready:
        await_ready(daemon, program, log, progress)
    return starts


def await_ready(
    daemon: supervisor.Supervisord, program: supervisor.Program, log: Log, progress: job.Progress
) -> None:
    """Wait for it. Raises JobError, with the program stopped, if it dies or takes too long."""
    name, ready = program.name, Ready(**program.ready)
    begun = time.monotonic()
    pid = None
    while True:
        info = daemon.process(name) or {"statename": "UNKNOWN", "pid": 0}
        died = info["statename"] in supervisor.DEAD or (pid and info["pid"] != pid)
        pid = info["pid"] or pid
        missing = "it died" if died else ready.missing()
        if missing is None:
            return
        waited = time.monotonic() - begun
        if died or waited > ready.timeout:
            daemon.stop(name, progress)
            what = (
                "died while it started" if died else f"was not ready within {ready.timeout:.0f} s ({missing})"
            )
            lines = log.last(_LOG_LINES)
            tail = "\n".join(f"  {line}" for line in lines) or "  (it printed nothing)"
            raise job.JobError(
                f"{name} {what} and was stopped. Its last {len(lines)} log lines:\n{tail}\n"
                f"The whole log: {log.path}",
                log=str(log.path),
            )
        progress.say(f"{name}: {phase(log.last(200), program.phases)}")
        time.sleep(min(0.5, 0.05 + waited / 20))


def phase(lines: Sequence[str], phases: Mapping[str, str]) -> str:
    """What a program is doing, from its log: the last phase that it named, else its last line."""
    for line in reversed(lines):
        for words, meaning in phases.items():
            if words in line:
                return meaning
    return f"starting: {lines[-1]}" if lines else "starting"


def refuse_scarce_memory(name: str, needed: int) -> None:
    """Raises JobError if less memory is free than a program needs, in bytes."""
    free, total = processes.memory()
    if needed > free:
        raise job.JobError(
            f"{name} needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} of {total / 1e9:.1f} GB are "
            "free: stop what else takes memory, take the deployment out of the stack, or choose a smaller model."
        )
