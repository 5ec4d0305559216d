"""Tables and figures as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows under the titles of `columns` (key -> title), aligned; `-` for what a row does not have."""
    lines = [list(columns.values())]
    lines += [["-" if row.get(key) in (None, "") else str(row[key]) for key in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def duration(seconds: float | None) -> str | None:
    """Seconds as `45 s`, `12 min`, `3 h 5 min` or `2 d 4 h`."""
    if seconds is None:
        return None
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if minutes == 0:
        return f"{int(seconds)} s"
    if hours == 0:
        return f"{minutes} min"
    if days == 0:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def status_rows(programs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `program_status` or `cluster_status` tells, one flat row per program, engines first."""
    rows = [
        {
            "name": program["name"],
            "model": program["labels"].get("model"),
            "engine": program["labels"].get("owned_by"),
            "state": program["state"],
            "pid": program["pid"],
            "port": program["labels"].get("port"),
            "uptime": duration(program["uptime"]),
            "memory": None if program["memory"] is None else f"{program['memory'] / 1e6:.0f} MB",
            "ready": program.get("ready"),
            "restarts": program.get("restarts"),
            "note": program.get("note"),
        }
        for program in programs
    ]
    return sorted(rows, key=lambda row: (row["model"] is None, row["name"]))
