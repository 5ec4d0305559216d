"""Data plane, the clients' side: one connection of a client.

`GatewayProtocol` is given to Sanic as the protocol of its server. It reads every request itself.
Inference requests become an `Exchange`; any other request is handed to Sanic's ordinary path, which sees
nothing but such requests, on the same connection. The time-outs are the gateway's own: Sanic's would take
a connection that is being relayed for an idle one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

from sanic.http import Http
from sanic.models.server_types import ConnInfo
from sanic.server.protocols.http_protocol import HttpProtocol

from roundhouse_gateway import errors, heads, inference
from roundhouse_gateway.account import Account
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.exchange import Exchange
from roundhouse_gateway.reader import RequestReader
from roundhouse_gateway.timers import Deadline

if TYPE_CHECKING:
    from sanic.models.protocol_types import TransportProtocol

    from roundhouse_gateway.answer import KnownHead
    from roundhouse_gateway.gateway import Gateway
    from roundhouse_gateway.heads import Headers
    from roundhouse_gateway.request import Request

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# Pipelined requests, and bytes of the body of one, that may wait for their turn before no more is read.
_MAX_WAITING = 16
_MAX_WAITING_BODY = 65_536

# Seconds that a client which is still sending has to take its refusal, in all and in silence.
_LINGER, _LINGER_SILENCE = 30.0, 5.0

# A client that has sent its FIN has either left, or closed one direction only and waits for the answer.
# The kernel of one that left resets the connection at the first byte it gets, and a second write notices
# that. Every answer starts with these bytes, so they can be sent before the rest: (bytes, seconds until
# the next).
_PRESENTED = ((b"HTTP/1", 0.1), (b".", 1.0), (b"1", 5.0), (b" ", 0.0))

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _HttpOfSanic(Http):
    """Sanic's reading of a request. The heads it gets are checked, so its own limit does not apply."""

    HEADER_MAX_SIZE = 1 << 30


