"""What the attacks have in common: secrets to look for, all that a gateway tells of itself, and how it refuses."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from roundhouse_gateway import reader

from .client import Client, post
from .conftest import Roundhouse, StartGateway, engine_entry, until
from .engine import CHAT, FakeEngine, Turn, answer
from .keys import secret

PROMPT = "a prompt that is nobody's business"
ANSWER = "an answer that is nobody's business"
ENGINES_KEY = "sk-of-the-engine"
#: What all keys of the tests have in common.
OF_KEYS = secret("")[3:]

FORM = b"multipart/form-data; boundary=B"
BODY = json.dumps({"model": "tiny", "prompt": PROMPT}).encode()


class _Ear(logging.Handler):
    """Keeps everything of every record."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter())
        self.lines: list[str] = []
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)} {vars(record)}"
        self.lines.append(line)
        if record.exc_info or (record.name == "asyncio" and record.levelno >= logging.WARNING):
            self.faults.append(line)


@pytest.fixture(autouse=True)
def nothing_leaks(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Watch all logs and outputs until the gateway has stopped: nothing leaks, and nothing goes wrong inside."""
    reader._known.clear()
    root, ear = logging.getLogger(), _Ear()
    level = root.level
    root.addHandler(ear)
    root.setLevel(logging.DEBUG)
    yield
    root.removeHandler(ear)
    root.setLevel(level)
    told = "\n".join((*ear.lines, *capsys.readouterr()))
    for text in (PROMPT, ANSWER, ENGINES_KEY, OF_KEYS):
        assert text not in told
    assert not ear.faults


async def tell(turn: Turn) -> None:
    """Answer as engines do; nobody else may repeat it."""
    await turn.send(answer(CHAT | {"text": ANSWER}))


def head(*lines: bytes) -> bytes:
    """Return the head of a request with these lines and no others."""
    return b"\r\n".join([b"POST /v1/completions HTTP/1.1", *lines, b"", b""])


CHUNKED = head(b"Host: a", b"Transfer-Encoding: chunked")
IN_CHUNKS = b"%x\r\n%b\r\n" % (len(BODY), BODY)


async def whole(roundhouse: Roundhouse, *wire: bytes) -> bytes:
    """Return everything that is answered to these bytes, on a connection of their own."""
    client = await roundhouse.connect()
    await client.send(*wire)
    client.half_close()
    return await client.rest()


async def keeps_out(roundhouse: Roundhouse, engine: FakeEngine, wire: bytes, *statuses: int) -> None:
    """Check that a request is refused, and that not a byte of it comes to the engine."""
    got = await whole(roundhouse, wire)
    assert int(got.split(b" ", 2)[1]) in statuses, (wire[:200], got[:300])
    assert len(re.findall(rb"HTTP/1\.1 \d", got)) == 1
    await until(lambda: engine.probes == 1)
    assert (engine.turns, engine.connections) == ([], 0)


def typed(body: bytes, kind: bytes, path: str = "/v1/audio/transcriptions") -> bytes:
    """Return a request with a body of this type."""
    return post(body, path=path).replace(b"application/json", kind)


def form(*parts: bytes) -> bytes:
    """Return a form; each part is the parameters of its disposition, `|`, and its value."""
    lines = []
    for part in parts:
        parameters, _, value = part.partition(b"|")
        lines.append(b"--B\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (parameters, value))
    return b"".join((*lines, b"--B--\r\n"))


async def client_of_two(start_gateway: StartGateway, engine: FakeEngine) -> Client:
    """Return a client of a gateway with the models `a` and `b`, which its engine knows by other names."""
    models = [
        {"model": name, "engines": [engine_entry(engine, names=name, served_model=f"of-{name}")]}
        for name in "ab"
    ]
    return await (await start_gateway({"revision": "1", "models": models})).connect()
