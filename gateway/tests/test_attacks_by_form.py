"""Attacks by forms: no reader of multipart bodies may find another model in one than the gateway did."""

from __future__ import annotations

import pytest

from .attacks import FORM, client_of_two, form, nothing_leaks, typed
from .client import Client
from .conftest import StartGateway
from .engine import FakeEngine

__all__ = ["nothing_leaks"]

A = b'name="model"|a'


@pytest.fixture
async def client(start_gateway: StartGateway, engine: FakeEngine) -> Client:
    return await client_of_two(start_gateway, engine)


@pytest.mark.parametrize(
    "second",
    [b'name="model"|b', b"name=model|b", b'NAME="model"|b', b'name="model"\r\nX: y|b'],
)
async def test_two_models(client: Client, engine: FakeEngine, second: bytes) -> None:
    for parts in ((A, second), (second, A)):
        assert (await client.ask(typed(form(*parts), FORM))).code == "duplicate_key"
    assert not engine.turns


@pytest.mark.parametrize(
    "second",
    [
        # Each is the field `model` to some version of python-multipart, by which vLLM and SGLang read forms.
        b"name=<model>|b",
        b'name="x"; name*0="model"|b',
        b'name="x"; name*0="mo"; name*1="del"|b',
        b"name=x; name*=utf-8''model|b",
        b"name=x; name*0*=utf-8''mod%65l|b",
        b'name="x"; z="a\\\\"; y="; name=model; w="|b',
        # And these to others, such as llama.cpp's.
        b'z="a;name=model;b"; name="x"|b',
        b'name="x"; filename="a\\\\"; filename*="; name=model; z="|b',
        b'name="x;name=model;y"|b',
        b"name=x=model|b",
        b'z="a\\"; name=model; y="; name="x"|b',
        b'name="mod\\el"|b',
        b'name="model|b',
        b'name="x" name="model"|b',
        b'name="x";; name="model"|b',
        b'name="x"; name="model"|b',
        b'name="x"\nContent-Disposition: form-data; name="model"|b',
        b'name="x"\r\nX: y\nContent-Disposition: form-data; name="model"|b',
        b'name="x"\r\nX: y\rContent-Disposition: form-data; name="model"|b',
        b'name="x"\r\nContent-Disposition: form-data; name="model"|b',
        b'name="x";\r\n name="model"|b',
        b'name="x"\r\nContent-Disposition : form-data; name="model"|b',
        b'filename="x"|b',
        b'name="x"|\r\n--B \r\nContent-Disposition: form-data; name="model"\r\n\r\nb',
        b'name="x"|\r\n--B--\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nb',
    ],
)
async def test_hidden_names(client: Client, engine: FakeEngine, second: bytes) -> None:
    for parts in ((A, second), (second, A)):
        got = await client.ask(typed(form(*parts), FORM))
        assert (got.status, got.code) == (400, "invalid_form")
    assert not engine.turns


@pytest.mark.parametrize(
    "part",
    [
        b'name="model"; filename="x"|a',
        b'filename=""; name="model"|a',
        b"name=model; filename*=utf-8''x|a",
        b'name="model"\r\nContent-Transfer-Encoding: base64|YQ==',
        b'name="model"|',
        b'name="model"|\xff\xfea',
    ],
)
async def test_models_that_are_no_text(client: Client, engine: FakeEngine, part: bytes) -> None:
    got = await client.ask(typed(form(part), FORM))
    assert (got.status, got.code) == (400, "invalid_value")
    assert not engine.turns


@pytest.mark.parametrize(
    "kind",
    [
        FORM + b"; boundary=C",
        b'multipart/form-data; z="boundary=C"; boundary=B',
        FORM + b"; boundary*0=C",
        FORM + b"; boundary*=C",
        b"multipart/form-data; boundary=<B>",
        FORM + b'; z="a\\\\"; y="; boundary=C; w="',
        b"multipart/form-data; boundary=C",
        b"multipart/form-data;",
        b'multipart/form-data; boundary="B',
        b"multipart/form-data; boundary=B,C",
        b"multipart/form-data; boundary=' B'",
    ],
)
async def test_boundaries(client: Client, engine: FakeEngine, kind: bytes) -> None:
    inner = b'--C\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n--C--\r\n'
    got = await client.ask(typed(form(A, b'name="file"; filename="f"|' + inner), kind))
    assert (got.status, got.code) == (400, "invalid_form")
    assert not engine.turns


async def test_nothing_but_the_two_fields_changes(client: Client, engine: FakeEngine) -> None:
    file = b'name="file"; filename="C:\\a;name=model.wav"|{"model":"b"}\r\n--A\r\nname="model"\r\n\r\nb'
    others = (
        b'name="prompt"|model=b',
        b'name="model[]"|b',
        b'name="Model"|b',
        b'name="mod%65l"|b',
        b"name=stream|1",
    )
    body = form(file, b"name=owned_by|FAKE", *others, A)
    assert (await client.ask(typed(body, FORM))).status == 200
    assert engine.turns[0].body == form(file, *others, b'name="model"|of-a')
    assert engine.turns[0].headers["content-type"] == FORM.decode()
