"""Heads of requests and answers as they are sent on. Pure: nothing here does I/O.

A header that concerns one connection only (hop-by-hop) stays on that connection; what is left keeps its
order and spelling.
"""

from collections.abc import Iterable
from typing import TypeAlias

Headers: TypeAlias = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
# Of the request: what the gateway writes itself, and the gateway's keys, which are none of the engine's
# business.
_NOT_TO_ENGINE = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"x-request-id",
    b"authorization",
    b"x-api-key",
}
# Sanic gets its requests without a body.
_NOT_TO_SANIC = _HOP_BY_HOP | {b"content-length", b"expect", b"x-request-id"}
# They belong to the body, whatever Connection says.
_OF_THE_BODY = frozenset((b"content-length", b"content-type"))
_NOT_TO_CLIENT = _HOP_BY_HOP | {b"x-request-id", b"x-roundhouse-backend"}


def for_engine(target: bytes, own: bytes, kept: bytes, length: int, request_id: str) -> bytes:
    """Return the head of a POST of `length` bytes to `target` (path and query) of an engine.

    `own` are the header lines that every request to that engine has, `kept` those of the client.
    """
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\nX-Request-Id: %b\r\n\r\n" % (
        target,
        own,
        kept,
        length,
        request_id.encode(),
    )


def kept_for_engine(headers: Headers) -> bytes:
    """Return the header lines of a request that are for the engine."""
    return b"".join(_kept(headers, _NOT_TO_ENGINE))


def for_sanic(method: bytes, target: bytes, headers: Headers, request_id: str, *, close: bool) -> bytes:
    """Return the head of a request without a body, for Sanic to answer."""
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    lines += _kept(headers, _NOT_TO_SANIC)
    lines.append(b"X-Request-Id: %b\r\n" % request_id.encode())
    lines.append(b"Connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(lines)


def of_answer(
    status: int,
    phrase: bytes,
    headers: Headers,
    own: Headers,
    *,
    without_length: bool = False,
    lines: bytes = b"",
) -> bytes:
    """Return the head of an answer: `headers` of the engine, less what must not pass, then our `own` and `lines`."""
    parts = [b"HTTP/1.1 %d %b\r\n" % (status, phrase)]
    parts += _kept(headers, _NOT_TO_CLIENT | {b"content-length"} if without_length else _NOT_TO_CLIENT)
    parts += [b"%b: %b\r\n" % header for header in own]
    parts += (lines, b"\r\n")
    return b"".join(parts)


def value(headers: Headers, name: bytes) -> bytes:
    """Return the value of the first header called `name` (in lower case), or nothing."""
    for key, content in headers:
        if key.lower() == name:
            return content.strip()
    return b""


def length_span(head: bytes) -> tuple[int, int]:
    """Return where the digits of the Content-Length are; nowhere if there is none, or none as usual."""
    start = head.find(b"\r\nContent-Length: ")
    if start < 0:
        start = head.find(b"\r\ncontent-length: ")
    if start < 0:
        return 0, 0
    start += 18
    end = head.find(b"\r\n", start)
    return (start, end) if head[start:end].isdigit() and end - start < 10 else (0, 0)


def without_length(data: bytes) -> tuple[bytes, int, int]:
    """Return the head at the start of `data` less the digits of its Content-Length, its size, and that length.

    Heads that differ in nothing but their length are the same then. The length is -1 if there is none, or one
    that is not written in the usual way.
    """
    size = data.find(b"\r\n\r\n") + 4
    head = data[:size]
    start, end = length_span(head)
    if not end:
        return b"", size, -1
    return head[:start] + head[end:], size, int(head[start:end])


def request_id(headers: Headers) -> str | None:
    """Return the client's request id if it can be used: at most 128 printable ASCII characters."""
    text = value(headers, b"x-request-id").decode("latin-1")
    return text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else None


def _kept(headers: Headers, dropped: frozenset[bytes]) -> Iterable[bytes]:
    nominated: list[bytes] = []
    for key, content in headers:
        if key.lower() == b"connection":
            nominated += (token.strip().lower() for token in content.split(b","))
    # A header named by Connection is hop-by-hop too. Those that say how the body is to be read can't be.
    without = dropped.union(set(nominated) - _OF_THE_BODY) if nominated else dropped
    return [b"%b: %b\r\n" % header for header in headers if header[0].lower() not in without]
