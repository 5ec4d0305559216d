"""The controller's side of long work: start the module, look at its progress, show it, return its result."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

#: Seconds after which the next look shows a line (so there is one at least every 5 s), and between two looks.
SHOW = 4.0
LOOK = 1.0

#: Characters of progress that are shown: one line of a terminal.
_WIDTH = 100

_SEPARATOR = "\x1e"


class WatchedAction(ActionBase):
    """Runs the module of its own name in the background and shows its progress live."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The module's result. A line is shown when the words change kind and at least every 5 seconds."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        # A new folder per task and item; it goes when the task ends.
        folder = self._make_tmp_path()
        self.prepare(arguments, folder)
        if not self._task.check_mode:
            arguments["job"] = self._connection._shell.join_path(folder, "job")
        started = self._execute_module(self._task.action, module_args=arguments, task_vars=task_vars)
        if "job" in started:
            started = self._watch(started["job"], task_vars)
        # Verbose output shows a module's arguments; these may hold tokens and environments.
        started.pop("invocation", None)
        result.update(started)
        self._remove_tmp_path(folder, force=True)
        return result

    def prepare(self, arguments: dict[str, Any], folder: str) -> None:
        """Change the module's arguments; `folder` is on the host, the task's own."""

    def _watch(self, job: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        host = task_vars.get("inventory_hostname", "")
        quoted = shlex.quote(job)
        look = (
            f"cd {quoted} && touch seen && cat progress 2>/dev/null; printf '\\036'; "
            f"cat {quoted}/result 2>/dev/null; true"
        )
        begun = shown = time.monotonic()
        pause = 0.05
        while True:
            answer = self._low_level_execute_command(look)
            words, _, text = answer.get("stdout", "").partition(_SEPARATOR)
            if text.strip():
                result: dict[str, Any] = json.loads(text)
                return result
            if answer.get("rc"):
                raise AnsibleActionFail(
                    f"Lost sight of the work on {host}: {answer.get('stderr', '').strip()}"
                )
            now = time.monotonic()
            if now - shown >= SHOW and words.strip():
                shown = now
                Display().display(f"  {host} | {now - begun:4.0f} s | {words.strip()[:_WIDTH]}")
            time.sleep(pause)
            pause = min(LOOK, pause * 2)
