"""Errors of the engines, brought into one shape. Pure: nothing here does I/O.

vLLM, SGLang, llama.cpp and transformers each write errors in a way of their own, some with paths of the
server's files in them (../docs has the list). A body that already has the right shape and tells nothing
it should not is left as it is, byte for byte.
"""

import re
from typing import Any

import msgspec

from roundhouse_gateway import errors

# Bodies above this size, in bytes, pass as they are.
LIMIT = 65_536

# A 200 whose body starts like this may carry nothing but an error (vLLM 0.12.0 does that on /v1/embeddings).
PEEK = 32
_LOOKS_LIKE_ERROR = re.compile(rb'\s*\{\s*"(?:error"|object"\s*:\s*"error")')

# From the first line of a traceback, or of a place in a file, to the end: the rest only says it again.
_TRACEBACK = re.compile(
    r"\s*(?:Traceback \(most recent call last\):|^\s*File \".*\", line \d+).*", re.DOTALL | re.MULTILINE
)
_PATH = re.compile(r"(?<![\w:/.\\@-])(?:file://)?(?!/v1/)(?:/[\w.@+~-]+){2,}/?|(?<!\w)[A-Za-z]:\\[\w.\\ -]+")
_MARKUP = re.compile(r"<[^<>]*>")


def mend(status: int, body: bytes, path: bytes, request_id: str) -> bytes | None:
    """Return the body to answer instead of an engine's error `body`, or None if that is good as it is.

    `path` is the path of the request: it decides between OpenAI's shape and Anthropic's.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    message, kind, param, code = _read(document, body)
    message = _cleaned(message) or _default_message(status)
    if errors.is_anthropic(path):
        mended = errors.anthropic_body(kind or _default_type(status), message, request_id)
        same = _is_anthropic(document, message)
    else:
        error = {"message": message, "type": kind or _default_type(status), "param": param, "code": code}
        rest = _others(document)
        mended = msgspec.json.encode({"error": error | rest})
        same = isinstance(document, dict) and document == {"error": error | rest}
    return None if same else mended


def named_status(body: bytes) -> int | None:
    """Return the status which a 200 should have had that carries nothing but an error, if it names one."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    error: Any = document.get("error") if document.keys() == {"error"} else document
    if error is document and document.get("object") != "error":
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else None


def may_be_error(start: bytes) -> bool:
    """Tell whether a JSON body that starts with `start` may be an error."""
    return _LOOKS_LIKE_ERROR.match(start) is not None


def _read(document: Any, body: bytes) -> tuple[str, str | None, Any, Any]:
    """Return message, type, param and code of an error in whatever shape it has."""
    if not isinstance(document, dict):
        text = document if isinstance(document, str) else body.decode("utf-8", "replace")
        return _MARKUP.sub(" ", text) if text.lstrip().startswith("<") else text, None, None, None
    error = document.get("error", document.get("detail", document))
    if isinstance(error, str):
        return error, None, None, None
    if isinstance(error, list):
        return "; ".join(_detail(item) for item in error), None, None, None
    if not isinstance(error, dict):
        return "", None, None, None
    message = error.get("message")
    kind = error.get("type")
    return (
        message if isinstance(message, str) else "",
        kind if isinstance(kind, str) else None,
        error.get("param"),
        error.get("code"),
    )


def _others(document: Any) -> dict[str, Any]:
    """Return the further members of an error that has the right envelope (llama.cpp: n_ctx and the like)."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return {}
    return {key: value for key, value in error.items() if key not in ("message", "type", "param", "code")}


def _detail(item: Any) -> str:
    """Return one of FastAPI's validation errors as a phrase."""
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(step) for step in item.get("loc", ()))
    return f"{place}: {item.get('msg', 'not valid')}" if place else str(item.get("msg", "not valid"))


def _cleaned(message: str) -> str:
    return _PATH.sub("[path]", _TRACEBACK.sub("", message)).strip()


def _is_anthropic(document: Any, message: str) -> bool:
    return (
        isinstance(document, dict)
        and document.get("type") == "error"
        and isinstance(document.get("error"), dict)
        and isinstance(document["error"].get("type"), str)
        and document["error"].get("message") == message
    )


def _default_type(status: int) -> str:
    if status >= 500:
        return "api_error"
    return {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }.get(status, "invalid_request_error")


def _default_message(status: int) -> str:
    return f"The engine answered {status} and did not say why."
