"""Load: wrk for whole answers, `bench.streams` for streams. Every run is bounded in time."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.processes import BenchError

# wrk reads the request from a file, and prints what the tables need.
_SCRIPT = """
local file = assert(io.open("%s", "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.path = "/v1/chat/completions"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%%d,"seconds":%%f,"errors":%%d,"p50":%%d,"p99":%%d}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
KEY = "rh-of-the-bench"  # what all requests present; most peers do not care
_GRACE = 30.0  # seconds a load generator may take longer than it should
_FOLDER = Path(__file__).parents[1]


def wrk() -> str:
    """Return the path of wrk. Raises BenchError."""
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is not installed (Debian: apt-get install wrk)")
    return program


def write_request(folder: Path, name: str, image: int = 0) -> Path:
    """Write a script for wrk that sends one chat request, with an image of so many bytes in it."""
    folder.mkdir(parents=True, exist_ok=True)
    content: Any = "What is the capital of France, and why has it been that for so long?"
    if image:
        url = "data:image/png;base64," + base64.b64encode(os.urandom(image)).decode()
        content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": url}}]
    body = folder / f"{name}.json"
    messages = [{"role": "user", "content": content}]
    body.write_text(json.dumps({"model": "tiny", "messages": messages, "max_tokens": 12}))
    script = folder / f"{name}.lua"
    script.write_text(_SCRIPT % (body, KEY))
    return script


def requests(port: int, script: Path, connections: int, seconds: float) -> dict[str, float]:
    """Ask over that many connections for a while. Latencies are in microseconds."""
    command = [wrk(), "--threads=1", f"--connections={connections}", f"--duration={seconds:g}s"]
    command += ["--timeout=10s", f"--script={script}", f"http://127.0.0.1:{port}"]
    return _read(command, seconds)


def streams(port: int, streams: int, repeats: int, tokens: int, pause: int) -> dict[str, float]:
    """Take streams, `repeats` one after the other on each connection, with `pause` milliseconds per token."""
    numbers = map(str, (port, streams, repeats, tokens, pause))
    command = [sys.executable, "-m", "bench.streams", *numbers]
    return _read(command, repeats * tokens * pause / 1000 + 60.0)


def _read(command: list[str], seconds: float) -> dict[str, float]:
    """Return what a load generator prints last."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + _GRACE, cwd=_FOLDER
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load did not end within {seconds + _GRACE:g} s") from None
    if done.returncode or not done.stdout.strip():
        raise BenchError((done.stderr.strip() or "the load generator failed").splitlines()[-1])
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
