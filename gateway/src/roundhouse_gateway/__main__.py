"""The process: `python -m roundhouse_gateway`, or `roundhouse-gateway`.

Exit codes: 0 stopped and all requests finished, 1 stopped and some were cut, or it can't listen, 2 the
settings, the routing map or the keys can't be used.
"""

import os
import sys

import uvloop

from roundhouse_gateway import logs, metrics
from roundhouse_gateway.access import KeysError
from roundhouse_gateway.app import create_app
from roundhouse_gateway.counters import Slab
from roundhouse_gateway.routing import MapError
from roundhouse_gateway.server import listen, run
from roundhouse_gateway.settings import SettingsError, from_environment
from roundhouse_gateway.supervisor import Supervisor


def main() -> int:
    """Run the gateway, and return its exit code."""
    try:
        settings = from_environment(os.environ)
    except SettingsError as error:
        return _refuse(error.problems, 2)
    logs.configure(settings.log)
    try:
        app = create_app(settings, [Slab() for _ in range(settings.workers)])
    except MapError as error:
        return _refuse([f"The routing map {settings.routes} can't be used.", *error.problems], 2)
    except KeysError as error:
        return _refuse([f"The keys file {settings.keys} can't be used.", *error.problems], 2)
    try:
        sock = listen(settings.host, settings.port)
    except OSError as error:
        return _refuse(
            [
                f"Can't listen on {settings.host} port {settings.port}: {error.strerror or error}."
                " Free it, or set ROUNDHOUSE_HOST and ROUNDHOUSE_PORT to another address."
            ],
            1,
        )
    if settings.workers == 1:
        return uvloop.run(run(app, sock))

    def work(orders: int, place: int) -> int:
        metrics.begin(app.ctx.gateway.counters, place)
        return uvloop.run(run(app, sock, orders))

    return Supervisor(sock, settings.workers, work).run()


def _refuse(problems: list[str], code: int) -> int:
    for problem in problems:
        sys.stderr.write(f"roundhouse-gateway: {problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
