"""Action image_built: runs the module of the same name, shows its progress, and brings the sources to the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.sources import archive
from ansible_collections.roundhouse.llm.plugins.plugin_utils.watched_action import WatchedAction


class ActionModule(WatchedAction):
    """`sources` is a folder on the controller, of which `parts` are needed; the module gets an archive of them."""

    def prepare(self, arguments: dict[str, Any], folder: str) -> None:
        """Put the archive into the task's folder on the host."""
        parts = arguments.pop("parts")
        target = self._connection._shell.join_path(folder, "sources.zip")
        arguments["sources"] = self._transfer_data(target, archive(Path(arguments["sources"]), parts))
