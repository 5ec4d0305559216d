"""Traces: spans reach a collector, and engines are told of them; nothing is imported where nobody asked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from roundhouse_gateway import tracing

from .client import Client, post
from .conftest import Roundhouse, StartGateway, simple_map
from .engine import FakeEngine

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"traceparent: 00-{TRACE}-{PARENT}-01"


class Collector:
    """Takes spans as a real one does, by HTTP and protobuf."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.service = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what comes on one connection."""
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(
                line for line in head.decode().split("\r\n") if line.lower().startswith("content-length")
            )
            body = await reader.readexactly(int(length.partition(":")[2]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.service = next(
                    a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
                )
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
            )


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    found = Collector()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await found.answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield found
    server.close()


@pytest.fixture
async def roundhouse(collector: Collector, start_gateway: StartGateway, engine: FakeEngine) -> Roundhouse:
    return await start_gateway(simple_map(engine))


async def sent(roundhouse: Roundhouse, collector: Collector) -> list[Any]:
    """Return the spans, once all have been sent. The exporter is a thread that waits for an answer."""
    tracer = roundhouse.gateway.tracer
    assert tracer is not None
    await asyncio.to_thread(tracer._provider.force_flush)
    return collector.spans


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


async def test_a_span_of_the_clients_trace(
    roundhouse: Roundhouse, client: Client, engine: FakeEngine, collector: Collector
) -> None:
    assert (
        await client.ask(post({"model": "tiny"}, GIVEN, "tracestate: a=b", "X-Request-Id: r1"))
    ).status == 200
    [span] = await sent(roundhouse, collector)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (span.name, collector.service) == ("/v1/chat/completions tiny", "roundhouse-gateway")
    assert attributes(span) == {
        "gen_ai.request.model": "tiny",
        "gen_ai.provider.name": "fake",
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "roundhouse.request_id": "r1",
        "http.response.status_code": 200,
        "roundhouse.backend": "one",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
    }
    # The engine's own spans are children of this one.
    told = engine.turns[-1].headers
    assert told["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert told["tracestate"] == "a=b"
    assert span.end_time_unix_nano > span.start_time_unix_nano


async def test_a_trace_of_its_own(
    roundhouse: Roundhouse, client: Client, engine: FakeEngine, collector: Collector
) -> None:
    for _ in range(3):
        await client.ask(post({"model": "tiny"}))
    spans = await sent(roundhouse, collector)
    assert len({span.trace_id for span in spans}) == 3
    assert [turn.headers["traceparent"].split("-")[1] for turn in engine.turns] == [
        s.trace_id.hex() for s in spans
    ]


async def test_an_error(roundhouse: Roundhouse, client: Client, collector: Collector) -> None:
    roundhouse.backend().ejected = True
    assert (await client.ask(post({"model": "tiny"}))).status == 503
    [span] = await sent(roundhouse, collector)
    assert (attributes(span)["error.type"], span.status.code) == ("engine_unavailable", 2)


async def test_without_a_collector(start_gateway: StartGateway, engine: FakeEngine) -> None:
    client = await (await start_gateway(simple_map(engine))).connect()
    assert (await client.ask(post({"model": "tiny"}, GIVEN))).status == 200
    assert engine.turns[-1].headers["traceparent"] == f"00-{TRACE}-{PARENT}-01"


def test_nothing_is_imported() -> None:
    program = (
        "import sys; from roundhouse_gateway import __main__, tracing; assert tracing.from_environment({}) is None;"
        " sys.exit('opentelemetry' in sys.modules)"
    )
    source = Path(tracing.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(source)}, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}])
def test_nobody_asks(environment: dict[str, str]) -> None:
    assert tracing.from_environment(environment) is None


def test_the_sdk_is_not_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
    assert "pip install 'roundhouse-gateway[otel]'" in caplog.text
