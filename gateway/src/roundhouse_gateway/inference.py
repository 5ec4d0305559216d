"""What the gateway reads of an inference request, and the body it sends on. Pure: nothing here does I/O.

The body is checked and read without building a parse tree: msgspec validates the syntax of the whole of
it while it skips what nobody asked for, and hands out three values as slices. The bytes which are sent on
are those that came, with `owned_by` cut out and `model` replaced; nothing is encoded anew.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec
from msgspec import Raw, Struct

from roundhouse_gateway import errors, forms

# The paths that reach an engine. Everything else an engine has (sleep, flush cache, load weights) nobody
# may reach.
_WITH_AND_WITHOUT_V1 = ("tokenize", "detokenize", "rerank", "score", "pooling", "classify")
_BELOW_V1 = (
    "chat/completions",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "messages/count_tokens",
    "audio/transcriptions",
    "audio/translations",
)
ENDPOINTS: frozenset[bytes] = frozenset(
    f"/v1/{name}".encode() for name in _BELOW_V1 + _WITH_AND_WITHOUT_V1
) | frozenset(f"/{name}".encode() for name in _WITH_AND_WITHOUT_V1)

# Those whose answers have numbers in them, and nothing that the client sent.
WITHOUT_ECHO: frozenset[bytes] = frozenset(
    path
    for path in ENDPOINTS
    if path.rpartition(b"/")[2] in (b"embeddings", b"pooling", b"classify", b"score")
)

Span: TypeAlias = tuple[int, int]
Body: TypeAlias = bytes | bytearray
Piece: TypeAlias = Body | memoryview
NOWHERE: Span = (0, 0)

# A charset that is not the one which bodies are read in here, or may be another to some reader.
_OTHER_CHARSET = re.compile(rb'charset(?!\s*=\s*"?utf-?8"?\s*(?:;|$))', re.IGNORECASE)
_FORM_PATHS = b"/v1/audio/"
_FORM_TYPE = re.compile(rb"multipart/form-data\s*(?:;|$)", re.IGNORECASE)

_NAME = re.compile(rb'"(?:model|owned_by|stream)"')
_KEY = re.compile(rb'"(model|owned_by|stream)"[ \t\r\n]*:[ \t\r\n]*')
_LONGEST_NAME = len(b'"owned_by"')
# Bytes that are searched for keys in one go, before the next quote is looked for: most of a large body is a
# string (an image), and looking for one byte is ten times as fast as any other search.
_STRETCH = 16_384
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_COMMA_AFTER = re.compile(rb"[ \t\r\n]*,")
_BLANKS = b" \t\r\n"
# The letters of those keys in the spelling \u00xx. No JSON writer spells them so; a body that does is walked.
_ESCAPED_LETTER = re.compile(rb"\\u00(?:5[fF]|6[0-9a-fA-F]|7[0-9aA])")
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]')
_QUOTE, _OPENING = ord('"'), (ord("{"), ord("["))
_COMMA = ord(",")


class Asked(Struct, frozen=True):
    """What a request asks for, and where its body says so.

    `model_span` is the value of `model` (of a JSON body: with its quotes), `cut` what has to go if
    `owned_by` is to be taken out. `json` tells how a new value is to be written.
    """

    model: str | None
    owned_by: str | None
    model_span: Span
    cut: Span
    json: bool


class _Deciding(Struct):
    """The members of a JSON body which the gateway reads, as slices of it."""

    model: Raw = Raw()
    owned_by: Raw = Raw()
    stream: Raw = Raw()


_decode_deciding = msgspec.json.Decoder(_Deciding).decode
_decode_string = msgspec.json.Decoder(str | None).decode
_encode_string = msgspec.json.Encoder().encode


def read(body: Body, content_type: bytes, path: bytes = b"") -> Asked:
    """Return what the request with this `body` asks for.

    Raises GatewayError: invalid_json, invalid_form, invalid_value or duplicate_key.
    """
    is_form = _FORM_TYPE.match(content_type) is not None
    if not is_form and path.startswith(_FORM_PATHS):
        # An engine might read it as a form of another type.
        raise errors.invalid_form("audio comes as one")
    if content_type != b"application/json" and _OTHER_CHARSET.search(content_type):
        what = "its Content-Type names a charset other than utf-8"
        raise errors.invalid_form(what) if is_form else errors.invalid_json(what)
    return _read_form(body, content_type) if is_form else _read_json(body)


def rewritten(body: Body, asked: Asked, served_model: str) -> list[Piece]:
    """Return the body for an engine that calls the model `served_model`, in pieces of the original."""
    changes: list[tuple[Span, bytes]] = []
    if asked.model != served_model:
        new = _encode_string(served_model) if asked.json else served_model.encode()
        changes.append((asked.model_span, new))
    if asked.cut != NOWHERE:
        changes.append((asked.cut, b""))
    if not changes:
        return [body]
    view = memoryview(body)
    pieces: list[Piece] = []
    position = 0
    for (start, end), new in sorted(changes):
        pieces += (view[position:start], new)
        position = end
    pieces.append(view[position:])
    return [piece for piece in pieces if piece]


def _read_json(body: Body) -> Asked:
    try:
        deciding = _decode_deciding(body)
    except msgspec.ValidationError:
        raise errors.invalid_json("it is JSON, but no object") from None
    except msgspec.DecodeError as error:
        raise errors.invalid_json(_explained(error, body)) from None
    except RecursionError:
        raise errors.invalid_json("it is nested too deeply") from None
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise errors.invalid_json(f"byte {error.start} is no UTF-8") from None
    keys = _keys(body)
    model, owned_by = None, None
    model_span, cut = NOWHERE, NOWHERE
    if deciding.model:
        model = _text("model", deciding.model)
        if model is None:
            raise errors.invalid_value("model")
        start = keys[b"model"][1]
        model_span = (start, start + len(deciding.model))
    if deciding.owned_by:
        owned_by = _text("owned_by", deciding.owned_by)
        key, start = keys[b"owned_by"]
        cut = _member(body, key, start + len(deciding.owned_by))
    return Asked(
        model=model,
        owned_by=owned_by,
        model_span=model_span,
        cut=cut,
        json=True,
    )


def _explained(error: msgspec.DecodeError, body: Body) -> str:
    if not body.strip():
        return "it is empty"
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "it starts with a byte order mark"
    return str(error).removeprefix("JSON is malformed: ")


def _text(name: str, raw: Raw) -> str | None:
    """Return the string in `raw`, or None if it is null."""
    try:
        value: str | None = _decode_string(raw)
    except msgspec.ValidationError:
        value = ""
    if value == "":
        raise errors.invalid_value(name)
    return value


def _keys(body: Body) -> dict[bytes, Span]:
    """Return where the deciding keys of the top level start, and where their values do.

    In valid JSON a match of `_KEY` is a key of some object, or the tail of a longer key. If there is but
    one for a name and the top level has that name, they are the same. In all other cases the body is
    walked.
    """
    keys: dict[bytes, Span] = {}
    for match in _KEY.finditer(body) if len(body) <= _STRETCH else _matches(body):
        if match[1] in keys:
            break
        keys[match[1]] = match.span()
    else:
        first_escape = body.find(b"\\")
        if first_escape < 0 or not _ESCAPED_LETTER.search(body, first_escape):
            return keys
    keys = {}
    for name, start, end in _walk(body):
        if name in keys:
            raise errors.duplicate_key(name.decode())
        keys[name] = (start, end)
    return keys


def _matches(body: Body) -> Iterator[re.Match[bytes]]:
    """Yield the matches of `_KEY` in a large body."""
    position = 0
    while position >= 0:
        end = position + _STRETCH
        # A name that the end of the stretch cuts belongs to the next one.
        overlap = end - _LONGEST_NAME + 1
        for name in _NAME.finditer(body, position, end):
            overlap = max(overlap, name.end())
            match = _KEY.match(body, name.start())
            if match:
                yield match
        position = body.find(b'"', overlap)


def _walk(body: Body) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start, and start of the value of every deciding key at the top level of valid JSON."""
    depth = 0
    for token in _TOKEN.finditer(body):
        start, end = token.span()
        first = body[start]
        if first == _QUOTE:
            colon = _COLON.match(body, end) if depth == 1 else None
            if colon:
                name = (_decode_string(token[0]) or "").encode()
                if name in (b"model", b"owned_by", b"stream"):
                    yield name, start, colon.end()
        else:
            depth += 1 if first in _OPENING else -1


def _member(body: Body, start: int, end: int) -> Span:
    """Return the span of the member from `start` to `end`, with the comma that belongs to it."""
    after = _COMMA_AFTER.match(body, end)
    if after:
        return start, after.end()
    before = start - 1
    while body[before] in _BLANKS:
        before -= 1
    return (before if body[before] == _COMMA else start), end


def _read_form(body: Body, content_type: bytes) -> Asked:
    fields = {
        field.name: field for field in forms.fields(body, content_type, ("model", "owned_by", "stream"))
    }
    model, owned_by = fields.get("model"), fields.get("owned_by")
    return Asked(
        model=model.value if model else None,
        owned_by=owned_by.value if owned_by else None,
        model_span=model.value_span if model else NOWHERE,
        cut=owned_by.part_span if owned_by else NOWHERE,
        json=False,
    )
