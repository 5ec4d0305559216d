"""Data plane: one inference request, from the choice of a backend to the last byte of the answer.

An exchange owns the time-outs, the retries and the counts of its request. It stands between the client's
connection (`relay`) and the engine's (`upstream`), and knows how far the request has got:

    connecting -> waiting (sent, no byte of the answer yet) -> answering -> over
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING

from roundhouse_gateway import errors, heads
from roundhouse_gateway.answer import Answer, NotHTTPError
from roundhouse_gateway.backend import Backend, choose
from roundhouse_gateway.upstream import EngineConnection

if TYPE_CHECKING:
    from roundhouse_gateway.account import Account
    from roundhouse_gateway.answer import KnownHead
    from roundhouse_gateway.errors import GatewayError
    from roundhouse_gateway.heads import Headers
    from roundhouse_gateway.inference import Piece
    from roundhouse_gateway.relay import GatewayProtocol
    from roundhouse_gateway.request import Request
    from roundhouse_gateway.routing import Route
    from roundhouse_gateway.timers import Deadline


class Stage(Enum):
    """How far an exchange has got."""

    CONNECTING = auto()
    WAITING = auto()
    ANSWERING = auto()
    OVER = auto()


class Exchange:
    """One request and its answer. `backends` are those of its route, the next among equals first."""

    __slots__ = (
        "_account",
        "_backend",
        "_backends",
        "_body",
        "_client",
        "_connection",
        "_deadline",
        "_length",
        "_opening",
        "_request",
        "_route",
        "_stage",
        "_stalled",
        "_timed_out",
        "_tried",
        "answer",
    )

    def __init__(
        self,
        client: GatewayProtocol,
        account: Account,
        deadline: Deadline,
        request: Request,
        route: Route,
        backends: list[Backend],
        body: list[Piece],
    ) -> None:
        self._client = client
        self._account = account
        self._deadline = deadline
        self._request = request
        self._route = route
        self._backends = backends
        self._body = body
        self._length = sum(map(len, body))
        self._tried: list[Backend] = []
        self._backend: Backend | None = None
        self._connection: EngineConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timed_out = False
        self._stalled = False
        self._stage = Stage.CONNECTING
        self.answer: Answer | None = None

    # What the client's side calls

    def start(self) -> None:
        """Send the request to the best backend. Raises GatewayError if there is none."""
        backend = choose(self._route, self._backends, self._tried)
        if backend is not None:
            self._use(backend)

    def abandon(self) -> None:
        """End the exchange because nobody waits for the answer any more; the engine notices at once."""
        self._account.left(self._now(), self._last_backend(), self._size())
        self._over()

    def cut_short(self, error: GatewayError) -> None:
        """End the exchange before its time."""
        self._fail(error)

    def expired(self) -> None:
        """Act on the deadline, which says that something took too long."""
        backend = self._backend
        if backend is None:
            return
        timeouts = backend.timeouts
        if self._stage is Stage.CONNECTING:
            if self._opening is not None:
                self._timed_out = True
                self._opening.cancel()
        elif self._stage is Stage.WAITING:
            what = f"did not answer within {timeouts.first_byte:g} s"
            backend.failed(what)
            self._fail(errors.engine_timeout(backend.name, what))
        elif self._stalled:
            self._account.left(self._now(), self._last_backend(), self._size())
            self._over()
            self._client.cut(reset=False)
        else:
            what = f"fell silent for {timeouts.idle:g} s in the middle of its answer"
            self._fail(errors.engine_timeout(backend.name, what))

    def client_stalls(self) -> None:
        """Take no more from the engine, because the client does not read what it has."""
        if self._connection is not None and self._backend is not None and self._stage is Stage.ANSWERING:
            self._stalled = True
            self._connection.pause_answer()
            self._deadline.set(self._backend.timeouts.idle)

    def client_reads(self) -> None:
        """Take from the engine again."""
        if self._stalled and self._connection is not None and self._backend is not None:
            self._stalled = False
            self._connection.resume_answer()
            self._deadline.set(self._backend.timeouts.idle)

    # What the engine's side calls

    def request_sent(self) -> None:
        """Note that an engine which was slow to take the request has taken the last byte of it."""
        if self._stage is Stage.WAITING and self._backend is not None:
            self._deadline.set(self._backend.timeouts.first_byte)

    def answer_head(self, status: int, phrase: bytes, headers: Headers) -> Answer:
        """Take the head of the answer. Raises NotHTTPError."""
        backend = self._backend
        if backend is None:
            raise NotHTTPError("answered without having been asked")
        self._stage = Stage.ANSWERING
        self._body = []
        backend.succeeded()
        self.answer = Answer(self._client, self._request, backend, status, phrase, headers, self._account)
        if not self.answer.is_stream:
            # The head of a stream may come long before its first token.
            self._account.answered(self._now())
        return self.answer

    def whole_answer(self, known: KnownHead, body: bytes) -> None:
        """Take a complete answer, which passes as it is."""
        connection, self._connection = self._connection, None
        if self._backend is None or connection is None:
            return
        self._backend.succeeded()
        self._client.write_whole(known, self._backend.name.encode(), body)
        self._account.complete_at_once(self._now(), self._backend, body, json=known.json)
        connection.release()
        self._over()
        self._client.answered()

    def answer_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        if self.answer is not None:
            self.answer.body(piece)

    def pass_on(self, chunks: bytes) -> None:
        """Take whole chunks of the body, which pass as they are."""
        answer, backend = self.answer, self._backend
        if answer is not None and backend is not None:
            self._account.chunk(self._deadline.set(backend.timeouts.idle), backend)
            answer.pass_on(chunks)

    def flush(self) -> None:
        """Take a pause in what the engine sends as the moment to write."""
        if self._backend is None:
            return
        if self._stage is Stage.ANSWERING:
            now = self._deadline.set(self._backend.timeouts.idle)
            self._note_news(now)
        if self.answer is not None:
            self.answer.flush()

    def complete(self) -> None:
        """Take the answer as complete."""
        answer = self.answer
        if answer is None:
            self.garbled("did not answer in HTTP (no head)")
            return
        answer.end()
        self._note_news(self._now())
        if self._backend is not None:
            self._account.complete(self._now(), self._backend, answer.status, answer.size)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
        self._over()
        self._client.answered()

    def garbled(self, what: str) -> None:
        """Take the answer as beyond understanding."""
        self._broken(what)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the engine closed the connection before the answer was complete."""
        connection, backend = self._connection, self._backend
        self._connection = None
        if connection is None or backend is None:
            return
        if self._stage is Stage.WAITING and not connection.answered:
            if connection.reused:
                # The engine closed it while it was idle, and the request crossed with that. No engine
                # worked on it, so it is sent once more: to another backend, for this one may be ending, or
                # else on a connection that can't be stale.
                backend.metrics.retries += 1
                other = choose(self._route, self._backends, self._tried)
                if other is not None:
                    self._use(other)
                else:
                    self._open(backend)
                return
            self._broken("closed the connection without an answer" if exc is None else "reset the connection")
        else:
            self._broken("closed the connection in the middle of its answer")

    # The ways of an exchange

    def _use(self, backend: Backend) -> None:
        self._leave()
        backend.in_flight += 1
        self._backend = backend
        self._tried.append(backend)
        if len(self._backends) > 1:
            # Among equals it is the turn of the others now.
            self._backends.remove(backend)
            self._backends.append(backend)
        self._stage = Stage.CONNECTING
        connection = backend.take_idle()
        if connection is not None:
            self._send(connection)
        else:
            self._open(backend)

    def _open(self, backend: Backend) -> None:
        self._stage = Stage.CONNECTING
        self._timed_out = False
        self._opening = asyncio.get_running_loop().create_task(self._connect(backend))
        self._deadline.set(backend.timeouts.connect)

    async def _connect(self, backend: Backend) -> None:
        connection = EngineConnection(backend)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, backend.host, backend.port)
        except asyncio.CancelledError:
            connection.close()
            if self._stage is Stage.OVER:
                raise
            self._not_connected(backend, None)
        except OSError as error:
            self._not_connected(backend, error)
        else:
            self._send(connection)

    def _not_connected(self, backend: Backend, error: OSError | None) -> None:
        """Go to another backend if there is one that was not tried."""
        if error is None:
            what = f"could not be connected to within {backend.timeouts.connect:g} s"
        else:
            what = f"can't be connected to ({error.strerror or error})"
        self._opening = None
        backend.failed(what)
        other = choose(self._route, self._backends, self._tried)
        if other is not None:
            backend.metrics.retries += 1
            self._use(other)
        elif error is None:
            self._fail(errors.engine_timeout(backend.name, what))
        else:
            self._fail(errors.engine_unreachable(backend.name, what))

    def _send(self, connection: EngineConnection) -> None:
        request = self._request
        self._opening = None
        self._connection = connection
        self._stage = Stage.WAITING
        self._deadline.set(connection.backend.timeouts.first_byte)
        head = heads.for_engine(
            request.target, connection.backend.own_lines, request.passed, self._length, request.id
        )
        connection.send(self, head, self._body, self._length)

    def _broken(self, what: str) -> None:
        """End the exchange because the engine failed."""
        backend = self._backend
        if backend is None:
            return
        backend.failed(what)
        if self.answer is not None and self.answer.started:
            self._fail(errors.engine_lost(backend.name))
        else:
            self._fail(errors.engine_unreachable(backend.name, what))

    def _fail(self, error: GatewayError) -> None:
        """End the exchange with an error, in the way that is left at this stage."""
        answer, account = self.answer, self._account
        backend, now = self._last_backend(), self._now()
        self._over()
        if answer is None or not answer.started:
            account.failed(now, error, backend)
            self._client.answer_error(error, self._request)
            return
        is_ended = answer.end_broken(error)
        if not is_ended:
            answer.flush()
        account.failed(now, error, backend, answer.status, answer.size)
        if is_ended:
            self._client.answered()
        else:
            self._client.cut(reset=self._request.http10)

    def _over(self) -> None:
        self._stage = Stage.OVER
        self._deadline.clear()
        self._leave()
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _leave(self) -> None:
        """Part from the backend in use, and from the connection to it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.in_flight -= 1

    def _note_news(self, now: float) -> None:
        """Note a piece of a stream, if one came."""
        answer = self.answer
        if answer is not None and answer.is_stream and answer.has_news and self._backend is not None:
            answer.has_news = False
            self._account.chunk(now, self._backend)

    def _now(self) -> float:
        return self._client.loop.time()  # type: ignore[no-any-return] # Sanic's has no type

    def _last_backend(self) -> Backend | None:
        """Return the backend that was asked last."""
        return self._tried[-1] if self._tried else None

    def _size(self) -> int:
        return self.answer.size if self.answer is not None else 0
