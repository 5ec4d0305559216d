"""Every error that the gateway itself answers with: its code, status, words and shape.

The codes are the table of section 6 of the design. Each constructor below writes the sentence for the
person who reads it: what is wrong, where, and what to do. Errors of the engines are another subject, see
`mending`.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType

import msgspec

# What OpenAI's clients know an error as: its HTTP status and its `type`.
_KINDS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "bad_request": (400, "invalid_request_error"),
        "invalid_json": (400, "invalid_request_error"),
        "invalid_form": (400, "invalid_request_error"),
        "invalid_value": (400, "invalid_request_error"),
        "duplicate_key": (400, "invalid_request_error"),
        "missing_model": (400, "invalid_request_error"),
        "engine_conflict": (400, "invalid_request_error"),
        "missing_api_key": (401, "authentication_error"),
        "invalid_api_key": (401, "authentication_error"),
        "model_not_allowed": (403, "permission_error"),
        "admin_required": (403, "permission_error"),
        "model_not_found": (404, "not_found_error"),
        "engine_not_found": (404, "not_found_error"),
        "unknown_endpoint": (404, "not_found_error"),
        "method_not_allowed": (405, "invalid_request_error"),
        "request_timeout": (408, "invalid_request_error"),
        "request_too_large": (413, "invalid_request_error"),
        "headers_too_large": (431, "invalid_request_error"),
        "rate_limited": (429, "rate_limit_error"),
        "engine_busy": (429, "rate_limit_error"),
        "internal_error": (500, "api_error"),
        "engine_unreachable": (502, "api_error"),
        "engine_lost": (502, "api_error"),
        "engine_unavailable": (503, "api_error"),
        "draining": (503, "api_error"),
        "engine_timeout": (504, "api_error"),
    }
)

# Anthropic's words for the statuses that have one of their own; every other error keeps its OpenAI type.
_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
)
_ANTHROPIC_PATH = b"/v1/messages"

# How many names an error lists before it says how many more there are, and characters that are shown of what a
# client sent.
_LISTED = 20
_LONGEST = 200

_encode = msgspec.json.Encoder().encode


class GatewayError(Exception):
    """One refusal or failure, ready to be answered.

    `code` is a key of the design's error table, `param` the field of the request that is to blame,
    `retry_after` a number of seconds, `allow` the value of an Allow header, `limits` header lines that tell of limits,
    and `close` says that the
    connection can't be used any further.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
        limits: bytes = b"",
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.allow = allow
        self.limits = limits
        self.close = close
        self.status, self.type = _KINDS[code]

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers which belong to this error, beside those of every answer."""
        headers = [(b"Content-Type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % self.retry_after))
        if self.allow is not None:
            headers.append((b"Allow", self.allow.encode()))
        if self.status == 401:
            headers.append((b"WWW-Authenticate", b"Bearer"))
        for line in self.limits.splitlines():
            name, _, value = line.partition(b": ")
            headers.append((name, value))
        return headers

    def body(self, path: bytes, request_id: str) -> bytes:
        """Return the JSON body, in the shape which the clients of `path` read."""
        if is_anthropic(path):
            kind = _ANTHROPIC_TYPES.get(self.status, self.type)
            return anthropic_body(kind, self.message, request_id)
        return openai_body(self.message, self.type, self.param, self.code)

    def event(self, path: bytes, request_id: str) -> bytes:
        """Return the server-sent event which ends a broken stream."""
        name = b"event: error\n" if is_anthropic(path) else b""
        return b"%bdata: %b\n\n" % (name, self.body(path, request_id))


def is_anthropic(path: bytes) -> bool:
    """Tell whether the clients of `path` speak Anthropic's API rather than OpenAI's."""
    return path == _ANTHROPIC_PATH or path.startswith(b"/v1/messages/")


def openai_body(message: str, kind: str, param: object, code: object) -> bytes:
    """Return an error body as OpenAI's API writes it."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def anthropic_body(kind: str, message: str, request_id: str) -> bytes:
    """Return an error body as Anthropic's API writes it."""
    return _encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def reason(status: int) -> bytes:
    """Return the reason phrase of an HTTP status."""
    return HTTPStatus(status).phrase.encode()


