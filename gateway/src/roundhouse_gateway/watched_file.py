"""A file that somebody else writes: the routing map, the keys. It is looked at now and then."""

from __future__ import annotations

from pathlib import Path


class WatchedFile:
    """What was read of a file last, and whether there is something new. Methods that read raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content, self._inode = self._read()
        self._seen = self.content

    def look(self) -> bool:
        """Tell whether the file has new, complete content, which is in `content` then."""
        content, inode = self._read()
        # A file that was put in place of the old one is complete. One that is written in place may be half written, so
        # it has to look the same twice.
        is_new = content != self.content and (inode != self._inode or content == self._seen)
        self._seen = content
        if is_new:
            self.content, self._inode = content, inode
        return is_new

    def read(self) -> None:
        """Take the content as it is now."""
        self.content, self._inode = self._read()
        self._seen = self.content

    def _read(self) -> tuple[bytes, int]:
        with self.path.open("rb") as file:
            return file.read(), self.path.stat().st_ino
