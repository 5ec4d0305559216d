"""Ask the gateway again and again for some seconds, on new connections and on kept ones; print what was lost.

`python load.py URL SECONDS`. Exit code 1 if any request got no good answer.
"""

import sys
import threading
import time

import httpx

BODY = {"model": "org/twin", "prompt": "Once", "max_tokens": 2}


def ask(client: httpx.Client, url: str) -> str | None:
    """Return what went wrong, or None."""
    try:
        answer = client.post(f"{url}/v1/completions", json=BODY)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return None if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:200]}"


def work(url: str, end: float, keep: bool, asked: list[str | None]) -> None:
    """Ask until `end`."""
    limits = httpx.Limits(max_keepalive_connections=1 if keep else 0)
    with httpx.Client(limits=limits, timeout=60) as client:
        while time.monotonic() < end:
            asked.append(ask(client, url))


def main() -> int:
    """Ask from four threads, two of which keep their connections."""
    url, seconds = sys.argv[1], float(sys.argv[2])
    asked: list[str | None] = []
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=work, args=(url, end, keep, asked)) for keep in (True, True, False, False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = [wrong for wrong in asked if wrong]
    print(f"{len(asked)} asked, {len(lost)} lost", *lost[:10], sep="\n")
    return bool(lost) or not asked


if __name__ == "__main__":
    sys.exit(main())
