"""Probes of the backends, in the background. Speed does not matter here, so this is plain httpx.

Backends that share an address and a way of being probed are probed once for all of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import httpx

if TYPE_CHECKING:
    from roundhouse_gateway.backend import Backend
    from roundhouse_gateway.fleet import Fleet


class Target(NamedTuple):
    """One address that is probed; times in seconds."""

    url: str
    interval: float
    timeout: float


class Prober:
    """Probes every target of a fleet, each in a task of its own."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._backends: dict[Target, list[Backend]] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}

    def watch(self, fleet: Fleet) -> None:
        """Probe the backends of the live map. Targets that stay keep their rhythm."""
        backends: dict[Target, list[Backend]] = {}
        for route, of_route in fleet.all():
            health = route.health
            for backend in of_route:
                target = Target(backend.url.rstrip("/") + health.path, health.interval, health.timeout)
                backends.setdefault(target, []).append(backend)
        self._backends = backends
        for target in self._tasks.keys() - backends.keys():
            self._tasks.pop(target).cancel()
        # New targets start one after the other, so that a thousand are not all probed at the same moment.
        new = [target for target in backends if target not in self._tasks]
        for place, target in enumerate(new):
            delay = target.interval * place / len(new)
            self._tasks[target] = asyncio.get_running_loop().create_task(self._probe_for_ever(target, delay))

    async def stop(self) -> None:
        """End all probing."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _probe_for_ever(self, target: Target, delay: float) -> None:
        await asyncio.sleep(delay)
        while True:
            faults = {backend: backend.faults for backend in self._backends.get(target, ())}
            error = await self._probe(target)
            for backend in self._backends.get(target, ()):
                # A good answer says nothing of what went wrong while it was on its way.
                if error is not None or backend.faults == faults.get(backend, 0):
                    backend.probed(error)
            await asyncio.sleep(target.interval)

    async def _probe(self, target: Target) -> str | None:
        """Return what is wrong with a target, or None."""
        try:
            async with asyncio.timeout(target.timeout):
                response = await self._http().get(target.url)
        except TimeoutError:
            return f"GET {target.url} was not answered within {target.timeout:g} s"
        except httpx.HTTPError as error:
            return f"GET {target.url} failed: {error or type(error).__name__}"
        if not response.is_success:
            return f"GET {target.url} answered {response.status_code}"
        return None

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            # No proxy of the environment may come between. Addresses are http, so no certificates are loaded.
            self._client = httpx.AsyncClient(trust_env=False, verify=False, timeout=None)  # noqa: S113, S501 - see above; the caller has a time-out
        return self._client
