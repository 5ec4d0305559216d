"""Reading of multipart bodies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundhouse_gateway import inference
from roundhouse_gateway.errors import GatewayError

TYPE = b"multipart/form-data; boundary=B"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--B--\r\n"


@given(
    st.permutations(["file", "model", "owned_by", "prompt"]),
    st.binary(max_size=50),
    st.text(min_size=1, max_size=10),
)
def test_any_order(order: list[str], file: bytes, model: str) -> None:
    if b"\r\n--B" in b"\r\n" + file:
        return
    parts = {
        "file": part("file", file, '; filename="a; name=model.wav"'),
        "model": part("model", model.encode()),
        "owned_by": part("owned_by", b"vllm"),
        "prompt": part("prompt", b'name="model"'),
    }
    if b"\r\n--B" in model.encode():
        return
    body = form(*(parts[name] for name in order))
    asked = inference.read(body, TYPE)
    assert (asked.model, asked.owned_by) == (model, "vllm")
    expected = form(*(part("model", b"new") if n == "model" else parts[n] for n in order if n != "owned_by"))
    assert b"".join(inference.rewritten(body, asked, "new")) == expected


@pytest.mark.parametrize(
    "kind",
    [
        TYPE,
        b'Multipart/Form-Data;boundary="B"',
        b"multipart/form-data; charset=utf-8; boundary=B",
    ],
)
def test_spellings_of_the_type(kind: bytes) -> None:
    assert inference.read(form(part("model", b"a")), kind).model == "a"


def test_name_without_quotes() -> None:
    body = b"--B\r\ncontent-disposition: form-data; name=model\r\n\r\na\r\n--B--"
    assert inference.read(body, TYPE).model == "a"


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"", TYPE, "invalid_form"),
        (b"{}", TYPE, "invalid_form"),
        (form(part("model", b"a")), b"multipart/form-data", "invalid_form"),
        (form(part("model", b"a")), b"multipart/form-data; boundary=", "invalid_form"),
        (form(part("model", b"a")), b"multipart/form-data; boundary=B; boundary=C", "invalid_form"),
        (form(part("model", b"a")), b"multipart/form-data; boundary=C", "invalid_form"),
        (b"preamble\r\n" + form(part("model", b"a")), TYPE, "invalid_form"),
        (part("model", b"a"), TYPE, "invalid_form"),
        (form(part("model", b"a")) + b"more", TYPE, "invalid_form"),
        (form(part("model", b"a"), part("x", b"\r\n--Bx")), TYPE, "invalid_form"),
        (form(part("mod\\el", b"a")), TYPE, "invalid_form"),
        (form(b"--B\r\n\r\na\r\n"), TYPE, "invalid_form"),
        (form(b"--B\r\nX: y\r\n\r\na\r\n"), TYPE, "invalid_form"),
        (form(b"--B\r\nContent-Disposition: attachment; name=model\r\n\r\na\r\n"), TYPE, "invalid_form"),
        (form(part("x", b"a", '; name="model"')), TYPE, "invalid_form"),
        (form(part("x", b"a", "; name*=utf-8''model")), TYPE, "invalid_form"),
        (form(part("model", b"a"), part("model", b"a")), TYPE, "duplicate_key"),
        (form(part("model", b"a"), part("stream", b"1"), part("stream", b"0")), TYPE, "duplicate_key"),
        (form(part("model", b"")), TYPE, "invalid_value"),
        (form(part("model", b"\xff")), TYPE, "invalid_value"),
        (form(part("model", b"a", '; filename="x"')), TYPE, "invalid_value"),
        (
            form(
                b"--B\r\nContent-Disposition: form-data; name=model\r\nContent-Transfer-Encoding: base64\r\n\r\na\r\n"
            ),
            TYPE,
            "invalid_value",
        ),
    ],
)
def test_forms_that_are_refused(body: bytes, kind: bytes, code: str) -> None:
    with pytest.raises(GatewayError) as caught:
        inference.read(body, kind)
    assert caught.value.code == code
