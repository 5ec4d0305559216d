"""Action python_env: runs the module of the same name, shows its progress, and brings the project to the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.sources import archive
from ansible_collections.roundhouse.llm.plugins.plugin_utils.watched_action import WatchedAction

#: What of a project's folder is installed; tests and the like stay where they are.
_PARTS = ("pyproject.toml", "README.md", "LICENSE", "src/**/*")


class ActionModule(WatchedAction):
    """`project` is a folder on the controller; the module gets it as an archive."""

    def prepare(self, arguments: dict[str, Any], folder: str) -> None:
        """Put the project's archive into the task's folder on the host."""
        if arguments.get("project"):
            target = self._connection._shell.join_path(folder, "project.zip")
            arguments["project"] = self._transfer_data(target, archive(Path(arguments["project"]), _PARTS))
