"""Numbers that are cheap to change and that other workers can read.

Every worker has a slab of shared memory: names, and a number (a float) or several for each name. The process that opens
the listening socket makes the slabs before it forks, so all workers can read all of them, and what a worker counted is
there when it has died.
"""

from __future__ import annotations

import json
import logging
import mmap
import threading
from collections.abc import Sequence
from typing import NamedTuple

log = logging.getLogger(__name__)

# Bytes for names, and numbers. Memory is taken as it is used.
_TEXT, _CELLS = 8 << 20, 1 << 20
_HEAD = 16


class Series(NamedTuple):
    """A name with its labels, and where its numbers are."""

    name: str
    labels: tuple[str, ...]
    first: int
    width: int


class Slab:
    """The memory of one worker."""

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, _HEAD + _TEXT + 8 * _CELLS))
        # The length of the text, and the number of cells in use.
        self.sizes = memory[:_HEAD].cast("Q")
        self.text = memory[_HEAD : _HEAD + _TEXT]
        self.cells = memory[_HEAD + _TEXT :].cast("d")
        # What has been read of the text, and how far. Metrics are rendered in threads.
        self._known: list[Series] = []
        self._read = 0
        self._lock = threading.Lock()

    def series(self) -> Sequence[Series]:
        """Return what is in it. Names are only ever added, so each is read once."""
        with self._lock:
            end = self.sizes[0]
            for line in bytes(self.text[self._read : end]).splitlines():
                name, labels, first, width = json.loads(line)
                self._known.append(Series(name, tuple(labels), first, width))
            self._read = end
            return tuple(self._known)


class Counters:
    """What this process counts. `cells` are the numbers; `series` tells which of them are whose."""

    def __init__(self, slabs: Sequence[Slab]) -> None:
        self.slabs = slabs
        self.slot = 0
        self._index: dict[tuple[str, tuple[str, ...]], int] = {}
        self._full = False
        self._take(slabs[0])
        # The first cell is for what no longer finds room.
        if not self._index:
            self.series("", (), 64)

    def _take(self, slab: Slab) -> None:
        self._slab = slab
        self.cells = slab.cells
        for series in slab.series():
            self._index[series.name, series.labels] = series.first

    def use(self, slot: int) -> None:
        """Count in another slab from now on: a worker calls it before it serves.

        What has been named so far has the same place there, for each slab begins with that.
        """
        slab = self.slabs[slot]
        self.slot = slot
        if not slab.sizes[0]:
            length = self._slab.sizes[0]
            slab.text[:length] = self._slab.text[:length]
            slab.sizes[1] = self._slab.sizes[1]
            slab.sizes[0] = length
        self._take(slab)

    def series(self, name: str, labels: tuple[str, ...], width: int = 1) -> int:
        """Return the first cell of a series, which is begun if it is new."""
        found = self._index.get((name, labels))
        if found is not None:
            return found
        sizes = self._slab.sizes
        first = sizes[1]
        line = json.dumps([name, labels, first, width]).encode() + b"\n"
        start = sizes[0]
        if first + width > _CELLS or start + len(line) > _TEXT:
            if not self._full:
                self._full = True
                log.error("no room for more metrics: what is new is not counted")
            return 0
        self._slab.text[start : start + len(line)] = line
        sizes[1] = first + width
        sizes[0] = start + len(line)
        self._index[name, labels] = first
        return first
