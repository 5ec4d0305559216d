"""Errors of engines, brought into one shape."""

import json
from typing import Any

import pytest

from roundhouse_gateway import mending

CHAT = b"/v1/chat/completions"


def mended(status: int, body: bytes | dict[str, Any], path: bytes = CHAT) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = mending.mend(status, raw, path, "r1")
    return None if found is None else json.loads(found)


def error(message: str, kind: str, code: Any = None, param: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error("no", "BadRequestError", 400), None),
        (404, error("no", "NotFoundError", 404, "model"), None),
        (
            400,
            {"error": {"code": 400, "message": "no", "type": "t", "n_ctx": 5}},
            error("no", "t", 400, n_ctx=5),
        ),
        (
            400,
            {"object": "error", "message": "no", "type": "t", "param": None, "code": 400},
            error("no", "t", 400),
        ),
        (401, {"error": "Unauthorized"}, error("Unauthorized", "authentication_error")),
        (404, {"detail": "Not Found"}, error("Not Found", "not_found_error")),
        (
            422,
            {"detail": [{"loc": ["body", "n"], "msg": "bad"}, {"msg": "worse"}, "worst"]},
            error("body.n: bad; worse; worst", "invalid_request_error"),
        ),
        (500, b"Internal Server Error", error("Internal Server Error", "api_error")),
        (500, b'"text"', error("text", "api_error")),
        (502, b"<html><b>Bad</b> Gateway</html>", error("Bad  Gateway", "api_error")),
        (503, b"", error("The engine answered 503 and did not say why.", "api_error")),
        (429, b" \n", error("The engine answered 429 and did not say why.", "rate_limit_error")),
        (403, b"[1]", error("[1]", "permission_error")),
        (400, {"error": {}}, error("The engine answered 400 and did not say why.", "invalid_request_error")),
        (500, b"\xff\xfe", error("\ufffd\ufffd", "api_error")),
    ],
)
def test_shapes(status: int, body: Any, expected: Any) -> None:
    assert mended(status, body) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "1 validation error:\n  {'type': 'missing'}\n\n  File \"/opt/venv/http_server.py\", line 9, in f\n    POST",
            "1 validation error:\n  {'type': 'missing'}",
        ),
        ("Traceback (most recent call last):\n  File", "The engine answered 400 and did not say why."),
        ("can't open /srv/models/tiny/config.json now", "can't open [path] now"),
        ("can't open '/srv/models'", "can't open '[path]'"),
        ("file:///srv/models/x.gguf: no", "[path]: no"),
        (r"C:\models\x.gguf", "[path]"),
    ],
)
def test_paths_are_removed(message: str, expected: str) -> None:
    assert mended(400, error(message, "t", 400))["error"]["message"] == expected


@pytest.mark.parametrize(
    "message",
    [
        "The model `meta-llama/Llama-3.2-1B` does not exist.",
        "POST /v1/chat/completions is off",
        "see https://example.org/a/b",
        "1/2/3 and a/b/c",
        "use temperature in [0, 2]",
    ],
)
def test_what_is_no_path_stays(message: str) -> None:
    assert mended(400, error(message, "t", 400)) is None


def test_anthropics_shape() -> None:
    assert mended(400, error("no", "BadRequestError", 400), b"/v1/messages") == {
        "type": "error",
        "error": {"type": "BadRequestError", "message": "no"},
        "request_id": "r1",
    }
    good = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    assert mended(400, good, b"/v1/messages") is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"error":{"message":"no","code":400}}', 400),
        (b'{"object":"error","message":"no","code":404}', 404),
        (b'{"error":{"message":"no","code":"x"}}', None),
        (b'{"error":{"message":"no","code":200}}', None),
        (b'{"error":{"message":"no","code":400},"choices":[]}', None),
        (b'{"error":null}', None),
        (b'{"id":1}', None),
        (b"[]", None),
        (b"{", None),
    ],
)
def test_status_that_an_error_names(body: bytes, status: int | None) -> None:
    assert mending.named_status(body) == status
