"""One request of a client, as far as it has been read."""

import os
import re
from collections.abc import Collection
from typing import Self

from roundhouse_gateway import access, errors, heads
from roundhouse_gateway.errors import GatewayError
from roundhouse_gateway.heads import Headers

# The absolute form of a target, which proxies get, up to its path.
_AUTHORITY = re.compile(rb"[^:/?#]+://[^/?#]*")

# Random ids, drawn ahead: to ask the kernel for each costs more than all else that is done for an id.
_ids: list[str] = []


def _new_id() -> str:
    if not _ids:
        drawn = os.urandom(4096).hex()
        _ids.extend(drawn[start : start + 32] for start in range(0, len(drawn), 32))
    return _ids.pop()


class Request:
    """A request. `target` is what stands in the request line, `path` what decides where it goes.

    `error` is set if the request is to be refused for what was read of it so far.
    """

    __slots__ = (
        "_clients_id",
        "_digest",
        "_kind",
        "_passed",
        "body",
        "error",
        "expects",
        "has_head",
        "headers",
        "http10",
        "id",
        "keep_alive",
        "limits",
        "method",
        "path",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.path = b""
        self.headers: Headers = []
        self.id = ""
        self.http10 = False
        self.keep_alive = False
        self.expects = False
        self.has_head = False
        # A body that comes in pieces is collected in one buffer, which grows without being copied.
        self.body: bytes | bytearray = b""
        self.error: GatewayError | None = None
        # Header lines that tell the client of its limits.
        self.limits = b""
        # What the headers say that is asked more than once, as soon as it has been looked for.
        self._clients_id: str | None = None
        self._kind: bytes | None = None
        self._passed: bytes | None = None
        self._digest: bytes | None = None

    @property
    def digest(self) -> bytes:
        """Return the hash of the key that is presented, or nothing."""
        if self._digest is None:
            self._digest = access.digest(self.headers)
        return self._digest

    @property
    def kind(self) -> bytes:
        """Return the Content-Type."""
        if self._kind is None:
            self._kind = heads.value(self.headers, b"content-type")
        return self._kind

    @property
    def passed(self) -> bytes:
        """Return the header lines that are for the engine."""
        if self._passed is None:
            self._passed = heads.kept_for_engine(self.headers)
        return self._passed

    def replace_passed(self, names: Collection[bytes], headers: Headers) -> None:
        """Let the engine get `headers` instead of the client's with these `names` (in lower case)."""
        others = [header for header in self.headers if header[0].lower() not in names]
        self._passed = heads.kept_for_engine([*others, *headers])

    def prepare(self) -> None:
        """Look for everything that is asked of the headers more than once."""
        self._kind, self._passed, self._digest = self.kind, self.passed, self.digest

    def again(self, body: bytes) -> Self:
        """Return a new request with the head of this one, which was found good and prepared, and another body."""
        request = self.__class__()
        request.method = self.method
        request.target = self.target
        request.path = self.path
        request.headers = self.headers
        request.keep_alive = self.keep_alive
        request.has_head = True
        request.body = body
        request._clients_id = self._clients_id
        request._kind = self._kind
        request._passed = self._passed
        request._digest = self._digest
        request.id = self._clients_id or _new_id()
        return request

    def read_head(
        self, method: bytes, version: str, *, keep_alive: bool, max_header: int, max_body: int
    ) -> None:
        """Take the head as complete, and check it."""
        self.has_head = True
        self.method = method
        self.http10 = version == "1.0"
        self.keep_alive = keep_alive
        self.name()
        if not self.target.startswith(b"/"):
            authority = _AUTHORITY.match(self.target)
            if authority:
                rest = self.target[authority.end() :]
                self.target = rest if rest.startswith(b"/") else b"/" + rest
        self.path = self.target.partition(b"?")[0]
        self.error = self._check(version, max_header, max_body)

    def is_plain(self) -> bool:
        """Tell whether this is a POST with nothing special about it, in framing or protocol."""
        return (
            self.method == b"POST"
            and self.error is None
            and not (self.http10 or self.expects)
            and not heads.value(self.headers, b"upgrade")
        )

    def head_without_upgrade(self) -> bytes:
        """Return the head once more, without the offer to go on in another protocol."""
        lines = [b"%b %b HTTP/1.%d" % (self.method, self.target, not self.http10)]
        for name, value in self.headers:
            if name.lower() == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
                lines.append(b"%b: %b" % (name, b",".join(tokens)))
            elif name.lower() != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def name(self) -> None:
        """Give the request its id: the client's if that can be used, else a new one."""
        self._clients_id = heads.request_id(self.headers)
        self.id = self._clients_id or _new_id()

    def add(self, piece: bytes, max_body: int) -> None:
        """Take a piece of the body."""
        body = self.body
        if len(body) + len(piece) > max_body:
            self.error = errors.request_too_large(max_body)
            self.body = b""
        elif not body:
            self.body = piece
        elif isinstance(body, bytearray):
            body += piece
        else:
            self.body = bytearray(body) + piece

    def _check(self, version: str, max_header: int, max_body: int) -> GatewayError | None:
        hosts = types = length = 0
        size = len(self.target)
        coding = b""
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            match name.lower():
                case b"host":
                    hosts += 1
                case b"content-type":
                    types += 1
                case b"content-length":
                    length = int(value)
                case b"transfer-encoding":
                    coding = value.strip().lower()
                case b"expect":
                    self.expects = value.strip().lower() == b"100-continue" and not self.http10
        if version not in ("1.0", "1.1"):
            return errors.bad_request(f"its version is HTTP/{version}, and only 1.1 and 1.0 are spoken here")
        if size > max_header:
            return errors.headers_too_large(max_header)
        if hosts > 1 or (hosts == 0 and not self.http10):
            return errors.bad_request("it must have one Host header")
        if types > 1:
            return errors.bad_request("it must not have more than one Content-Type header")
        if coding and (coding != b"chunked" or self.http10):
            return errors.bad_request("only HTTP/1.1 has a Transfer-Encoding, and it must be just 'chunked'")
        if self.method == b"CONNECT":
            return errors.bad_request("this is no proxy, so it does not CONNECT")
        if length > max_body:
            return errors.request_too_large(max_body)
        return None
