"""Traces, if OTEL_EXPORTER_OTLP_ENDPOINT is set: one span for each request, by the opentelemetry SDK.

The SDK is an extra of the package (`pip install roundhouse-gateway[otel]`), and is imported only then. OpenTelemetry's
own variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...) set it up. Without it a client's `traceparent` is passed on
as it is.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from roundhouse_gateway.logs import fields

if TYPE_CHECKING:
    from roundhouse_gateway.request import Request
    from roundhouse_gateway.routing import Route

log = logging.getLogger(__name__)

_NAMES = (b"traceparent", b"tracestate")


class Span:
    """The span of one request."""

    def __init__(self, span: Any, error: Any) -> None:
        self._span = span
        self._error = error

    def end(self, backend: str, status: int, code: str, tokens: tuple[int, int]) -> None:
        """Tell how the request ended."""
        span = self._span
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("roundhouse.backend", backend)
        if any(tokens):
            span.set_attribute("gen_ai.usage.input_tokens", tokens[0])
            span.set_attribute("gen_ai.usage.output_tokens", tokens[1])
        if code or status >= 500:
            span.set_attribute("error.type", code or str(status))
            span.set_status(self._error)
        span.end()


class Tracer:
    """Begins spans. What it uses of the SDK is given, so that nothing is imported here."""

    def __init__(self, provider: Any, trace: Any, propagator: Any) -> None:
        self._provider = provider
        self._trace = trace
        self._propagator = propagator
        self._tracer = provider.get_tracer("roundhouse_gateway")
        self._error = trace.Status(trace.StatusCode.ERROR)

    def begin(self, request: Request, route: Route) -> Span:
        """Begin the span of a request, and let the engine be told of it instead of the client's."""
        given = {name.lower().decode(): value.decode("latin-1") for name, value in request.headers}
        carrier = {name: given[name] for name in map(bytes.decode, _NAMES) if name in given}
        span = self._tracer.start_span(
            f"{request.path.decode()} {route.model}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "gen_ai.request.model": route.model,
                "gen_ai.provider.name": route.owned_by,
                "http.request.method": "POST",
                "url.path": request.path.decode(),
                "roundhouse.request_id": request.id,
            },
        )
        told: dict[str, str] = {}
        self._propagator.inject(told, context=self._trace.set_span_in_context(span))
        request.replace_passed(_NAMES, [(n.encode(), v.encode("latin-1")) for n, v in told.items()])
        return Span(span, self._error)

    def stop(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


def from_environment(environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """Return a tracer if traces are asked for, and the SDK is there."""
    endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    )
    if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        trace = importlib.import_module("opentelemetry.trace")
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    except ImportError as error:
        log.warning(
            "no traces: the SDK is not installed (pip install 'roundhouse-gateway[otel]')",
            extra=fields(missing=error.name),
        )
        return None
    name = environment.get("OTEL_SERVICE_NAME", "roundhouse-gateway")
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": name}))
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return Tracer(provider, trace, propagation.TraceContextTextMapPropagator())
