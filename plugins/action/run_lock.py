"""Action run_lock: one ansible-playbook at a time per installation."""

from __future__ import annotations

import os
import platform
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.roundhouse.llm.plugins.module_utils.processes import started


class ActionModule(ActionBase):
    """The lock's holder is this ansible-playbook. It ends with the process, however that ends: no unlocking."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the lock, or fail with who has it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        pid = self._controller()
        controller = platform.node()
        arguments = {**self._task.args, "controller": controller, "pid": pid, "started": started(pid)}
        answer = self._execute_module("roundhouse.llm.run_lock", arguments, task_vars=task_vars)
        holder = answer.get("holder")
        # Only the holder's own machine can tell whether the holder is still alive.
        if holder and holder["controller"] == controller and started(holder["pid"]) != holder["started"]:
            arguments["take_from"] = holder
            answer = self._execute_module("roundhouse.llm.run_lock", arguments, task_vars=task_vars)
            holder = answer.get("holder")
        if holder:
            raise AnsibleActionFail(
                f"Another run (process {holder['pid']} on {holder['controller']}, since {holder['since']}) is "
                f"changing {self._task.args['home']}: wait until it ends, or stop it. "
                f"If it is gone, delete {answer['file']}."
            )
        result.update(answer)
        return result

    @staticmethod
    def _controller() -> int:
        # Each task runs in a worker forked from ansible-playbook itself.
        return os.getppid()