def bad_request(what: str) -> GatewayError:
    """Return the error for bytes that are no acceptable HTTP; the connection ends with it."""
    return GatewayError("bad_request", f"The request is not acceptable HTTP: {what}.", close=True)


def request_too_large(limit: int) -> GatewayError:
    """Return the error for a body of more than `limit` bytes."""
    return GatewayError(
        "request_too_large",
        f"The request body is larger than the {limit} bytes which this gateway takes (ROUNDHOUSE_MAX_BODY).",
        close=True,
    )


def headers_too_large(limit: int) -> GatewayError:
    """Return the error for a request head of more than `limit` bytes."""
    return GatewayError(
        "headers_too_large",
        f"The request line and headers are larger than the {limit} bytes which this gateway takes"
        " (ROUNDHOUSE_MAX_HEADER).",
        close=True,
    )


def request_timeout(seconds: float) -> GatewayError:
    """Return the error for a client that stops in the middle of its request."""
    return GatewayError(
        "request_timeout",
        f"The request did not arrive: nothing more came for {seconds:g} s (ROUNDHOUSE_BODY_TIMEOUT).",
        close=True,
    )


def unknown_endpoint(method: str, path: str) -> GatewayError:
    """Return the error for a path that is not served."""
    return GatewayError(
        "unknown_endpoint",
        f"{method} {_shown(path)} is not an endpoint of this gateway. Inference endpoints are under /v1, such as"
        " /v1/chat/completions; GET /v1/models lists the models.",
    )


def method_not_allowed(method: str, path: str, allow: str) -> GatewayError:
    """Return the error for a known path that is asked with another method."""
    return GatewayError(
        "method_not_allowed",
        f"{_shown(path)} takes {allow}, not {method}. Send the request as {allow}.",
        allow=allow,
    )


def invalid_json(what: str) -> GatewayError:
    """Return the error for a body that is not one JSON object in UTF-8."""
    return GatewayError("invalid_json", f"The body must be one JSON object in UTF-8: {what}.")


def invalid_form(what: str) -> GatewayError:
    """Return the error for a multipart body that can't be taken apart."""
    return GatewayError("invalid_form", f"The body must be a well-formed multipart/form-data: {what}.")


def invalid_value(name: str) -> GatewayError:
    """Return the error for a `model` or `owned_by` that is no text."""
    return GatewayError("invalid_value", f"'{name}' must be a string that is not empty.", param=name)


def duplicate_key(name: str) -> GatewayError:
    """Return the error for a body that says one of the deciding fields twice."""
    return GatewayError(
        "duplicate_key",
        f"'{name}' is given more than once, and engines differ in which one they take. Give it once.",
        param=name,
    )


def missing_api_key() -> GatewayError:
    """Return the error for a request without a key."""
    return GatewayError(
        "missing_api_key",
        "This endpoint wants an API key: send it as 'Authorization: Bearer KEY', or as 'x-api-key: KEY'."
        " Whoever runs this gateway makes keys (playbooks/keys.yml).",
    )


def invalid_api_key() -> GatewayError:
    """Return the error for a key that is none, or no longer."""
    return GatewayError("invalid_api_key", "This API key is not known here, or was revoked.")


def admin_required(path: str) -> GatewayError:
    """Return the error for an operator's endpoint that is asked with a key which is no operator's."""
    return GatewayError("admin_required", f"{path} is for operators: it wants a key with admin: true.")


def model_not_allowed(name: str, model: str, names: Iterable[str]) -> GatewayError:
    """Return the error for a model that the key `name` may not use."""
    return GatewayError(
        "model_not_allowed",
        f"The key '{name}' may not use the model '{_shown(model)}'. {_choice('Models', names)}",
        param="model",
    )


