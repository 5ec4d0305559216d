"""Who is measured: nothing, nginx, the Rust routers, and the gateway."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from bench import load, nginx
from bench.processes import BenchError, Running, free_port

# (folder for its files, port to listen on, port of the upstream, whether it is to carry streams)
Start: TypeAlias = Callable[[Path, int, int, bool], Running]

DIRECT, NGINX, OURS = "direct", "nginx", "roundhouse"
# The same with keys and limits, and with a line in the log for each request.
KEYS, LOG = "roundhouse, keys", "roundhouse, log"
ROUTERS = {"vllm-router": "0.1.17", "sglang-router": "0.3.2"}

_SOURCE = Path(__file__).parents[1] / "src"
# The largest body, and more requests at a time than are ever sent.
_LIMITS = ("--max-payload-size", "268435456", "--max-concurrent-requests", "8192")
_INSTALL_TIMEOUT = 300.0  # seconds


def environment(cache: Path, name: str, *requirements: str) -> Path:
    """Return the Python of an environment in `cache`, which is made if need be. Raises BenchError."""
    folder = cache / name
    python = folder / "bin" / "python"
    marker = folder / "complete"
    if marker.exists() and marker.read_text() == repr(requirements):
        return python
    sys.stderr.write(f"Installing {' '.join(requirements)} into {folder}\n")
    make = [sys.executable, "-m", "venv", "--clear", str(folder)]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    for command in (make, install):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"could not be installed within {_INSTALL_TIMEOUT:g} s") from None
        if done.returncode:
            raise BenchError(
                f"could not be installed: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}"
            )
    marker.write_text(repr(requirements))
    return python


def routing_map(upstream: int, models: int = 1) -> str:
    """Return a map of that many models; the one that is asked for is the last.

    All models share one address. It is probed as often as by default, and once for all of them.
    """
    names = [*(f"model-{number}" for number in range(models - 1)), "tiny"]
    document = {
        "revision": "1",
        "models": [
            {
                "model": name,
                "engines": [
                    {
                        "owned_by": "bench",
                        "backends": [{"name": f"backend-{name}", "url": f"http://127.0.0.1:{upstream}"}],
                        "max_in_flight": 8192,
                    }
                ],
            }
            for name in names
        ],
    }
    return json.dumps(document)


def roundhouse(folder: Path, port: int, to: int, models: int = 1, **environment: object) -> Running:
    """Start the gateway, with the Python that runs this. It logs no requests unless it is told to."""
    folder.mkdir(parents=True, exist_ok=True)
    routes = folder / "routes.yml"
    routes.write_text(routing_map(to, models))
    return Running(
        [sys.executable, "-m", "roundhouse_gateway"],
        folder / "log",
        PYTHONPATH=_SOURCE,
        ROUNDHOUSE_ROUTES=routes,
        ROUNDHOUSE_PORT=port,
        **{"ROUNDHOUSE_LOG_SAMPLE": 0, **environment},
    )


def _with_keys(folder: Path, port: int, to: int, _streams: bool) -> Running:
    folder.mkdir(parents=True, exist_ok=True)
    keys = folder / "keys.yml"
    digest = hashlib.sha256(load.KEY.encode()).hexdigest()
    limits = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "max_in_flight": 10**6}
    keys.write_text(json.dumps([{"name": "bench", "sha256": digest} | limits]))
    return roundhouse(folder, port, to, ROUNDHOUSE_KEYS=keys)


def _with_log(folder: Path, port: int, to: int, _streams: bool) -> Running:
    return roundhouse(folder, port, to, ROUNDHOUSE_LOG_SAMPLE=1)


def _nginx(folder: Path, port: int, to: int, streams: bool) -> Running:
    return nginx.proxy(folder, port, to, streams=streams)


def _roundhouse(folder: Path, port: int, to: int, _streams: bool) -> Running:
    return roundhouse(folder, port, to)


def _router(python: Path, module: str) -> Start:
    def start(folder: Path, port: int, to: int, _streams: bool) -> Running:
        folder.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [python, "-m", module, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--worker-urls", f"http://127.0.0.1:{to}", "--policy", "round_robin", *_LIMITS]
        command += ["--prometheus-port", str(free_port()), "--log-level", "error"]
        return Running(command, folder / "log")

    return start


def starters(cache: Path, wanted: list[str] | None) -> tuple[dict[str, Start], dict[str, str]]:
    """Return how each peer is started, and of those that can't be why."""
    start: dict[str, Start] = {NGINX: _nginx}
    skipped: dict[str, str] = {}
    for name, version in ROUTERS.items():
        if wanted is not None and name not in wanted:
            continue
        try:
            python = environment(cache, name, f"{name}=={version}")
        except BenchError as error:
            skipped[name] = str(error)
        else:
            start[name] = _router(python, f"{name.replace('-', '_')}.launch_router")
    start |= {OURS: _roundhouse, KEYS: _with_keys, LOG: _with_log}
    return {k: v for k, v in start.items() if wanted is None or k in wanted}, skipped
