"""Reading and rewriting of bodies: any JSON, any spelling; nothing changes but what has to."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundhouse_gateway import inference
from roundhouse_gateway.errors import GatewayError

names = st.text(min_size=1, max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
keys = st.text() | st.sampled_from(["model", "owned_by", "stream", 'x"model', "\\", "mod\\u0065l"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
blanks = st.text(alphabet=" \t\r\n", max_size=3)


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """Return `value` as JSON, with any blanks and any escapes."""

    def blank() -> str:
        return draw(blanks)

    if isinstance(value, str):
        plain = json.dumps(value, ensure_ascii=draw(st.booleans()))
        if draw(st.integers(0, 9)) == 0:
            return '"' + "".join(_escaped(char) for char in value) + '"'
        return plain
    if isinstance(value, list):
        return "[" + blank() + ",".join(blank() + draw(spelled(v)) + blank() for v in value) + "]"
    if isinstance(value, list_of_members):
        value = value.members
    elif isinstance(value, dict):
        value = list(value.items())
    else:
        return json.dumps(value)
    members = [
        blank() + draw(spelled(k)) + blank() + ":" + blank() + draw(spelled(v)) + blank() for k, v in value
    ]
    return "{" + (",".join(members) or blank()) + "}"


class list_of_members:  # noqa: N801 - a shape of JSON, like the built-in ones
    """An object as a list, for keys may be there twice."""

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        self.members = members


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, Any]]]:
    """Return a body with a model, and its members in order."""
    deciding = ("model", "owned_by", "stream")
    members = [("model", draw(names))]
    if draw(st.booleans()):
        members.append(("owned_by", draw(names | st.none())))
    if draw(st.booleans()):
        members.append(("stream", draw(values)))
    others = draw(st.lists(st.tuples(keys.filter(lambda key: key not in deciding), values), max_size=5))
    members = draw(st.permutations(members + others))
    text = draw(blanks) + draw(spelled(list_of_members(members))) + draw(blanks)
    return text.encode(), members


@given(requests(), names, st.integers(min_value=11, max_value=200))
def test_any_request(request_: tuple[bytes, list[tuple[str, Any]]], served_model: str, stretch: int) -> None:
    body, members = request_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "_STRETCH", stretch)
        _check_request(body, members, served_model)


def _check_request(body: bytes, members: list[tuple[str, Any]], served_model: str) -> None:
    given_values = dict(members)
    asked = inference.read(body, b"application/json")
    assert asked.model == given_values["model"]
    assert asked.owned_by == given_values.get("owned_by")
    rewritten = b"".join(inference.rewritten(body, asked, served_model))
    expected = [
        (key, served_model if key == "model" else value) for key, value in members if key != "owned_by"
    ]
    assert _pairs(rewritten) == _pairs_of(expected)
    # All other bytes are those of the original: undoing the two changes gives it back.
    if asked.model == served_model and "owned_by" not in given_values:
        assert rewritten == body
    if "owned_by" not in given_values:
        start, end = asked.model_span
        assert rewritten.startswith(body[:start])
        assert rewritten.endswith(body[end:])
    elif asked.model == served_model:
        start, end = asked.cut
        assert rewritten == body[:start] + body[end:]


def _pairs(body: bytes) -> list[tuple[str, str]]:
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=lambda found: found)
    return [(key, json.dumps(value)) for key, value in pairs]


def _pairs_of(members: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [
        (key, json.dumps(json.loads(json.dumps(value), object_pairs_hook=lambda found: found)))
        for key, value in members
    ]


@given(requests(), st.sampled_from(["model", "owned_by", "stream"]), st.booleans())
def test_any_repeated_key(
    request_: tuple[bytes, list[tuple[str, Any]]],
    key: str,
    escaped: bool,
) -> None:
    body, members = request_
    if key not in dict(members):
        return
    spelling = "".join(map(_escaped, key)) if escaped else key
    twice = body.rstrip()[:-1] + f',"{spelling}":"x"}}'.encode()
    for stretch in (11, 50, 16_384):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference, "_STRETCH", stretch)
            with pytest.raises(GatewayError) as caught:
                inference.read(twice, b"")
        assert (caught.value.code, caught.value.param) == ("duplicate_key", key)


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\u0model1e+- \n', max_size=30).map(str.encode))
def test_any_bytes(body: bytes) -> None:
    try:
        document = json.loads(body.decode(), parse_constant=lambda _: 1 / 0)
    except (ValueError, RecursionError, ZeroDivisionError):
        document = None
    try:
        asked = inference.read(body, b"")
    except GatewayError as error:
        # A lone surrogate is the one thing that Python's parser takes and ours does not.
        if error.code == "invalid_json":
            assert not isinstance(document, dict) or "\\u" in body.decode()
    else:
        assert isinstance(document, dict)
        assert asked.model == document.get("model")


@pytest.mark.parametrize(
    ("body", "rewritten"),
    [
        (b'{"model":"a","owned_by":"b"}', b'{"model":"N"}'),
        (b'{"owned_by":"b","model":"a"}', b'{"model":"N"}'),
        (b'{"x":1 , "owned_by" : "b" , "model":"a"}', b'{"x":1 ,  "model":"N"}'),
        (b'{"model":"a" , "x":{"owned_by":2}\n,\n"owned_by":"b"\n}', b'{"model":"N" , "x":{"owned_by":2}\n\n}'),
        (b'{"x\\"model":1,"model":"a"}', b'{"x\\"model":1,"model":"N"}'),
        (b'{"x":"\\"model\\":","model":"a"}', b'{"x":"\\"model\\":","model":"N"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"N"}'),
        (b'{"x":{"model":1},"mod\\u0065l":"a"}', b'{"x":{"model":1},"mod\\u0065l":"N"}'),
        (b'{"x":[{"model":1},{"model":[]}],"model":"\\u0061"}', b'{"x":[{"model":1},{"model":[]}],"model":"N"}'),
    ],
)  # fmt: skip
def test_spellings(body: bytes, rewritten: bytes) -> None:
    asked = inference.read(body, b"")
    assert asked.model == "a"
    assert b"".join(inference.rewritten(body, asked, "N")) == rewritten


def test_same_model_is_left_as_it_is_spelled() -> None:
    body = b'{"model":"\\u0061"}'
    assert inference.rewritten(body, inference.read(body, b""), "a") == [body]


def test_allow_list() -> None:
    assert len(inference.ENDPOINTS) == 20
    assert b"/v1/chat/completions" in inference.ENDPOINTS
    assert b"/tokenize" in inference.ENDPOINTS
    assert b"/chat/completions" not in inference.ENDPOINTS
    assert b"/v1/responses/resp_1" not in inference.ENDPOINTS