def rate_limited(whose: str, limit: str, retry_after: int, lines: bytes) -> GatewayError:
    """Return the error for a request over a limit; `lines` are the headers that tell of it."""
    return GatewayError(
        "rate_limited",
        f"The limit of {whose} is reached: {limit}. Try again in {retry_after} s.",
        retry_after=retry_after,
        limits=lines,
    )


def missing_model(names: Iterable[str]) -> GatewayError:
    """Return the error for a body without `model`."""
    return GatewayError(
        "missing_model", f"The body names no 'model'. {_choice('Models', names)}", param="model"
    )


def model_not_found(model: str, names: Iterable[str]) -> GatewayError:
    """Return the error for a model that is not served."""
    return GatewayError(
        "model_not_found",
        f"No model '{_shown(model)}' is served here. {_choice('Models', names)}",
        param="model",
    )


def engine_not_found(model: str, owned_by: str, engines: Iterable[str]) -> GatewayError:
    """Return the error for a model that the wanted engine does not serve."""
    return GatewayError(
        "engine_not_found",
        f"'{model}' is not served by an engine '{_shown(owned_by)}'. {_choice('Its engines', engines)}",
        param="owned_by",
    )


def engine_conflict(model: str, suffix: str, owned_by: str) -> GatewayError:
    """Return the error for a request which names two different engines."""
    return GatewayError(
        "engine_conflict",
        f"'model' is '{_shown(model)}', which asks for the engine '{_shown(suffix)}', but 'owned_by' is"
        f" '{_shown(owned_by)}'."
        " Name the engine once.",
        param="owned_by",
    )


def engine_busy(model: str, owned_by: str, limit: int) -> GatewayError:
    """Return the error for a (model, engine) whose backends are all full."""
    return GatewayError(
        "engine_busy",
        f"'{model}' on '{owned_by}' is answering as many requests as it may (max_in_flight {limit} for each"
        " backend). Try again in a moment.",
        retry_after=1,
    )


def engine_unavailable(model: str, owned_by: str, retry_after: int) -> GatewayError:
    """Return the error for a (model, engine) that has no backend to send a request to."""
    return GatewayError(
        "engine_unavailable",
        f"'{model}' on '{owned_by}' has no healthy backend at the moment. It is probed every"
        f" {retry_after} s; GET /routes shows the state and the last error of each.",
        retry_after=retry_after,
    )


def engine_unreachable(backend: str, what: str) -> GatewayError:
    """Return the error for a backend that can't be connected to, or that broke the connection."""
    return GatewayError("engine_unreachable", f"The backend '{backend}' {what}.")


def engine_timeout(backend: str, what: str) -> GatewayError:
    """Return the error for a backend that is silent for too long."""
    return GatewayError("engine_timeout", f"The backend '{backend}' {what}.")


def engine_lost(backend: str) -> GatewayError:
    """Return the error which ends a stream whose engine went away."""
    return GatewayError(
        "engine_lost", f"The backend '{backend}' ended the connection before the answer was complete."
    )


def draining(seconds: float) -> GatewayError:
    """Return the error for a request that is cut because the gateway stops."""
    return GatewayError(
        "draining",
        f"The gateway is stopping, and this request did not finish within {seconds:g} s"
        " (ROUNDHOUSE_DRAIN_TIMEOUT). Send it again.",
        retry_after=1,
    )


def internal_error() -> GatewayError:
    """Return the error for a fault of the gateway's own."""
    return GatewayError("internal_error", "The gateway failed to answer this request. Its log says why.")


def _shown(text: str) -> str:
    """Return what a client sent, shortened if it is long."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _choice(what: str, names: Iterable[str]) -> str:
    """Return a sentence that lists `names`, shortened if there are many."""
    known = list(names)
    if not known:
        return f"{what}: none at the moment."
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"{what}: {', '.join(known[:_LISTED])}{more}."
