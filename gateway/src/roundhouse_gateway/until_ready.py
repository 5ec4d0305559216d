"""`python -m roundhouse_gateway.until_ready URL...`: wait until each URL in turn answers with a 2xx.

Pods that have to start after others run this first. It waits for as long as it takes, and says every ten seconds
what it waits for.
"""

import sys
import time

import httpx

_PAUSE, _SAY = 1.0, 10.0


def main() -> int:
    """Wait."""
    with httpx.Client(timeout=30) as client:
        for url in sys.argv[1:]:
            _await(client, url)
    return 0


def _await(client: httpx.Client, url: str) -> None:
    said = -_SAY
    while missing := _missing(client, url):
        if time.monotonic() - said >= _SAY:
            said = time.monotonic()
            sys.stderr.write(f"waiting for {url}: {missing}\n")
        time.sleep(_PAUSE)


def _missing(client: httpx.Client, url: str) -> str | None:
    """Return what is missing, or None."""
    try:
        response = client.get(url)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None if response.is_success else f"it answers {response.status_code}"


if __name__ == "__main__":
    sys.exit(main())
