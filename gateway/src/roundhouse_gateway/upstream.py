"""Data plane, the engines' side: one connection to an engine.

A connection parses what the engine answers with httptools and hands it to the exchange which it serves at
the time. Nothing here is a coroutine: connections are opened by the exchange and end up in the pool of
their backend, from which the one that was used last is taken first.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, cast

import httptools

from roundhouse_gateway import heads, mending
from roundhouse_gateway.answer import KnownHead, NotHTTPError
from roundhouse_gateway.heads import Headers

if TYPE_CHECKING:
    from roundhouse_gateway.answer import Answer
    from roundhouse_gateway.backend import Backend
    from roundhouse_gateway.exchange import Exchange
    from roundhouse_gateway.inference import Piece

log = logging.getLogger(__name__)

# Bodies up to this size are joined with their head: one buffer is written with less work than two.
_JOINED = 16_384

# Heads of answers that came before, by their bytes less those of the length. A head is read once; the same
# bytes, at the start of an answer that comes in one piece, mean the same. Bounds: their number, and the size of each
# in bytes.
_known_heads: dict[bytes, KnownHead] = {}
_MAX_KNOWN, _MAX_KNOWN_SIZE = 256, 4096

_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,7})\r\n")
# A chunk must have that many bytes to be passed on unparsed, so that the end of a stream can be seen in the
# last.
SHORTEST_CHUNK = 16
# Sizes of chunks as most engines write them, for the usual lengths of one token.
_USUAL_SIZES = {b"%x" % size: size for size in range(SHORTEST_CHUNK, 1024)}


class EngineConnection(asyncio.Protocol):
    """One connection to an engine. It serves one exchange at a time, and is pooled in between."""

    __slots__ = (
        "_complete",
        "_exchange",
        "_headers",
        "_informational",
        "_keep_alive",
        "_parser",
        "_phrase",
        "_reading",
        "_until_eof",
        "_whole_chunks",
        "answered",
        "backend",
        "idle_since",
        "reused",
        "transport",
    )

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.answered = False
        self.idle_since = 0.0
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reading = True
        self._begin()

    def _begin(self) -> None:
        """Forget the last answer."""
        self._headers: Headers = []
        self._phrase = b""
        self._informational = False
        self._until_eof = False
        self._complete = False
        self._keep_alive = False
        # True while the parser is between two chunks of an answer that may be passed on unparsed.
        self._whole_chunks = False

    def is_usable(self) -> bool:
        """Tell whether a request can be sent, as far as is known."""
        return self.transport is not None and not self.transport.is_closing()

    def send(self, exchange: Exchange, head: bytes, body: list[Piece], length: int) -> None:
        """Send a request of `length` bytes of body; what is answered goes to `exchange`."""
        self._exchange = exchange
        self.answered = False
        self._begin()
        transport = cast("asyncio.Transport", self.transport)
        if length <= _JOINED:
            transport.write(b"".join((head, *body)))
        else:
            transport.writelines((head, *body))

    def release(self) -> None:
        """Part from the exchange: back into the pool if the engine lets us, else closed."""
        self._exchange = None
        transport = self.transport
        if transport is None:
            return
        if (
            self._complete
            and self._keep_alive
            and not self.backend.removed
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        ):
            self.resume_answer()
            self.reused = True
            self.idle_since = asyncio.get_running_loop().time()
            self.backend.idle.append(self)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection now; what is not sent yet is of no use to anybody."""
        self._exchange = None
        if self.transport is not None:
            self.transport.abort()

    def pause_answer(self) -> None:
        """Take nothing more from the engine for the time being."""
        if self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_answer(self) -> None:
        """Take from the engine again."""
        if not self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        # With no room in the buffer, resume_writing tells when a request that had to wait is all sent.
        self.transport.set_write_buffer_limits(high=0)
        self.backend.metrics.connections += 1
        self._parser = httptools.HttpResponseParser(self)

    def resume_writing(self) -> None:
        """Note that the request is all sent."""
        if self._exchange is not None:
            self._exchange.request_sent()

    def data_received(self, data: bytes) -> None:
        """Pass on a piece of the answer."""
        exchange = self._exchange
        if exchange is None or self._parser is None:
            # Nobody asked for this.
            self.close()
            return
        if self._whole_chunks and are_whole_chunks(data):
            exchange.pass_on(data)
            return
        first = not self.answered
        self.answered = True
        if first and self._pass_known(exchange, data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._keep_alive = False
            exchange.garbled("switched to another protocol")
            return
        except httptools.HttpParserError as error:
            self._keep_alive = False
            cause = error.__context__
            if cause is not None and not isinstance(cause, NotHTTPError):
                log.exception("answer not passed on")
            if not self._complete:
                exchange.garbled(f"did not answer in HTTP ({cause or error})")
                return
        if self._whole_chunks and not data.endswith(b"\r\n"):
            self._whole_chunks = False
        if self._complete:
            if first and self._keep_alive:
                _remember(data, exchange.answer)
            exchange.complete()
        else:
            exchange.flush()

    def _pass_known(self, exchange: Exchange, data: bytes) -> bool:
        """Pass on a whole answer with a known head, unparsed. Returns False if it is none."""
        head, end, length = heads.without_length(data)
        known = _known_heads.get(head)
        if known is None or len(data) - end != length or length > mending.LIMIT:
            return False
        body = data[end:]
        if known.json and mending.may_be_error(body):
            return False
        self._complete = self._keep_alive = True
        exchange.whole_answer(known, body)
        return True

    def eof_received(self) -> None:
        """Note that the engine sends no more, which ends an answer without a length."""
        if self._until_eof and self._exchange is not None:
            self._complete = True
            self._exchange.complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.transport = None
        self._parser = None
        self.backend.metrics.connections -= 1
        exchange, self._exchange = self._exchange, None
        if self in self.backend.idle:
            self.backend.idle.remove(self)
            # Idle connections are closed here before engines close them, so this engine is ending.
            self.backend.suspect = True
        if exchange is not None:
            exchange.connection_lost(exc)

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        """Note an answer that nobody asked for: who knows what the next one would be an answer to."""
        if self._complete:
            self._keep_alive = False

    def on_status(self, phrase: bytes) -> None:
        """Note the reason phrase."""
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; those after the body (trailers) are dropped, as HTTP allows."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Pass on the head."""
        if self._complete or self._exchange is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._informational = True
            return
        headers, self._headers = self._headers, []
        answer = self._exchange.answer_head(status, self._phrase, headers)
        self._until_eof = answer.until_eof
        self._whole_chunks = answer.takes_whole_chunks

    def on_chunk_header(self) -> None:
        """Note that the parser is inside a chunk."""
        self._whole_chunks = False

    def on_body(self, piece: bytes) -> None:
        """Pass on a piece of the body."""
        if not self._complete and self._exchange is not None:
            self._exchange.answer_body(piece)

    def on_chunk_complete(self) -> None:
        """Note that the parser is between two chunks."""
        if self._exchange is not None and self._exchange.answer is not None:
            self._whole_chunks = self._exchange.answer.takes_whole_chunks

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if self._complete:
            return
        if self._informational:
            self._begin()
            return
        self._complete = True
        self._whole_chunks = False
        self._keep_alive = self._parser is not None and self._parser.should_keep_alive()


def _remember(data: bytes, answer: Answer | None) -> None:
    """Remember the head of an answer if `data` is just that answer."""
    known = answer.known_head() if answer is not None else None
    if known is None:
        return
    head, end, length = heads.without_length(data)
    if len(data) - end == length and end <= _MAX_KNOWN_SIZE:
        if len(_known_heads) >= _MAX_KNOWN:
            _known_heads.clear()
        _known_heads[head] = known


def are_whole_chunks(data: bytes) -> bool:
    """Tell whether `data` is one or more whole chunks, none of them the last, and none very short.

    Such data leaves a parser which is between two chunks where it is, so it can pass without being parsed.
    """
    position, end = 0, len(data)
    line = data.find(b"\r\n", 0, 6)
    if _USUAL_SIZES.get(data[:line]) == end - line - 4:
        return data.endswith(b"\r\n")
    while position < end:
        head = _CHUNK_HEAD.match(data, position)
        if head is None:
            return False
        size = int(head[1], 16)
        position = head.end() + size + 2
        if size < SHORTEST_CHUNK or position > end or data[position - 2 : position] != b"\r\n":
            return False
    return True
