"""Action access_keys: runs the module of the same name, whose arguments are nobody else's."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Verbose output shows a module's arguments; these may hold hashes."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(self._execute_module(self._task.action, self._task.args, task_vars=task_vars))
        result.pop("invocation", None)
        return result
