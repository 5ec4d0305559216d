"""Backends that are found by DNS: which addresses a host name has, looked up again and again in the background.

Speed does not matter here, so this asks the system's resolver.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from roundhouse_gateway.logs import fields

log = logging.getLogger(__name__)

# Seconds between two look-ups of a name, and until one is given up.
INTERVAL, _TIMEOUT = 2.0, 5.0

# What the resolver says if a name has no address (now). Anything else is a trouble of its own, which says nothing
# about the name: what was found before stays.
_NONE = (socket.EAI_NONAME, socket.EAI_NODATA)


class Resolver:
    """Looks up the hosts of URLs. `found` is called with a URL and its base URLs by address when these change."""

    def __init__(self, found: Callable[[str, tuple[str, ...]], None]) -> None:
        self._found = found
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, urls: Iterable[str]) -> None:
        """Look up just these from now on."""
        wanted = set(urls)
        for url in self._tasks.keys() - wanted:
            self._tasks.pop(url).cancel()
        for url in wanted - self._tasks.keys():
            self._tasks[url] = asyncio.get_running_loop().create_task(self._look_for_ever(url))

    async def stop(self) -> None:
        """End all looking."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_for_ever(self, url: str) -> None:
        known: tuple[str, ...] | None = None
        while True:
            addresses = await _addresses(url)
            if addresses is not None and addresses != known:
                known = addresses
                log.info("backends found", extra=fields(url=url, addresses=list(addresses)))
                self._found(url, addresses)
            await asyncio.sleep(INTERVAL)


async def _addresses(url: str) -> tuple[str, ...] | None:
    """Return the base URLs behind a URL, one per IP address; None if that can't be told now."""
    parts = urlsplit(url)
    port = parts.port or 80
    try:
        async with asyncio.timeout(_TIMEOUT):
            hosts = await look_up(parts.hostname or "", port)
    except (TimeoutError, OSError) as error:
        if isinstance(error, socket.gaierror) and error.errno in _NONE:
            return ()
        log.warning("name not looked up", extra=fields(url=url, error=str(error) or type(error).__name__))
        return None
    return tuple(
        f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in sorted(hosts)
    )


async def look_up(host: str, port: int) -> set[str]:
    """Return the IP addresses of a host. Raises OSError."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {str(answer[4][0]) for answer in answers}
