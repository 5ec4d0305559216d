"""Fields of a multipart/form-data body, read without copying the files in it. Pure: nothing here does I/O.

The reading is strict: a form that two readers could understand differently is refused, for what the gateway
decides on has to be what the engine sees.
"""

import re
from collections.abc import Container, Iterator

from msgspec import Struct

from roundhouse_gateway import errors

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?\- ]{1,70}")
# Not all that RFC 2045 allows: readers do not agree on what a backslash before a backslash is.
_PARAMETER = re.compile(
    rb"""[ \t]*;[ \t]*([A-Za-z]+\*?)=(?:"((?:[^"\\\r\n]|\\[^\\\r\n])*)"|([^\s;"]+))[ \t]*"""
)
_ODD = re.compile(rb"[\\=;<>]")
# The parameters there may be, for some readers find others inside of quotes.
_OF_TYPE, _OF_PART = {b"boundary", b"charset"}, {b"name", b"filename", b"filename*"}
_MAX_PART_HEAD = 16_384


class Field(Struct, frozen=True):
    """One text field: its value, where that is, and the part it is in, from its delimiter to the next."""

    name: str
    value: str
    value_span: tuple[int, int]
    part_span: tuple[int, int]


def fields(body: bytes | bytearray, content_type: bytes, wanted: Container[str]) -> Iterator[Field]:
    """Yield the `wanted` fields of a form.

    Raises GatewayError: invalid_form, duplicate_key (a wanted field twice) or invalid_value (empty, or no
    text).
    """
    seen: set[str] = set()
    for start, head, value_start, value_end in _parts(body, _delimiter(content_type)):
        name, plain = _name(head)
        if name not in wanted:
            continue
        if name in seen:
            raise errors.duplicate_key(name)
        seen.add(name)
        try:
            value = body[value_start:value_end].decode()
        except UnicodeDecodeError:
            value = ""
        if not (plain and value):
            raise errors.invalid_value(name)
        # The line break before the next delimiter belongs to that, so the part ends two bytes after the
        # value.
        yield Field(name, value, (value_start, value_end), (start, value_end + 2))


def _delimiter(content_type: bytes) -> bytes:
    parameters = _parameters(content_type.partition(b";")[1:], _OF_TYPE)
    boundary = parameters.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary) or boundary.endswith(b" "):
        raise errors.invalid_form("its Content-Type has no valid boundary")
    return b"--" + boundary


def _parts(body: bytes | bytearray, delimiter: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield for each part: where its delimiter starts, its head, and where its value starts and ends."""
    if not body.startswith(delimiter):
        raise errors.invalid_form("it does not start with its boundary")
    start = 0
    after = len(delimiter)
    while body[after : after + 2] != b"--":
        if body[after : after + 2] != b"\r\n":
            raise errors.invalid_form("a boundary is followed by something else than a line break")
        head_end = body.find(b"\r\n\r\n", after, after + _MAX_PART_HEAD)
        if head_end < 0:
            raise errors.invalid_form("the head of a part does not end")
        value_end = body.find(b"\r\n" + delimiter, head_end + 4)
        if value_end < 0:
            raise errors.invalid_form("its last boundary is missing")
        yield start, bytes(body[after + 2 : head_end]), head_end + 4, value_end
        start = value_end + 2
        after = start + len(delimiter)
    if body[after + 2 :].strip(b"\r\n"):
        raise errors.invalid_form("something follows its last boundary")


def _name(head: bytes) -> tuple[str, bool]:
    """Return the name of the part with this head, and whether it is a plain text field."""
    name: bytes | None = None
    plain = True
    for line in head.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        if not colon or key != key.strip() or b"\n" in line or b"\r" in line:
            raise errors.invalid_form("the head of a part has a line that is no header")
        if key.lower() == b"content-transfer-encoding":
            plain = False
        if key.lower() != b"content-disposition":
            continue
        kind, *rest = value.partition(b";")
        parameters = _parameters(rest, _OF_PART)
        if kind.strip().lower() != b"form-data" or name is not None:
            raise errors.invalid_form("a part has not exactly one Content-Disposition: form-data")
        name = parameters.get(b"name")
        plain = plain and not parameters.keys() & {b"filename", b"filename*"}
    if name is None or _ODD.search(name):
        raise errors.invalid_form("a part has no plain name")
    return name.decode("utf-8", "replace"), plain


def _parameters(rest: list[bytes] | tuple[bytes, ...], allowed: set[bytes]) -> dict[bytes, bytes]:
    """Return the parameters of a header value; `rest` is what follows its first word, with the semicolon."""
    text = b"".join(rest)
    parameters: dict[bytes, bytes] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        name = match[1].lower() if match else b""
        if not match or name not in allowed or name in parameters:
            raise errors.invalid_form("a header has parameters which can't be read")
        parameters[name] = match[2] if match[2] is not None else match[3]
        position = match.end()
    return parameters
