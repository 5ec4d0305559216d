"""GET from a program next door. A proxy of the user's is for the world outside, so it is not asked."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


def get(url: str, timeout: float, key: str | None = None) -> bytes:
    """The body of a 2xx answer; `key` is one of the gateway's. Raises OSError with a short reason for anything else."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.addheaders += [("Authorization", f"Bearer {key}")] if key else []
    try:
        with opener.open(url, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise OSError(f"answers {error.code}") from error
    except OSError as error:
        raise OSError(f"does not answer ({getattr(error, 'reason', error)})") from error


def get_json(url: str, timeout: float, key: str | None = None) -> dict[str, Any]:
    """The JSON object that a 2xx answer carries. Raises OSError for anything else."""
    try:
        found = json.loads(get(url, timeout, key))
    except ValueError as error:
        raise OSError("answers no JSON") from error
    if not isinstance(found, dict):
        raise OSError("answers no JSON object")
    return found
