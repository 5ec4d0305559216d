"""What is measured. Each figure is the median of several rounds, in which all peers have their turn."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bench import load, nginx, peers
from bench.processes import BenchError, Running, free_port

# peer -> load -> name of the figure -> value
Figures: TypeAlias = dict[str, dict[str, dict[str, float]]]
Sample: TypeAlias = Callable[[], dict[str, float]]

CONNECTIONS = (1, 32, 256)
STREAMS = (1, 64, 256, 1000)
MODELS = (1, 100, 1000)

_TOKENS = 100
# A thousand streams at 5 ms are more than two cores can produce and read, whatever is in between.
_PAUSE, _PAUSE_OF_MANY = 5, 25
_IMAGE = 15_000_000  # 20 MB as base64
_FIRST_TOKENS = 200  # short streams, one after the other, for the time to the first token


class Plan(NamedTuple):
    """How long it takes: rounds, seconds of each load of requests, streams one after the other."""

    rounds: int
    seconds: float
    repeats: int


FULL, QUICK = Plan(3, 2.0, 4), Plan(1, 1.0, 1)


class Peer(NamedTuple):
    """Something that answers on `port`; `process` is None where nothing is in between."""

    port: int
    process: Running | None


class Bench:
    """One run: the upstreams, and where everything keeps its files."""

    def __init__(
        self, folder: Path, plan: Plan, start: dict[str, peers.Start], skipped: dict[str, str]
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._start = start
        self._skipped = skipped
        self._plain, self._streaming = free_port(), free_port()
        self._script = load.write_request(folder, "chat")

    @contextmanager
    def upstreams(self) -> Iterator[None]:
        """Run the upstreams."""
        with ExitStack() as stack:
            plain = stack.enter_context(nginx.upstream(self._folder / "upstream", self._plain))
            command = [sys.executable, "-m", "bench.engine", str(self._streaming)]
            streaming = stack.enter_context(
                Running(command, self._folder / "engine.log", PYTHONPATH=Path(__file__).parents[1])
            )
            plain.wait_for_port(self._plain)
            streaming.wait_for_port(self._streaming)
            yield

    def requests(self) -> Figures:
        """Whole answers: CPU, rate and latency by the number of connections; memory at rest and after."""
        with self._peers(streams=False) as running:
            return self._rounds(
                (name, f"{connections}", self._asking(peer, connections))
                for connections in CONNECTIONS
                for name, peer in running.items()
            )

    def bodies(self) -> Figures:
        """Requests with an image of 20 MB."""
        script = load.write_request(self._folder, "image", _IMAGE)
        with self._peers(streams=False) as running:
            return self._rounds(
                (name, "20 MB", self._asking(peer, 2, script)) for name, peer in running.items()
            )

    def streams(self) -> Figures:
        """Streams: CPU of a token, time to the first token, gaps, and memory, by the number of streams."""
        with self._peers(streams=True) as running:
            first = self._rounds(
                (name, "first", self._streaming_to(peer, 1, _FIRST_TOKENS, 2, 1))
                for name, peer in running.items()
            )
            rest = self._rounds(
                (name, f"{count}", self._streaming_to(peer, count, *self._length(count)))
                for count in STREAMS
                for name, peer in running.items()
            )
            return {name: first.get(name, {}) | rest[name] for name in rest}

    def models(self) -> Figures:
        """The gateway with 1, 100 and 1000 models in its map, at 32 connections."""
        with ExitStack() as stack:
            running = {}
            for count in MODELS:
                port = free_port()
                process = peers.roundhouse(self._folder / f"models-{count}", port, self._plain, count)
                stack.enter_context(process).wait_for_port(port)
                running[count] = Peer(port, process)
            return self._rounds(
                ((peers.OURS, f"{count} models", self._asking(peer, 32)) for count, peer in running.items()),
                self._plan.rounds * 2 - 1,
            )

    @contextmanager
    def _peers(self, *, streams: bool) -> Iterator[dict[str, Peer]]:
        """Run all peers that can be started; the others are skipped with a reason."""
        to = self._streaming if streams else self._plain
        with ExitStack() as stack:
            running = {peers.DIRECT: Peer(to, None)}
            for name, start in self._start.items():
                if name in self._skipped:
                    continue
                port = free_port()
                try:
                    process = start(self._folder / f"{name}-{port}", port, to, streams)
                    stack.enter_context(process).wait_for_port(port)
                    peer = Peer(port, process)
                    self._warm(peer, streams=streams)
                except BenchError as error:
                    self._skipped[name] = str(error)
                else:
                    running[name] = peer
            yield running

    def _warm(self, peer: Peer, *, streams: bool) -> None:
        """Use a peer a little. Raises BenchError if it does not answer as it should."""
        if streams:
            seen = load.streams(peer.port, 8, 2, 2, 1)
            if seen["broken"]:
                raise BenchError("does not pass streams on")
        elif load.requests(peer.port, self._script, 32, 1)["errors"]:
            raise BenchError("does not pass requests on")

    def _length(self, streams: int) -> tuple[int, int, int]:
        """Return repeats, tokens and pause for a number of streams."""
        if streams >= 1000:
            return max(self._plan.repeats // 4, 1), _TOKENS, _PAUSE_OF_MANY
        return self._plan.repeats, _TOKENS, _PAUSE

    def _asking(self, peer: Peer, connections: int, script: Path | None = None) -> Sample:
        def sample() -> dict[str, float]:
            before = peer.process.cpu() if peer.process else 0.0
            seen = load.requests(peer.port, script or self._script, connections, self._plan.seconds)
            figures = {
                "rate": seen["requests"] / seen["seconds"],
                "p50": seen["p50"],
                "p99": seen["p99"],
                "errors": seen["errors"],
            }
            return figures | _cost(peer, before, seen["requests"])

        return sample

    def _streaming_to(self, peer: Peer, count: int, repeats: int, tokens: int, pause: int) -> Sample:
        def sample() -> dict[str, float]:
            before = peer.process.cpu() if peer.process else 0.0
            seen = load.streams(peer.port, count, repeats, tokens, pause)
            return seen | _cost(peer, before, count * repeats * tokens)

        return sample

    def _rounds(self, samples: Iterable[tuple[str, str, Sample]], rounds: int | None = None) -> Figures:
        todo = list(samples)
        seen: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(rounds or self._plan.rounds):
            for peer, what, sample in todo:
                try:
                    seen.setdefault((peer, what), []).append(sample())
                except BenchError as error:
                    sys.stderr.write(f"{peer}, {what}: {error}\n")
        figures: Figures = {}
        for (peer, what), got in seen.items():
            if got:
                figures.setdefault(peer, {})[what] = {
                    name: statistics.median(one[name] for one in got) for name in got[0]
                }
        return figures


def _cost(peer: Peer, before: float, count: float) -> dict[str, float]:
    """Return the CPU of each of `count` things in microseconds, and the memory in bytes."""
    if peer.process is None or not count:
        return {}
    return {"cpu": (peer.process.cpu() - before) / count * 1e6, "rss": peer.process.rss()}
