"""Action python_env: runs the module of the same name, shows its progress, and brings the project to the host."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.plugin_utils.watched_action import WatchedAction

#: What of a project's folder is installed; tests and the like stay where they are.
_PARTS = ("pyproject.toml", "README.md", "LICENSE", "src/**/*")

#: Zip files have no earlier time. The same for all, so that the same sources make the same archive.
_TIME = (1980, 1, 1, 0, 0, 0)


def archive(project: Path) -> bytes:
    """The project's sources as a zip file; the same bytes for the same sources."""
    files = {file for part in _PARTS for file in project.glob(part) if file.is_file()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(files):
            if "__pycache__" not in file.parts:
                target.writestr(zipfile.ZipInfo(str(file.relative_to(project)), _TIME), file.read_bytes())
    return buffer.getvalue()


class ActionModule(WatchedAction):
    """`project` is a folder on the controller; the module gets it as an archive."""

    def prepare(self, arguments: dict[str, Any], folder: str) -> None:
        """Put the project's archive into the task's folder on the host."""
        if arguments.get("project"):
            target = self._connection._shell.join_path(folder, "project.zip")
            arguments["project"] = self._transfer_data(target, archive(Path(arguments["project"])))
