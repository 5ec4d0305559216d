"""The application: the control plane that Sanic serves, around the data plane in `relay`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import msgspec
from sanic import HTTPResponse, Request, Sanic
from sanic.config import Config
from sanic.exceptions import BadRequest, MethodNotAllowed, NotFound
from sanic.response import BaseHTTPResponse, raw

from roundhouse_gateway import access, errors, exposition
from roundhouse_gateway.account import Account
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.gateway import Gateway
from roundhouse_gateway.request import Request as RawRequest

if TYPE_CHECKING:
    from roundhouse_gateway.access import Caller
    from roundhouse_gateway.counters import Slab
    from roundhouse_gateway.routing import Route
    from roundhouse_gateway.settings import Settings

log = logging.getLogger(__name__)

_READ = ("GET", "HEAD")


def create_app(settings: Settings, slabs: Sequence[Slab] | None = None) -> Sanic[Config, Any]:
    """Return a gateway as a Sanic application, with its map and keys loaded.

    It has to be served with `relay.GatewayProtocol`, see `server`. `slabs` is the memory for the counts of each worker.
    Raises MapError or KeysError.
    """
    gateway = Gateway(settings, slabs)
    # Sanic keeps all applications of a process by name, so each gets one of its own.
    app: Sanic[Config, Any] = Sanic(
        f"roundhouse-{uuid.uuid4().hex}", config=_config(), configure_logging=False, strict_slashes=True
    )
    app.ctx.gateway = gateway

    @app.before_server_start
    async def start(_app: Sanic[Config, Any]) -> None:
        gateway.start()

    @app.after_server_stop
    async def stop(_app: Sanic[Config, Any]) -> None:
        await gateway.stop()

    @app.route("/healthz", methods=_READ)
    async def healthz(_request: Request) -> HTTPResponse:
        return _json({"status": "ok"})

    @app.route("/readyz", methods=_READ)
    async def readyz(_request: Request) -> HTTPResponse:
        live = {"revision": gateway.fleet.table.revision, "access": gateway.access.keys.revision}
        if gateway.draining:
            return _json({"status": "draining"} | live, 503)
        return _json({"status": "ready"} | live)

    @app.route("/metrics", methods=_READ)
    async def metrics(request: Request) -> HTTPResponse:
        _operator(gateway, request)
        gateway.fleet.publish()
        # A thousand models are a megabyte of text.
        text = await asyncio.to_thread(exposition.render, gateway.counters.slabs, exposition.now(gateway))
        return raw(text, content_type=exposition.CONTENT_TYPE)

    @app.route("/routes", methods=_READ)
    async def routes(request: Request) -> HTTPResponse:
        _operator(gateway, request)
        return _json(
            {
                "revision": gateway.fleet.table.revision,
                "loaded_at": gateway.map_loads.at.isoformat(timespec="milliseconds"),
                "last_error": gateway.map_loads.last_error,
                "models": gateway.fleet.describe(),
            }
        )

    @app.route("/v1/models", methods=_READ)
    async def models(request: Request) -> HTTPResponse:
        table = _caller(gateway, request).table
        entries = [_entry(gateway, route, route.model) for route in table.routes]
        entries += [
            _entry(gateway, name.default, alias) for alias, name in table.names.items() if alias != name.model
        ]
        return _json({"object": "list", "data": entries})

    @app.route("/v1/models/<_wanted:path>", methods=_READ)
    async def model(request: Request, _wanted: str) -> HTTPResponse:
        # Sanic decodes only some of the path, and model names have slashes in them.
        path: bytes = request.raw_url.partition(b"?")[0]
        wanted = unquote_to_bytes(path.removeprefix(b"/v1/models/")).decode("utf-8", "replace")
        caller = _caller(gateway, request)
        table = caller.table
        route = caller.pick(wanted, None)
        return _json(_entry(gateway, route, wanted if wanted in table.names else wanted.rpartition("@")[0]))

    async def name(request: Request, response: BaseHTTPResponse) -> None:
        response.headers["X-Request-Id"] = request.headers.get("x-request-id", "")

    app.register_middleware(name, "response")

    @app.exception(Exception)
    async def failed(request: Request, exception: Exception) -> HTTPResponse:
        error = _as_gateway_error(request, exception)
        if error.status in (401, 403):
            # Who guesses keys here is counted and logged as elsewhere.
            refused = RawRequest()
            refused.id = request.headers.get("x-request-id", "")
            now = asyncio.get_running_loop().time()
            Account(gateway, refused, now).failed(now, error)
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        path = request.path.encode()
        body = error.body(path, request.headers.get("x-request-id", ""))
        return raw(body, error.status, headers, content_type=headers.pop("Content-Type"))

    return app


def _config() -> Config:
    """Return Sanic's configuration: none of the environment's, and nothing printed."""
    config = Config(env_prefix=None)
    config.ACCESS_LOG = False
    config.MOTD = False
    # Sanic would rewrite its own methods for speed, which can be done only once in a process.
    config.TOUCHUP = False
    return config


def _json(document: dict[str, Any], status: int = 200) -> HTTPResponse:
    return raw(msgspec.json.encode(document), status, content_type="application/json")


def _caller(gateway: Gateway, request: Request) -> Caller:
    """Return who asks. Raises GatewayError: missing_api_key or invalid_api_key."""
    # Sanic has made text of any bytes that came.
    headers = [
        (name.encode(errors="surrogateescape"), value.encode(errors="surrogateescape"))
        for name, value in request.headers.items()
    ]
    return gateway.access.caller(access.digest(headers))


def _operator(gateway: Gateway, request: Request) -> None:
    """Let operators pass. Raises GatewayError: also admin_required."""
    if not _caller(gateway, request).admin:
        raise errors.admin_required(request.path)


def _entry(gateway: Gateway, route: Route, name: str) -> dict[str, Any]:
    """Return what /v1/models tells of a route under one of its model's names."""
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(gateway.map_loads.at.timestamp()),
        "owned_by": route.owned_by,
        "ready": gateway.fleet.is_ready(route),
    }
    return entry if name == route.model else entry | {"root": route.model}


def _as_gateway_error(request: Request, exception: Exception) -> GatewayError:
    if isinstance(exception, GatewayError):
        return exception
    if isinstance(exception, NotFound):
        return errors.unknown_endpoint(request.method, request.path)
    if isinstance(exception, MethodNotAllowed):
        return errors.method_not_allowed(request.method, request.path, ", ".join(_READ))
    if isinstance(exception, BadRequest):
        return errors.bad_request(str(exception))
    log.error("control request failed", exc_info=exception)
    return errors.internal_error()