class GatewayProtocol(HttpProtocol):
    """One connection of a client, which is answered request by request, in the order they came."""

    HTTP_CLASS = _HttpOfSanic

    __slots__ = (
        "_advancing",
        "_current",
        "_deadline",
        "_ending",
        "_exchange",
        "_gateway",
        "_half_closed",
        "_linger_until",
        "_presented",
        "_presenting",
        "_read_paused",
        "_reader",
        "_write_paused",
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._gateway: Gateway = self.app.ctx.gateway
        settings = self._gateway.settings
        self._deadline = Deadline(self.loop, self._expired)
        self._reader = RequestReader(settings.max_header, settings.max_body, self._stranger)
        # The request that is being answered, and its exchange if it is not Sanic that answers.
        self._current: Request | None = None
        self._exchange: Exchange | None = None
        self._advancing = False
        # True once the last answer is given, and only the closing is left.
        self._ending = False
        self._linger_until = 0.0
        self._half_closed = False
        self._read_paused = False
        self._write_paused = False
        self._presented = 0
        self._presenting: asyncio.TimerHandle | None = None

    # What the gateway asks

    @property
    def is_busy(self) -> bool:
        """Tell whether there is a request on this connection that is not answered yet."""
        reader = self._reader
        return self._current is not None or bool(reader.waiting) or reader.incoming is not None

    def close_if_idle(self) -> bool:
        """Close the connection unless it is busy; a busy one closes after its answer in a drain."""
        if self.is_busy:
            return False
        self._end()
        return True

    def cut_short(self, error: GatewayError) -> None:
        """End whatever goes on on this connection."""
        self._reader.end()
        self._reader.waiting.clear()
        if self._exchange is not None:
            self._exchange.cut_short(error)
        else:
            self.cut(reset=False)

    def abort(self) -> None:
        """Close the connection now."""
        if self.transport is not None:
            self.transport.abort()

    # What an exchange and its answer ask

    def write(self, data: bytes) -> None:
        """Send `data` to the client, if it is still there."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def write_whole(self, known: KnownHead, backend: bytes, body: bytes) -> None:
        """Send a complete answer: a known head, our own lines after it, and the body."""
        request = self._current
        if request is None:
            return
        answer = b"%b%d%bX-Request-Id: %b\r\nX-Roundhouse-Backend: %b\r\n%b%b\r\n%b" % (
            known.before,
            len(body),
            known.after,
            request.id.encode(),
            backend,
            request.limits,
            b"".join([b"%b: %b\r\n" % header for header in self.connection_header()]),
            body,
        )
        self.write(self.without_presented(answer))

    def without_presented(self, head: bytes) -> bytes:
        """Return of the head of an answer what has not been sent yet."""
        if self._presenting is not None:
            self._presenting.cancel()
            self._presenting = None
        presented, self._presented = self._presented, 0
        return head[presented:] if presented else head

    def connection_header(self) -> Headers:
        """Return the header that tells the client whether the connection goes on, where it has to be told."""
        request = self._current
        if request is None or self._gateway.draining or not request.keep_alive:
            return [(b"Connection", b"close")]
        return [(b"Connection", b"keep-alive")] if request.http10 else []

    def close_after(self) -> None:
        """Close the connection after the current answer."""
        if self._current is not None:
            self._current.keep_alive = False

    def answer_error(self, error: GatewayError, request: Request) -> None:
        """Answer the current request with an error."""
        if error.close:
            request.keep_alive = False
        body = error.body(request.path, request.id)
        own = [
            *error.headers(),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Request-Id", request.id.encode()),
            *self.connection_header(),
        ]
        lines = b"" if error.limits else request.limits
        head = heads.of_answer(error.status, errors.reason(error.status), [], own, lines=lines)
        self.write(self.without_presented(head) + (b"" if request.method == b"HEAD" else body))
        self.answered()

    def answered(self) -> None:
        """Go on after the answer of the current request."""
        request, self._current, self._exchange = self._current, None, None
        if request is not None and request.error is not None:
            self._linger()
        elif (
            request is None
            or not request.keep_alive
            or self._gateway.draining
            or (self._half_closed and not self._reader.waiting)
        ):
            self._end()
        else:
            if self._reader.incoming is not None:
                self._deadline.set(self._gateway.settings.body_timeout)
            self._advance()

    def cut(self, *, reset: bool) -> None:
        """Close the connection in the middle of an answer, so that nobody takes that for complete."""
        self._current = self._exchange = None
        transport = self.transport
        if transport is None:
            return
        if reset or self._write_paused:
            sock = cast("socket.socket | None", transport.get_extra_info("socket"))
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            self._end()

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. Sanic's task is not started before there is something for it to do."""
        self.transport = cast("asyncio.Transport", transport)
        self._gateway.connections.add(self)
        self._deadline.set(self._gateway.settings.keep_alive)

    def data_received(self, data: bytes) -> None:
        """Read."""
        reader = self._reader
        if reader.ended:
            if self._linger_until:
                left = self._linger_until - self.loop.time()
                self._deadline.set(min(max(left, 0.0), _LINGER_SILENCE))
            return
        before = reader.incoming
        reader.feed(data)
        incoming = reader.incoming
        # The head has to come within the time-out as a whole; a body must not pause for longer.
        if incoming is not None and self._current is None and (incoming is not before or incoming.has_head):
            self._deadline.set(self._gateway.settings.body_timeout)
        self._advance()
        if self._current is not None and not self._read_paused:
            self._limit_reading()

    def eof_received(self) -> bool:
        """Note that the client sends no more. It may have left, or wait for the answer."""
        self._half_closed = True
        self._reader.end()
        if self._current is None and not self._reader.waiting:
            return False
        self._present()
        return True

    def pause_writing(self) -> None:
        """Note that the client does not read as fast as it is answered."""
        self._can_write.clear()
        self._write_paused = True
        if self._exchange is not None:
            self._exchange.client_stalls()

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        self._can_write.set()
        self._write_paused = False
        if self._exchange is not None:
            self._exchange.client_reads()
        else:
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """End."""
        self.transport = None
        self._reader.close()
        self._deadline.close()
        self._current = None
        if self._presenting is not None:
            self._presenting.cancel()
        self._gateway.connections.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()
        # Sanic's part, which may wait to write, has to notice as well.
        self._can_write.set()
        if self.conn_info is not None:
            self.conn_info.lost = True
        if self._task is not None:
            self._task.cancel()

    # Answering

    def _advance(self) -> None:
        """Answer what waits to be answered, and wait for more."""
        if self._advancing or self._write_paused:
            return
        reader = self._reader
        self._advancing = True
        while self._current is None and reader.waiting and self.transport is not None:
            self._answer(reader.waiting.popleft())
        self._advancing = False
        if self._read_paused and not reader.waiting and not self._ending and self.transport is not None:
            self._read_paused = False
            self.transport.resume_reading()
        if self._current is not None or self._ending:
            return
        incoming = reader.incoming
        if incoming is None:
            self._deadline.set(self._gateway.settings.keep_alive)
        elif incoming.expects:
            incoming.expects = False
            self.write(_CONTINUE)

    def _answer(self, request: Request) -> None:
        self._current = request
        self._deadline.clear()
        if request.error is not None:
            self._refuse(request.error, request)
        elif request.path not in inference.ENDPOINTS:
            self._hand_to_sanic(request)
        elif request.method != b"POST":
            method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
            self._refuse(errors.method_not_allowed(method, path, "POST"), request)
        else:
            account = Account(self._gateway, request, self.loop.time())
            try:
                self._infer(request, account)
            except GatewayError as error:
                account.failed(self.loop.time(), error)
                self.answer_error(error, request)

    def _refuse(self, error: GatewayError, request: Request) -> None:
        """Answer a request with an error before anything was read of what it asks for."""
        now = self.loop.time()
        Account(self._gateway, request, now).failed(now, error)
        self.answer_error(error, request)

    def _infer(self, request: Request, account: Account) -> None:
        """Begin the exchange of an inference request. Raises GatewayError."""
        body, request.body = request.body, b""
        gateway = self._gateway
        caller = gateway.access.anyone or gateway.access.caller(request.digest)
        account.key = caller.name
        asked = inference.read(body, request.kind, request.path)
        route = caller.pick(asked.model, asked.owned_by)
        account.route = route
        if caller.meter is not None or gateway.limits_or_traces:
            account.enter(caller, route, len(body))
        pieces = inference.rewritten(body, asked, route.served_model)
        backends = gateway.fleet.backends_of(route)
        exchange = Exchange(self, account, self._deadline, request, route, backends, pieces)
        self._exchange = exchange
        exchange.start()
        if self._half_closed:
            self._present()

    def _stranger(self, request: Request) -> GatewayError | None:
        """Return why somebody may not send a large body: he has no key."""
        try:
            self._gateway.access.caller(request.digest)
        except GatewayError as error:
            return error
        return None

    def _limit_reading(self) -> None:
        """Stop reading if much waits. Until then reading goes on: that is how a leaving is noticed."""
        waiting = self._reader.waiting
        if not waiting:
            return
        if self.transport is not None and (
            len(waiting) >= _MAX_WAITING or any(len(request.body) > _MAX_WAITING_BODY for request in waiting)
        ):
            self._read_paused = True
            self.transport.pause_reading()

    def _present(self, step: int = 0) -> None:
        """Send a little of the head of the answer that is due, to learn whether the client is still there."""
        self._presenting = None
        exchange = self._exchange
        if exchange is None or (exchange.answer is not None and exchange.answer.started):
            return
        piece, pause = _PRESENTED[step]
        self._presented += len(piece)
        self.write(piece)
        if step + 1 < len(_PRESENTED):
            self._presenting = self.loop.call_later(pause, self._present, step + 1)

    def _expired(self) -> None:
        """Act on the deadline of this connection."""
        if self.transport is None:
            return
        if self._exchange is not None:
            self._exchange.expired()
        elif self._ending or self._write_paused:
            self.transport.abort()
        elif self._reader.incoming is not None:
            self._reader.refuse(errors.request_timeout(self._gateway.settings.body_timeout))
            self._advance()
        else:
            self._end()

    # Closing

    def _end(self) -> None:
        """Close the connection when all is sent, without waiting for ever for a client that does not read."""
        self._ending = True
        self._reader.end()
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self._deadline.set(self._gateway.settings.body_timeout)
            transport.close()

    def _linger(self) -> None:
        """Close the connection of a client that may still be sending: it has to get its refusal first.

        If the gateway closed while bytes of the client are unread, the kernel would reset the connection,
        and the client would see that instead of the answer.
        """
        transport = self.transport
        if self._half_closed or transport is None or transport.is_closing():
            self._end()
            return
        self._ending = True
        self._reader.end()
        self._linger_until = self.loop.time() + _LINGER
        self._deadline.set(_LINGER_SILENCE)
        transport.write_eof()

    # The hand-over to Sanic

    def _hand_to_sanic(self, request: Request) -> None:
        """Let Sanic answer a request. `receive_more` tells when it has."""
        close = not request.keep_alive or self._gateway.draining
        head = heads.for_sanic(request.method, request.target, request.headers, request.id, close=close)
        if self._task is None:
            self.conn_info = ConnInfo(cast("TransportProtocol", self.transport))
            self.recv_buffer = bytearray(head)
            self._task = self.loop.create_task(self.connection_task())  # type: ignore[no-untyped-call] # Sanic's
        else:
            self.recv_buffer += head
            self._data_received.set()

    async def receive_more(self) -> None:
        """Wait for the next request that is for Sanic: it asks when it has answered the last one."""
        self._data_received.clear()
        self.answered()
        await self._data_received.wait()

    async def send(self, data: bytes) -> None:
        """Send what Sanic answers, without the empty header that it puts into every answer."""
        await super().send(data.replace(b"alt-svc: \r\n", b"", 1))  # type: ignore[no-untyped-call] # Sanic's

    def check_timeouts(self) -> None:
        """Do nothing: Sanic's time-outs do not know of requests that are relayed."""
