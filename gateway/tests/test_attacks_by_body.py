"""Attacks by bodies: what the gateway decides on has to be what the engine sees, however it is spelled."""

from __future__ import annotations

import itertools
import json
import urllib.parse
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roundhouse_gateway import inference
from roundhouse_gateway.errors import GatewayError

from .attacks import FORM, client_of_two, form, nothing_leaks, typed
from .client import Client, post
from .conftest import StartGateway
from .engine import FakeEngine

__all__ = ["nothing_leaks"]


@pytest.fixture
async def client(start_gateway: StartGateway, engine: FakeEngine) -> Client:
    return await client_of_two(start_gateway, engine)


class TestJson:
    async def test_two_models(self, client: Client, engine: FakeEngine) -> None:
        spelled = [
            '"model"',
            r'"mod\u0065l"',
            r'"\u006d\u006f\u0064\u0065\u006c"',
            r'"\u006Dodel"',
            r'"mode\u006C"',
        ]
        between = ["", '"x":{"model":"c"},', r'"y":"\"model\":",', f'"z":"{"x" * 40_000}",']
        for first, second, other, names in itertools.product(spelled, spelled, between, ("ab", "ba", "aa")):
            body = f'{{{first}:"{names[0]}",{other}{second}:"{names[1]}"}}'
            assert (await client.ask(post(body.encode()))).code == "duplicate_key"
        assert not engine.turns

    @pytest.mark.parametrize(
        "key", ["owned_by", "stream", r"owned\u005fby", r"owned\u005Fby", r"\u0073tream"]
    )
    async def test_two_of_the_others(self, client: Client, engine: FakeEngine, key: str) -> None:
        plain = json.loads(f'"{key}"')
        for value in ('"fake"', "true", "null", "{}"):
            body = f'{{"{plain}":{value},"model":"a","{key}":"fake"}}'
            assert (await client.ask(post(body.encode()))).code == "duplicate_key"
        assert not engine.turns

    @pytest.mark.parametrize(
        "rest",
        [
            r'"x":{"model":"b","owned_by":"c"}',
            r'"x":[{"model":"b"},{"mod\u0065l":"b"}]',
            r'"x":"\",\"model\":\"b\",\""',
            r'"x\"model":"b"',
            r'"model\u0000":"b","\u0000model":"b"',
            r'"MODEL":"b","Model":"b","model ":"b"," model":"b","m\u043edel":"b","model\u200b":"b"',
            r'"x":"\\","y":"\\\"model\":"',
            r'"messages":[{"content":"\u0022,\u0022model\u0022:\u0022b\u0022"}]',
            r'"x":123456789012345678901234567890e999999,"y":-0.0,"z":1E-999',
        ],
    )
    async def test_what_is_not_the_model_is_left(self, client: Client, engine: FakeEngine, rest: str) -> None:
        for body, sent in (
            (f'{{"model":"a",{rest}}}', f'{{"model":"of-a",{rest}}}'),
            (f'{{{rest},\t"mod\\u0065l" : "\\u0061"}}', f'{{{rest},\t"mod\\u0065l" : "of-a"}}'),
            (f'{{{rest},"owned_by":"FAKE","model":"a"}}', f'{{{rest},"model":"of-a"}}'),
        ):
            assert (await client.ask(post(body.encode()))).status == 200
            assert engine.turns[-1].body == sent.encode()

    @pytest.mark.parametrize(
        "body",
        [
            b'{"model":"a"}{"model":"b"}',
            b'{"model":"a"}\n{"model":"b"}',
            b'{"model":"a"},',
            b'{"model":"a"}\x00',
            b'{"model":"a",}',
            b'{,"model":"a"}',
            b'{"model":"a"/*,*/}',
            b'{"model":"a"}//',
            b'#\n{"model":"a"}',
            b"{'model':'a'}",
            b'{model:"a"}',
            b'{"model"="a"}',
            b'[{"model":"a"}]',
            b'"model"',
            b'{"model":"a","x":NaN}',
            b'{"model":"a","x":-Infinity}',
            b'{"model":"a","x":01}',
            b'{"model":"a","x":0x1}',
            b'{"model":"a","x":1_0}',
            b'{"model":"a","x":True}',
            b'{"model":"a","x":"\\x41"}',
            b'{"model":"a","x":"\\u12"}',
            b'{"model":"a","x":"\n"}',
            b'{"model":"a","x":"\x00"}',
            b'{"model":"a","\\ud800\\"model":"b"}',
            b'{"model":"\\ud800"}',
            b'{"model":"a\\udc00"}',
            b'{"owned_by":"\\ud800","model":"a"}',
            b'{"mod\\u0065l":"a","\\udfff":1}',
            b'{"model":"a","x":"\xc0\xa2,\xc0\xa2model"}',
            b'{"model":"a","x":"\xed\xa0\x80"}',
            b'{"model":"a","x":"\xff"}',
            b'\xef\xbb\xbf{"model":"a"}',
            b'\x0c{"model":"a"}',
            b'\xc2\xa0{"model":"a"}',
            '{"model":"a"}'.encode("utf-16"),
            '{"model":"a"}'.encode("utf-16-le"),
            '{"model":"a"}'.encode("utf-32-be"),
            b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
            b"[" * 1_000_000,
        ],
        ids=lambda body: body[:25],
    )
    async def test_no_json(self, client: Client, engine: FakeEngine, body: bytes) -> None:
        assert (await client.ask(post(body))).code == "invalid_json"
        assert not engine.turns

    @pytest.mark.parametrize(
        "model",
        ["a\\u0000", "\\u0000a", " a", "a ", "A", "\\uff41", "a\\u0300", "\\u0430", "a@", "@a", "a@@fake"],
    )
    async def test_names_match_exactly(self, client: Client, engine: FakeEngine, model: str) -> None:
        assert (await client.ask(post(f'{{"model":"{model}"}}'.encode()))).status == 404
        assert not engine.turns

    @pytest.mark.parametrize(
        "kind",
        [
            b"application/json; charset=utf-7",
            b'application/json; charset="UTF-16"',
            b"application/json;charset*0=utf-7",
            b"application/json; charset=utf-8; charset=utf-7",
            b"text/plain; charset=cp037",
            FORM + b"; charset=utf-7",
            FORM + b"; charset=utf-16-le",
            FORM + b"; Charset =latin-1",
        ],
    )
    async def test_charsets(self, client: Client, engine: FakeEngine, kind: bytes) -> None:
        """Some engines read a body in the charset that its type names: another model may be in it."""
        body = b'{"model":"a","x":"+ACIALAAi-model+ACIAOgAi-b"}'
        assert json.loads(body.decode("utf-7"))["model"] == "b"
        if kind.startswith(b"multipart"):
            body = form(b'name="model"|a', b'name="+AG0-odel"|b')
        got = await client.ask(typed(body, kind))
        assert (got.status, got.code) in ((400, "invalid_json"), (400, "invalid_form"))
        assert not engine.turns

    @pytest.mark.parametrize(
        "kind", [b"application/json; charset=UTF-8", b'application/json;charset="utf8"', b"text/plain"]
    )
    async def test_usual_types(self, client: Client, kind: bytes) -> None:
        request = typed(b'{"model":"a"}', kind).replace(b"/v1/audio/transcriptions", b"/v1/chat/completions")
        assert (await client.ask(request)).status == 200

    async def test_two_readings_of_one_body(self, client: Client, engine: FakeEngine) -> None:
        """Where engines take forms (they do for audio), FastAPI reads this type as one, too."""
        body = b'{"model":"a","x":"&model=b&y="}'
        assert urllib.parse.parse_qs(body.decode())["model"] == ["b"]
        assert (await client.ask(typed(body, b"application/x-www-form-urlencoded"))).code == "invalid_form"
        assert not engine.turns


