"""The picture of a run: `python plot.py RESULTS.json PICTURE.svg`. Runs in an environment with matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

mpl.use("svg")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the CPU of a request and of a token, of each peer."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (
        (axes[0], "requests", ("1", "32", "256"), "CPU per request, us", "connections"),
        (axes[1], "streams", ("1", "64", "256", "1000"), "CPU per streamed token, us", "streams"),
    )
    for axis, key, loads, title, what in panels:
        figures = {p: f for p, f in results[key].items() if any("cpu" in of for of in f.values())}
        width = 0.8 / max(len(figures), 1)
        for place, (peer, of_peer) in enumerate(figures.items()):
            heights = [of_peer.get(load, {}).get("cpu", 0.0) for load in loads]
            bars = axis.bar([n + place * width for n in range(len(loads))], heights, width, label=peer)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set_xticks([n + width * (len(figures) - 1) / 2 for n in range(len(loads))], loads)
        axis.set(title=title, xlabel=what)
        axis.legend(fontsize=8)
    about = results["about"]
    figure.suptitle(f"{about['cores']} cores, {about['date'][:10]}", fontsize=9)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
