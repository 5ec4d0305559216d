"""GET from a program next door. A proxy of the user's is for the world outside, so it is not asked."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


def get(url: str, timeout: float) -> bytes:
    """The body of a 2xx answer. Raises OSError with a short reason for anything else."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise OSError(f"answers {error.code}") from error
    except OSError as error:
        raise OSError(f"does not answer ({getattr(error, 'reason', error)})") from error


def get_json(url: str, timeout: float) -> dict[str, Any]:
    """The JSON object that a 2xx answer carries. Raises OSError for anything else."""
    try:
        found = json.loads(get(url, timeout))
    except ValueError as error:
        raise OSError("answers no JSON") from error
    if not isinstance(found, dict):
        raise OSError("answers no JSON object")
    return found
