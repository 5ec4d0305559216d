"""`python -m bench`, from the folder `gateway`. Exit code 0 if it could measure, whatever it found."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import load, measure, peers, report
from bench.processes import BenchError

_FOLDER = Path(__file__).parent


def main() -> int:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure the gateway beside its peers.")
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute, rough")
    parser.add_argument(
        "--only", nargs="+", metavar="PEER", help="nginx, vllm-router, sglang-router, roundhouse"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("requests", "streams", "bodies", "models"),
        default=("requests", "streams", "bodies", "models"),
    )
    parser.add_argument(
        "--output", type=Path, default=_FOLDER / "results", help="folder for JSON and picture"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "roundhouse-bench")
    arguments = parser.parse_args()
    # Whatever ends this program ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        load.wrk()
        results = _measure(arguments)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "bench.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    figures = [results[key] for key in ("requests", "streams", "bodies", "models")]
    sys.stdout.write(report.tables(*figures) + "\n" + report.target_table(results["targets"]))
    for name, reason in results["skipped"].items():
        sys.stdout.write(f"skipped: {name} {reason}\n")
    sys.stdout.write(f"figures: {path}\n")
    _draw(path, arguments.cache)
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    start, skipped = peers.starters(arguments.cache, arguments.only)
    plan = measure.QUICK if arguments.quick else measure.FULL
    results: dict[str, Any] = {
        "about": report.machine() | {"quick": arguments.quick, "versions": peers.ROUTERS},
        "skipped": skipped,
    }
    with tempfile.TemporaryDirectory(prefix="roundhouse-bench-") as folder:
        # nginx as root gives up its rights, and has to get at its files then.
        Path(folder).chmod(0o755)
        bench = measure.Bench(Path(folder), plan, start, skipped)
        with bench.upstreams():
            for part in ("requests", "streams", "bodies", "models"):
                sys.stderr.write(f"Measuring {part}\n" if part in arguments.parts else "")
                results[part] = getattr(bench, part)() if part in arguments.parts else {}
    results["targets"] = report.targets(results["requests"], results["streams"], results["models"])
    return results


def _draw(path: Path, cache: Path) -> None:
    picture = path.with_suffix(".svg")
    requirement = (_FOLDER / "requirements.txt").read_text().splitlines()[-1]
    try:
        python = peers.environment(cache, "plot", requirement)
        command = [str(python), str(_FOLDER / "plot.py"), str(path), str(picture)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (BenchError, subprocess.TimeoutExpired) as error:
        sys.stdout.write(f"skipped: picture {error}\n")
        return
    if done.returncode:
        sys.stdout.write(f"skipped: picture {done.stderr.strip().splitlines()[-1]}\n")
    else:
        sys.stdout.write(f"picture: {picture}\n")


if __name__ == "__main__":
    sys.exit(main())