texts = st.text(max_size=8) | st.sampled_from(
    ["model", "owned_by", "stream", "a", "b", '"model":"b"', "\\", "\x00"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


def jsons(members: list[tuple[str, Any]], *, ascii_only: bool) -> bytes:
    written = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=ascii_only)}" for key, value in members)
    return f"{{{', '.join(written)}}}".encode(errors="surrogatepass")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    members=st.lists(st.tuples(texts, values), max_size=6),
    model=st.sampled_from(["a", "b", "a@fake", "B@FAKE", "b@FAKE"]),
    owned_by=st.sampled_from([None, "fake", "Fake", "x"]),
    place=st.integers(0, 7),
    ascii_only=st.booleans(),
)
async def test_any_object(
    client: Client,
    engine: FakeEngine,
    members: list[tuple[str, Any]],
    model: str,
    owned_by: str | None,
    place: int,
    ascii_only: bool,
) -> None:
    """The engine reads what was sent, less `owned_by`, with its own name of the model; or nothing at all."""
    sent = [
        *members[:place],
        ("model", model),
        *members[place:],
        *([("owned_by", owned_by)] if owned_by else []),
    ]
    body = jsons(sent, ascii_only=ascii_only)
    engine.turns.clear()
    got = await client.ask(post(body))
    last: dict[str, Any] = json.loads(body)
    deciding = [key for key, _ in sent if key in ("model", "owned_by", "stream")]
    is_good = len(deciding) == len(set(deciding)) and model != "B@FAKE" and owned_by != "x"
    if not engine.turns:
        assert got.status in (400, 404)
        assert not is_good or "owned_by" in dict(members)
        return
    assert len(deciding) == len(set(deciding))
    assert got.headers["x-roundhouse-backend"] == last["model"][0]
    last.pop("owned_by", None)
    assert engine.turns[0].json == last | {"model": f"of-{model[0]}"}


near_jsons = st.text(alphabet='{}[]",:\\u0model1eab+- \n\ud800', max_size=40)


@given(st.binary(max_size=60) | near_jsons.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes(body: bytes) -> None:
    """Python's reader, which many engines have, finds the same model; or the body is refused."""
    try:
        asked = inference.read(body, b"")
    except GatewayError:
        return
    assert json.loads(body).get("model") == asked.model
