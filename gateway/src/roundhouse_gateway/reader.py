"""Requests of a client, read from the bytes of its connection. Nothing here does I/O.

httptools finds the parts of a request; what HTTP and the gateway's limits ask of them is checked here and
in `request`. A request that is to be refused comes out like the others, with its `error` set, and ends
the reading.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import httptools

from roundhouse_gateway import errors, heads
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.request import Request

log = logging.getLogger(__name__)

# Requests that came before, by the bytes of their heads, less those of the length. Clients send the same heads
# again and again; one is read and checked once, and the same bytes, at the start of a request that comes in
# one piece, mean the same. Bounds: their number, and the size of each in bytes.
_known: dict[bytes, Request] = {}
_MAX_KNOWN, _MAX_KNOWN_SIZE = 512, 4096

# Bytes of a body that are taken before it is asked who sends it.
_STRANGERS = 65_536


class RequestReader:
    """Takes bytes, and puts requests into `waiting`, in the order they came. Sizes are in bytes.

    `incoming` is the request of which a part has come; `ended` says that no more is read, because the
    last request of the connection has been.
    """

    __slots__ = (
        "_admit",
        "_has_body",
        "_head_size",
        "_max_body",
        "_max_header",
        "_offer",
        "_parser",
        "_queued",
        "ended",
        "incoming",
        "waiting",
    )

    def __init__(
        self,
        max_header: int,
        max_body: int,
        admit: Callable[[Request], GatewayError | None] = lambda _: None,
    ) -> None:
        """`admit` is asked before a large body is taken; a request that it has an error for is refused."""
        self._admit = admit
        self._max_header = max_header
        self._max_body = max_body
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._head_size = 0
        # Whether the data that came last ended a request, and whether it had a part of a body.
        self._queued = False
        self._has_body = False
        # A request that offers to go on in another protocol.
        self._offer: Request | None = None
        self.incoming: Request | None = None
        self.waiting: deque[Request] = deque()
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take what the client sent."""
        before = self.incoming
        if before is None and self._take_known(data):
            return
        had_head = before is not None and before.has_head
        self._queued = self._has_body = False
        self._parse(data)
        incoming = self.incoming
        if before is None and incoming is None and self._queued and not self.ended:
            self._remember(data)
        # Of data that ended one request and began another, nobody knows how much is the head of the second. What
        # is between and behind the chunks of a body must not grow for ever either.
        if incoming is not None and incoming.has_head == had_head and not (self._queued or self._has_body):
            self._head_size += len(data)
            if self._head_size > self._max_header:
                self.refuse(errors.headers_too_large(self._max_header))

    def _take_known(self, data: bytes) -> bool:
        """Take a whole request with a known head, unparsed. Returns False if it is none."""
        head, end, length = heads.without_length(data)
        known = _known.get(head)
        if known is None or len(data) - end != length or length > self._max_body or end > self._max_header:
            return False
        self.waiting.append(known.again(data[end:]))
        return True

    def _remember(self, data: bytes) -> None:
        """Remember the head of the request that was read last, if `data` is just that request."""
        request = self.waiting[-1]
        head, end, length = heads.without_length(data)
        if len(data) - end == length == len(request.body) and end <= _MAX_KNOWN_SIZE and request.is_plain():
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            request.prepare()
            _known[head] = request.again(b"")

    def refuse(self, error: GatewayError) -> None:
        """Let the request that is being read, or else the connection as such, be answered with an error."""
        if self.ended:
            return
        request = self.incoming or Request()
        if not request.id:
            request.name()
        request.error = error
        self._queue(request)

    def end(self) -> None:
        """Read no more, and forget what was not read completely."""
        self.ended = True
        self.incoming = None

    def close(self) -> None:
        """Forget everything. The parser refers to this reader, which would keep both in memory."""
        self.end()
        self.waiting.clear()
        self._parser = None

    def _parse(self, data: bytes) -> None:
        while self._parser is not None and not self.ended:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                if isinstance(error, httptools.HttpParserCallbackError):
                    log.exception("request not read")
                self.refuse(errors.bad_request(str(error)))
                return
            else:
                return
            # The client offers another protocol, and the parser left out the body for that. The offer is not
            # taken: a new parser gets the head again, without the offer.
            self._parser = httptools.HttpRequestParser(self)
            if self._offer is not None:
                data = self._offer.head_without_upgrade() + data
                self._offer = None

    def _queue(self, request: Request) -> None:
        """Let a request that has been read, as far as it is going to be, wait for its turn."""
        self.incoming = None
        self._queued = True
        self.waiting.append(request)
        if request.error is not None or not request.keep_alive:
            self.ended = True

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        """Begin a request."""
        if not self.ended:
            self.incoming = Request()
            self._head_size = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if self.incoming is not None:
            self.incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those after the body (trailers) only count."""
        incoming = self.incoming
        if incoming is None:
            return
        if incoming.has_head:
            self._head_size += len(name) + len(value) + 4
            if self._head_size > self._max_header:
                incoming.error = errors.headers_too_large(self._max_header)
        else:
            incoming.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head."""
        request, parser = self.incoming, self._parser
        if request is None or parser is None:
            return
        self._head_size = 0
        request.read_head(
            parser.get_method(),
            parser.get_http_version(),
            keep_alive=parser.should_keep_alive(),
            max_header=self._max_header,
            max_body=self._max_body,
        )
        if request.error is not None:
            self._queue(request)
        elif parser.should_upgrade():
            self.incoming, self._offer = None, request

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        request = self.incoming
        if request is not None:
            self._has_body = True
            self._head_size = 0
            before = len(request.body)
            request.add(piece, self._max_body)
            if request.error is None and before <= _STRANGERS < len(request.body):
                request.error = self._admit(request)
                if request.error is not None:
                    request.body, request.keep_alive = b"", False
            if request.error is not None:
                self._queue(request)

    def on_message_complete(self) -> None:
        """Take the request as complete."""
        request = self.incoming
        if request is not None:
            self._queue(request)
