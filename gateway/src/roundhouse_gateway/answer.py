"""Data plane: one answer of an engine on its way to the client.

An answer passes as it comes, except for errors: their bodies are held back until they are complete, and
brought into one shape. The client's framing always stays between two chunks, so that a stream whose
engine dies at an event boundary can be ended properly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from roundhouse_gateway import errors, heads, inference, mending
from roundhouse_gateway.heads import Headers
from roundhouse_gateway.usage import Usage

if TYPE_CHECKING:
    from roundhouse_gateway.account import Account
    from roundhouse_gateway.backend import Backend
    from roundhouse_gateway.errors import GatewayError
    from roundhouse_gateway.relay import GatewayProtocol
    from roundhouse_gateway.request import Request

_BODILESS = frozenset((204, 304))
_EVENT_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_DONE = (b"data: [DONE]", b"data:[DONE]")
# Enough of the last bytes of a stream to see an end of an event, or [DONE].
_TAIL = 16


class KnownHead(NamedTuple):
    """The head of an answer that passed as it was: it does so again, if the same bytes come again.

    `before` and `after` are what the client gets of it, with the digits of the length in between; `json` says
    that the body has to be looked at first.
    """

    before: bytes
    after: bytes
    json: bool


class NotHTTPError(Exception):
    """The engine's head can't be passed on; the message says what is wrong with it."""


class Answer:
    """The answer to one request: which form it takes for the client, and how far it has got."""

    __slots__ = (
        "_account",
        "_backend",
        "_chunked",
        "_client",
        "_events",
        "_headers",
        "_held",
        "_json",
        "_length",
        "_mending",
        "_out",
        "_phrase",
        "_request",
        "_tail",
        "bodiless",
        "has_news",
        "size",
        "started",
        "status",
        "takes_whole_chunks",
        "until_eof",
    )

    def __init__(
        self,
        client: GatewayProtocol,
        request: Request,
        backend: Backend,
        status: int,
        phrase: bytes,
        headers: Headers,
        account: Account,
    ) -> None:
        """Take the head. Raises NotHTTPError."""
        self._account = account
        self._client = client
        self._request = request
        self._backend = backend
        self.status = status
        self._phrase = phrase
        self._headers = headers
        self._out: list[bytes] = []
        self._tail = b""
        self.started = False
        # Bytes that were sent of the body, and what is around them; and whether a part of the body came since that was
        # asked last.
        self.size = 0
        self.has_news = False
        length, coding, kind, encoding = _framing(headers)
        if coding not in (b"", b"chunked"):
            raise NotHTTPError("its Transfer-Encoding is not just chunked")
        self.bodiless = status in _BODILESS
        self.until_eof = not (self.bodiless or coding or length is not None)
        self._chunked = length is None and not self.bodiless and not request.http10
        encoded = encoding not in (b"", b"identity")
        self._events = kind.startswith(b"text/event-stream") and not encoded
        can_be_mended = not (encoded or self._events or self.bodiless) and (length or 0) <= mending.LIMIT
        self._mending = can_be_mended and status >= 400
        # None if nothing is held back.
        self._held: bytearray | None = None
        self._length = length if not coding else None
        self._json = can_be_mended and status == 200 and kind.startswith(b"application/json")
        if self._mending or self._json:
            self._held = bytearray()
        if status == 200 and not encoded and (self._events or kind.startswith(b"application/json")):
            echoes = request.path not in inference.WITHOUT_ECHO
            account.usage = Usage(is_stream=self._events, echoes=echoes)
        self.takes_whole_chunks = self._chunked and coding == b"chunked" and self._held is None
        if self._held is None:
            self._begin(self.status, self._phrase, None)

    def known_head(self) -> KnownHead | None:
        """Return the head for the next time, if it is one of those that pass as they are."""
        if self.status != 200 or self._length is None or self._length > mending.LIMIT:
            return None
        lines = heads.of_answer(self.status, self._phrase, self._headers, [])[:-2]
        start, end = heads.length_span(lines)
        return KnownHead(lines[:start], lines[end:], self._json) if end else None

    @property
    def is_stream(self) -> bool:
        """Tell whether it is a stream of events."""
        return self._events

    def body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self.has_news = True
        account = self._account
        if account.usage is not None:
            account.usage.feed(piece)
        if account.meters and self._events:
            account.events += piece.count(b"\n\n")
        if self._held is None:
            self._add(piece)
            return
        self._held += piece
        if self._mending:
            if len(self._held) > mending.LIMIT:
                self._let_go()
        elif len(self._held) >= mending.PEEK:
            if mending.may_be_error(bytes(self._held)):
                self._mending = True
            else:
                self._let_go()

    def pass_on(self, chunks: bytes) -> None:
        """Pass whole chunks on as they are."""
        self._tail = chunks[-_TAIL - 2 : -2]
        self.size += len(chunks)
        account = self._account
        if account.usage is not None and b'"usage"' in chunks:
            account.usage.events(chunks)
        if account.meters:
            account.events += chunks.count(b"\n\n")
        self._client.write(chunks)

    def flush(self) -> None:
        """Write what there is."""
        out = self._out
        if out:
            self._out = []
            data = out[0] if len(out) == 1 else b"".join(out)
            self.size += len(data)
            self._client.write(data)

    def end(self) -> None:
        """Complete the answer."""
        if self._held is not None:
            self._mend(bytes(self._held))
        if self._chunked:
            self._out.append(b"0\r\n\r\n")
        self.flush()

    def end_broken(self, error: GatewayError) -> bool:
        """End an answer whose head has been sent, but whose rest won't come.

        Returns False if it can't be ended in a way which nobody takes for complete: it has to be cut.
        """
        if not self._events or self._has_length() or not self._is_between_events():
            return False
        if not self._tail.rstrip().endswith(_DONE):
            self._add(error.event(self._request.path, self._request.id))
        if self._chunked:
            self._out.append(b"0\r\n\r\n")
        self.flush()
        return True

    def _begin(self, status: int, phrase: bytes, length: int | None) -> None:
        """Write the head; `length` is given where it is not the engine's."""
        request = self._request
        own = [
            (b"X-Request-Id", request.id.encode()),
            (b"X-Roundhouse-Backend", self._backend.name.encode()),
        ]
        if length is not None:
            own.append((b"Content-Length", b"%d" % length))
        elif self._chunked:
            own.append((b"Transfer-Encoding", b"chunked"))
        elif not self._has_length():
            self._client.close_after()
        own += self._client.connection_header()
        head = heads.of_answer(
            status,
            phrase,
            self._headers,
            own,
            without_length=length is not None or self._chunked,
            lines=request.limits,
        )
        self._out.append(self._client.without_presented(head))
        self.started = True

    def _has_length(self) -> bool:
        return self.bodiless or heads.value(self._headers, b"content-length") != b""

    def _add(self, piece: bytes) -> None:
        if self._events:
            self._tail = (self._tail + piece[-_TAIL:])[-_TAIL:]
        if self._chunked:
            self._out += (b"%x\r\n" % len(piece), piece, b"\r\n")
        else:
            self._out.append(piece)

    def _let_go(self) -> None:
        """Pass on what was held back, as it is."""
        held, self._held = self._held, None
        self._begin(self.status, self._phrase, None)
        if held:
            self._add(bytes(held))

    def _mend(self, body: bytes) -> None:
        """Pass on a complete body that was held back, in the shape that errors have."""
        status: int | None = self.status
        if self.status == 200:
            status = mending.named_status(body) if mending.may_be_error(body) else None
        mended = mending.mend(status, body, self._request.path, self._request.id) if status else None
        same = status == self.status
        if status is None or (mended is None and same):
            self._let_go()
            return
        self._held = None
        self._chunked = False
        self.status = status
        body = mended or body
        phrase = self._phrase if same else errors.reason(status)
        if mended:
            self._headers = [h for h in self._headers if h[0].lower() != b"content-type"]
            self._headers.append((b"Content-Type", b"application/json"))
        self._begin(status, phrase, len(body))
        self._out.append(body)

    def _is_between_events(self) -> bool:
        return not self._tail or self._tail.endswith(_EVENT_ENDS)


def _framing(headers: Headers) -> tuple[int | None, bytes, bytes, bytes]:
    """Return Content-Length, Transfer-Encoding, Content-Type and Content-Encoding of an answer."""
    length: int | None = None
    coding = kind = encoding = b""
    for name, value in headers:
        match name.lower():
            case b"content-length":
                length = int(value)
            case b"transfer-encoding":
                coding = value.strip().lower()
            case b"content-type":
                kind = value.strip().lower()
            case b"content-encoding":
                encoding = value.strip().lower()
    return length, coding, kind, encoding
