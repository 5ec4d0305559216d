"""llama-server's command line in front of the HTTP server that the PyPI package xllamacpp carries.

The flags have the names and meanings of llama-server (https://github.com/ggml-org/llama.cpp, tools/server), so that a
deployment's `args` are the same for a process and for a container. A flag that is not here is an error, as there.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xllamacpp

#: Flag, short flag, attribute of CommonParams, type (None: a switch).
OPTIONS: Sequence[tuple[str, str | None, str, Callable[[str], Any] | None]] = (
    ("--ctx-size", "-c", "n_ctx", int),
    ("--parallel", "-np", "n_parallel", int),
    ("--batch-size", "-b", "n_batch", int),
    ("--ubatch-size", "-ub", "n_ubatch", int),
    ("--predict", "-n", "n_predict", int),
    ("--n-gpu-layers", "-ngl", "n_gpu_layers", int),
    ("--cache-ram", None, "cache_ram_mib", int),
    ("--threads-http", None, "n_threads_http", int),
    ("--chat-template", None, "chat_template", str),
    ("--rope-freq-base", None, "rope_freq_base", float),
    ("--rope-freq-scale", None, "rope_freq_scale", float),
    ("--kv-unified", "-kvu", "kv_unified", None),
    ("--metrics", None, "endpoint_metrics", None),
    ("--props", None, "endpoint_props", None),
    ("--embedding", "--embeddings", "embedding", None),
    ("--swa-full", None, "swa_full", None),
)

#: The keys that clients have to send; llama-server takes them from there, too.
API_KEYS = [key for key in os.environ.get("LLAMA_API_KEY", "").split(",") if key]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    line.add_argument("-m", "--model", type=Path, required=True)
    line.add_argument("-a", "--alias", required=True)
    line.add_argument("--host", default="127.0.0.1")
    line.add_argument("--port", type=int, default=8080)
    line.add_argument("-t", "--threads", type=int)
    line.add_argument("-tb", "--threads-batch", type=int)
    for flag, short, attribute, kind in OPTIONS:
        names = [name for name in (short, flag) if name]
        if kind is None:
            line.add_argument(*names, dest=attribute, action="store_true", default=None)
        else:
            line.add_argument(*names, dest=attribute, type=kind)
    return line


def parameters(given: argparse.Namespace) -> Any:
    """llama.cpp's own parameters; what was not given keeps its default there."""
    params = xllamacpp.CommonParams()
    params.model.path = str(given.model)
    params.model_alias = {given.alias}
    params.hostnames = [given.host]
    params.port = given.port
    params.ui = False
    params.api_keys = API_KEYS
    if given.threads:
        params.cpuparams.n_threads = given.threads
        params.cpuparams_batch.n_threads = given.threads
    if given.threads_batch:
        params.cpuparams_batch.n_threads = given.threads_batch
    for _, _, attribute, _ in OPTIONS:
        value = getattr(given, attribute)
        if value is not None:
            setattr(params, attribute, value)
    return params


def in_flight(metrics: str) -> float:
    """The requests that llama.cpp works on or has waiting, by what its /metrics say."""
    counts = re.findall(r"^llamacpp:requests_(?:processing|deferred) (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, counts))


def finish(address: str) -> None:
    """Wait until no request is in flight. Whoever stops us kills us when that takes too long."""
    headers = {"Authorization": f"Bearer {API_KEYS[0]}"} if API_KEYS else {}
    request = urllib.request.Request(f"{address}/metrics", headers=headers)  # noqa: S310 - our own address
    try:
        while True:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own address
                if not in_flight(answer.read().decode()):
                    return
            time.sleep(0.1)
    except OSError as error:
        print(f"stopping at once, for /metrics does not tell what is in flight: {error}", flush=True)


def main() -> None:
    """Serve until SIGTERM or SIGINT; requests that are in flight then are finished."""
    line = parser()
    given = line.parse_args()
    if not given.model.is_file():
        line.error(f"there is no model file {given.model}")
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        server = xllamacpp.Server(parameters(given))
    except RuntimeError as error:
        sys.exit(f"llama.cpp can't serve {given.model}: {error}")
    print(f"serving {given.alias} at {server.listening_address}", flush=True)
    over.wait()
    print("stopping when the requests in flight are finished", flush=True)
    finish(server.listening_address)


if __name__ == "__main__":
    main()
