"""What a run found: tables, and the issue's targets as ratios."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from typing import Any

from bench import peers
from bench.measure import CONNECTIONS, MODELS, STREAMS, Figures

# name of the column, name of the figure, divisor, whether what the direct way takes is subtracted
_REQUESTS = (
    ("CPU us", "cpu", 1, False),
    ("requests/s", "rate", 1, False),
    ("added p50 us", "p50", 1, True),
    ("added p99 us", "p99", 1, True),
    ("RSS MB", "rss", 1e6, False),
    ("errors", "errors", 1, False),
)
_STREAMS = (
    ("CPU us/token", "cpu", 1, False),
    ("added first us", "ttft_p50", 1, True),
    ("added gap p99 us", "gap_p99", 1, True),
    ("RSS MB", "rss", 1e6, False),
    ("broken", "broken", 1, False),
)


def machine() -> dict[str, Any]:
    """Return where and when this is."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def tables(requests: Figures, streams: Figures, bodies: Figures, models: Figures) -> str:
    """Return all figures for people."""
    parts = [
        _table("Whole answers, by connections", requests, [str(n) for n in CONNECTIONS], _REQUESTS),
        _table("Requests of 20 MB, 2 connections", bodies, ["20 MB"], _REQUESTS),
        _table("First token of short streams, one at a time", streams, ["first"], _STREAMS[1:2]),
        _table("Streams of 100 tokens, by streams", streams, [str(n) for n in STREAMS], _STREAMS),
        _table("Models in the map, 32 connections", models, [f"{n} models" for n in MODELS], _REQUESTS[:2]),
    ]
    return "\n".join(part for part in parts if part)


def targets(requests: Figures, streams: Figures, models: Figures) -> list[dict[str, Any]]:
    """Return each target with what was measured; those that lack a figure are left out."""
    found: list[dict[str, Any]] = []

    def add(name: str, limit: float, measure: Callable[[], float]) -> None:
        try:
            value = measure()
        except (KeyError, ValueError, ZeroDivisionError):
            return
        found.append({"target": name, "limit": limit, "measured": round(value, 3), "met": value <= limit})

    def cpu(figures: Figures, peer: str, load: str) -> float:
        return figures[peer][load]["cpu"]

    def router(figures: Figures, load: str) -> float:
        return min(figures[peer][load]["cpu"] for peer in peers.ROUTERS if load in figures.get(peer, {}))

    def added(figures: Figures, load: str, figure: str) -> float:
        return figures[peers.OURS][load][figure] - figures[peers.DIRECT][load][figure]

    for load in ("32", "256"):
        ours = f"CPU per request, {load} connections"
        add(
            f"{ours}, x nginx",
            1.0,
            lambda n=load: cpu(requests, peers.OURS, n) / cpu(requests, peers.NGINX, n),
        )
        add(
            f"{ours}, x the better router",
            0.6,
            lambda n=load: cpu(requests, peers.OURS, n) / router(requests, n),
        )
    add(
        "CPU per request with keys and limits, 32 connections, x without",
        1.1,
        lambda: cpu(requests, peers.KEYS, "32") / cpu(requests, peers.OURS, "32"),
    )
    for load in ("64", "256"):
        ours = f"CPU per token, {load} streams"
        add(
            f"{ours}, x nginx", 1.1, lambda n=load: cpu(streams, peers.OURS, n) / cpu(streams, peers.NGINX, n)
        )
        add(
            f"{ours}, x the better router",
            0.8,
            lambda n=load: cpu(streams, peers.OURS, n) / router(streams, n),
        )
    add("added p50 at 1 connection, us", 100, lambda: added(requests, "1", "p50"))
    add("added time to first token, us", 300, lambda: added(streams, "first", "ttft_p50"))
    many, one = f"{MODELS[-1]} models", f"{MODELS[0]} models"
    add("1000 models, x 1 model", 1.05, lambda: cpu(models, peers.OURS, many) / cpu(models, peers.OURS, one))
    add("RSS at 1000 streams, MB", 80, lambda: streams[peers.OURS]["1000"]["rss"] / 1e6)
    return found


def target_table(found: list[dict[str, Any]]) -> str:
    """Return the targets for people."""
    rows = [["target", "at most", "measured", ""]]
    rows += [
        [f["target"], f"{f['limit']:g}", f"{f['measured']:g}", "met" if f["met"] else "MISSED"] for f in found
    ]
    return _aligned("Targets", rows)


def _table(
    title: str, figures: Figures, loads: list[str], columns: tuple[tuple[str, str, float, bool], ...]
) -> str:
    if not any(load in of_peer for of_peer in figures.values() for load in loads):
        return ""
    rows = [["", "", *(name for name, *_ in columns)]]
    direct = figures.get(peers.DIRECT, {})
    for load in loads:
        for peer, of_peer in figures.items():
            if load in of_peer:
                cells = [
                    _cell(
                        of_peer[load],
                        direct.get(load, {}) if relative and peer != peers.DIRECT else {},
                        key,
                        by,
                    )
                    for _, key, by, relative in columns
                ]
                rows.append([load, peer, *cells])
    return _aligned(title, rows)


def _cell(figures: dict[str, float], direct: dict[str, float], key: str, by: float) -> str:
    if key not in figures:
        return "-"
    value = (figures[key] - direct.get(key, 0.0)) / by
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def _aligned(title: str, rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, *lines, ""])
