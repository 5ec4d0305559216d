"""Serving: the listening socket, the signals, and the ways to stop. One process, one event loop.

Several workers are several such processes, see `supervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from sanic import Sanic

from roundhouse_gateway import errors
from roundhouse_gateway.logs import fields
from roundhouse_gateway.relay import GatewayProtocol
from roundhouse_gateway.supervisor import RELOAD, STOP

if TYPE_CHECKING:
    from sanic.config import Config

    from roundhouse_gateway.gateway import Gateway

log = logging.getLogger(__name__)

_BACKLOG = 1024

# Seconds between two looks whether all is finished, and those that the last bytes have to reach the clients.
_DRAIN_LOOK, _LAST_BYTES = 0.05, 1.0


class Server:
    """A gateway that listens. `start` it, `drain` it, `stop` it."""

    def __init__(self, app: Sanic[Config, Any], sock: socket.socket) -> None:
        self._app = app
        self._gateway: Gateway = app.ctx.gateway
        self._sock = sock
        self._server: Any = None  # Sanic's AsyncioServer, which has no types
        self._hurry = asyncio.Event()

    async def start(self) -> None:
        """Begin to serve."""
        server: Any = await self._app.create_server(
            sock=self._sock,
            protocol=GatewayProtocol,
            backlog=_BACKLOG,
            asyncio_server_kwargs={"start_serving": False},
        )
        await server.startup()
        await server.before_start()
        await server.start_serving()
        await server.after_start()
        self._server = server
        host, port = self._sock.getsockname()[:2]
        log.info(
            "gateway started",
            extra=fields(host=host, port=port, revision=self._gateway.fleet.table.revision),
        )
        if self._gateway.access.anyone is not None and not ipaddress.ip_address(host).is_loopback:
            log.warning("gateway open: whoever reaches it may ask (ROUNDHOUSE_KEYS)", extra=fields(host=host))

    def hurry(self) -> None:
        """End a drain that goes on at once."""
        self._hurry.set()

    async def drain(self) -> bool:
        """Let requests in flight finish. Returns False if the time was up for some, which were cut then."""
        gateway, settings = self._gateway, self._gateway.settings
        gateway.draining = True
        log.info("drain started", extra=fields(in_flight=self._busy(), timeout=settings.drain_timeout))
        await self._wait(settings.drain_delay)
        self._close_listener()
        loop = asyncio.get_running_loop()
        end = loop.time() + settings.drain_timeout
        for connection in list(gateway.connections):
            connection.close_if_idle()
        while self._busy() and loop.time() < end and not self._hurry.is_set():
            await self._wait(_DRAIN_LOOK)
        cut = self._busy()
        for connection in list(gateway.connections):
            if connection.is_busy:
                connection.cut_short(errors.draining(settings.drain_timeout))
        log.info("drain ended", extra=fields(cut=cut))
        return not cut

    async def stop(self) -> None:
        """End everything."""
        self._close_listener()
        gateway = self._gateway
        loop = asyncio.get_running_loop()
        end = loop.time() + _LAST_BYTES
        for connection in list(gateway.connections):
            connection.close_if_idle()
        self._hurry.clear()
        while gateway.connections and loop.time() < end:
            await self._wait(_DRAIN_LOOK)
        for connection in list(gateway.connections):
            connection.abort()
        if self._server is not None:
            await self._server.before_stop()
            await self._server.after_stop()
        Sanic.unregister_app(self._app)
        log.info("gateway stopped")

    def _busy(self) -> int:
        return sum(connection.is_busy for connection in self._gateway.connections)

    def _close_listener(self) -> None:
        if self._server is not None and self._server.server is not None:
            self._server.server.close()

    async def _wait(self, seconds: float) -> None:
        """Wait, unless there is hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


async def run(app: Sanic[Config, Any], sock: socket.socket, orders: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and reload the map at SIGHUP. Returns the exit code.

    A worker gets `orders` instead of signals, from that file descriptor.
    """
    server = Server(app, sock)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            server.hurry()
        stopping.set()

    loop = asyncio.get_running_loop()
    reload = app.ctx.gateway.reload

    def obey(fd: int) -> None:
        got = os.read(fd, 64)
        if not got:
            loop.remove_reader(fd)
            got = STOP
        for order in got:
            if order == RELOAD[0]:
                reload()
            else:
                stop()

    if orders is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
    else:
        loop.add_reader(orders, obey, orders)
    await server.start()
    await stopping.wait()
    finished = await server.drain()
    await server.stop()
    return 0 if finished else 1
