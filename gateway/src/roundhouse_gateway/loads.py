"""The loading of the two files that others write: the routing map and the keys. What is bad is refused, and told of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from roundhouse_gateway.access import KeysError
from roundhouse_gateway.counters import Counters
from roundhouse_gateway.logs import fields
from roundhouse_gateway.routing import MapError
from roundhouse_gateway.watched_file import WatchedFile

log = logging.getLogger(__name__)


class Loads:
    """One of the files: how often it was loaded or refused since the start, and why it was refused last."""

    def __init__(self, what: str, file: WatchedFile | None, counters: Counters, refused: str) -> None:
        """`what` is `map` or `keys`, `file` is None where there is none; then nothing is ever taken."""
        self.at = datetime.now(UTC)
        self.last_error: str | None = None
        self._what = what
        self._file = file
        # Whether the error may pass by itself: the file could not be read.
        self._passes = False
        self._counters = counters
        self._reloads = counters.series(f"roundhouse_{what}_reloads", ())
        self._refusals = counters.series(f"roundhouse_{what}_refusals", ())
        self._refused = counters.series(refused, ())

    def attempt(self, take: Callable[[bytes], None], *, look: bool) -> bool:
        """Let `take` have the content: if it is new and complete (`look`), or in any case. Returns whether it took it.

        If it is bad, what was taken before goes on.
        """
        file = self._file
        if file is None:
            return False
        try:
            if not look:
                file.read()
            elif not file.look():
                if self._passes:
                    self._recovered()
                return False
            take(file.content)
        except OSError as error:
            sentence = unread(self._what, error)
            is_news = self._refuse(sentence, passes=True)
            # It is looked at once a second: that is said once.
            if is_news or not look:
                self._tell(file, [sentence])
            return False
        except (MapError, KeysError) as error:
            self._refuse(str(error), passes=False)
            self._tell(file, error.problems)
            return False
        self.at = datetime.now(UTC)
        self._counters.cells[self._reloads] += 1.0
        self._recovered()
        return True

    def _refuse(self, error: str, *, passes: bool) -> bool:
        """Note an error. Returns False if it is known already."""
        is_news = self.last_error != error
        self._counters.cells[self._refusals] += is_news
        self._counters.cells[self._refused] = 1.0
        self.last_error, self._passes = error, passes
        return is_news

    def _recovered(self) -> None:
        self.last_error, self._passes = None, False
        self._counters.cells[self._refused] = 0.0

    def _tell(self, file: WatchedFile, problems: list[str]) -> None:
        log.error(f"{self._what} refused", extra=fields(path=str(file.path), problems=problems))


def watched(path: Path, what: str, refusal: type[MapError] | type[KeysError]) -> WatchedFile:
    """Return a file whose content has been read. Raises `refusal`."""
    try:
        return WatchedFile(path)
    except OSError as error:
        raise refusal([unread(what, error)]) from None


def unread(what: str, error: OSError) -> str:
    """Return what to say of a file that can't be read."""
    return f"The {what} can't be read: {error.strerror or error}."
