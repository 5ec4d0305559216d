"""Metrics: what is counted of a request, that workers add up, and that it can be read."""

from __future__ import annotations

import asyncio
import collections
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from roundhouse_gateway import counters, exposition, metrics, usage
from roundhouse_gateway.counters import Counters, Slab
from roundhouse_gateway.metrics import BOUNDS, METRICS, STATE, WIDTH, BackendMetrics, State

from .client import Client, get, post
from .conftest import Roundhouse, StartEngine, StartGateway, simple_map, until
from .engine import DONE, END, STREAM_HEAD, FakeEngine, Gate, Turn, answer, chunk, event
from .keys import bearer, key, write_keys

ASK = post({"model": "tiny"})
ONE = {"model": "tiny", "engine": "fake"}

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def parsed(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def scraped(roundhouse: Roundhouse, *headers: str) -> Samples:
    got = await (await roundhouse.connect()).ask(get("/metrics", *headers))
    assert got.status == 200
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(got.body.decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get(name, {}).get(tuple(sorted(labels.items())), 0.0)


class TestRequests:
    async def test_a_whole_answer(self, roundhouse: Roundhouse, client: Client) -> None:
        for _ in range(3):
            assert (await client.ask(ASK)).status == 200
        samples = await scraped(roundhouse)
        wanted = ONE | {"backend": "one", "key": "", "status": "200", "code": ""}
        assert value(samples, "roundhouse_requests_total", **wanted) == 3
        for name in ("request_duration", "time_to_first_byte"):
            assert value(samples, f"roundhouse_{name}_seconds_count", **ONE) == 3
            assert value(samples, f"roundhouse_{name}_seconds_bucket", **ONE, le="600.0") == 3
        assert value(samples, "roundhouse_tokens_total", **ONE, key="", direction="input") == 15
        assert value(samples, "roundhouse_tokens_total", **ONE, key="", direction="output") == 6
        assert value(samples, "roundhouse_upstream_connections", **ONE, backend="one") == 1
        assert value(samples, "roundhouse_backend_healthy", **ONE, backend="one") == 1
        assert value(samples, "roundhouse_map_info", revision="1") == 1
        assert value(samples, "roundhouse_workers") == 1

    async def test_a_stream(self, roundhouse: Roundhouse, client: Client, engine: FakeEngine) -> None:
        told = b'data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":9}}\n\n'

        async def script(turn: Turn) -> None:
            await turn.send(STREAM_HEAD)
            for word in ["one", "two", "three", "four"]:
                await turn.send(chunk(event(word)))
            await turn.send(chunk(told), chunk(DONE) + END)

        engine.script = script
        assert (await client.ask(ASK)).complete
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_tokens_total", **ONE, key="", direction="input") == 9
        assert value(samples, "roundhouse_tokens_total", **ONE, key="", direction="output") == 3
        # How many pieces come at a time is the kernel's.
        assert 1 <= value(samples, "roundhouse_time_between_chunks_seconds_count", **ONE) <= 6

    async def test_in_flight(self, roundhouse: Roundhouse, client: Client, engine: FakeEngine) -> None:
        gate = engine.script = Gate()
        await client.send(ASK)
        await until(lambda: engine.turns)
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_requests_in_flight", **ONE, backend="one") == 1
        gate.open.set()
        await client.answer()
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_requests_in_flight", **ONE, backend="one") == 0

    async def test_a_client_that_leaves(
        self, roundhouse: Roundhouse, client: Client, engine: FakeEngine
    ) -> None:
        async def script(turn: Turn) -> None:
            await turn.send(STREAM_HEAD, chunk(event("one")))
            await turn.until_left()

        engine.script = script
        await client.send(ASK)
        await client.read_until(b"one")
        client.reset()
        await until(roundhouse.is_quiet)
        samples = await scraped(roundhouse)
        wanted = ONE | {"backend": "one", "key": "", "status": "499", "code": "client_left"}
        assert value(samples, "roundhouse_requests_total", **wanted) == 1
        assert value(samples, "roundhouse_client_cancellations_total", **ONE) == 1

    async def test_a_stream_whose_engine_dies(
        self, roundhouse: Roundhouse, client: Client, engine: FakeEngine
    ) -> None:
        async def script(turn: Turn) -> None:
            await turn.send(STREAM_HEAD, chunk(event("one")))
            turn.close()

        engine.script = script
        assert b"engine_lost" in (await client.ask(ASK)).body
        wanted = ONE | {"backend": "one", "key": "", "status": "200", "code": "engine_lost"}
        assert value(await scraped(roundhouse), "roundhouse_requests_total", **wanted) == 1

    async def test_another_backend(
        self, start_gateway: StartGateway, start_engine: StartEngine, engine: FakeEngine
    ) -> None:
        gone = await start_engine()
        roundhouse = await start_gateway(simple_map(gone, engine))
        await gone.stop()
        client = await roundhouse.connect()
        for _ in range(6):
            assert (await client.ask(ASK)).status == 200
        roundhouse.backend().failed("is gone")
        roundhouse.backend().failed("is gone")
        roundhouse.backend().failed("is gone")
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_retries_total", **ONE) >= 1
        assert value(samples, "roundhouse_backend_ejections_total", **ONE, backend="one") == 1
        assert value(samples, "roundhouse_backend_healthy", **ONE, backend="one") == 0

    async def test_labels_are_the_operators_words(
        self, start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path
    ) -> None:
        """What a client writes makes no series, however much of it there is."""
        keys = write_keys(tmp_path / "keys.yml", key("alice"), key("boss", admin=True))
        roundhouse = await start_gateway(simple_map(engine), keys=keys)
        client = await roundhouse.connect()
        for number in range(50):
            await client.ask(post({"model": f"unknown-{number}"}, bearer("alice")))
            await client.ask(post({"model": "tiny"}, f"x-api-key: guess-{number}"))
            await client.ask(post({"model": "tiny"}, bearer("alice"), path=f"/v1/path-{number}"))
            await client.ask(post({"model": f"tiny@engine-{number}"}, bearer("alice")))
        await client.ask(post({"model": "tiny"}, bearer("alice")))
        samples = await scraped(roundhouse, bearer("boss"))
        assert sorted(
            (dict(labels)["key"], dict(labels)["status"], dict(labels)["code"], number)
            for labels, number in samples["roundhouse_requests_total"].items()
        ) == [
            ("", "401", "invalid_api_key", 50),
            ("alice", "200", "", 1),
            ("alice", "404", "engine_not_found", 50),
            ("alice", "404", "model_not_found", 50),
        ]

    async def test_a_renamed_model_counts_anew(self, roundhouse: Roundhouse, engine: FakeEngine) -> None:
        client = await roundhouse.connect()
        await client.ask(ASK)
        document = simple_map(engine, revision="2")
        document["models"][0]["model"] = "other"
        roundhouse.write_map(document)
        await until(lambda: roundhouse.gateway.fleet.table.revision == "2")
        await client.ask(post({"model": "other"}))
        samples = await scraped(roundhouse)
        for model in ("tiny", "other"):
            wanted = ONE | {"model": model, "backend": "one", "key": "", "status": "200", "code": ""}
            assert value(samples, "roundhouse_requests_total", **wanted) == 1


async def test_a_backend_that_is_taken_out(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    client = await roundhouse.connect()
    await client.ask(ASK)
    assert value(await scraped(roundhouse), "roundhouse_upstream_connections", **ONE, backend="one") == 1
    roundhouse.write_map(simple_map(engine, revision="2", names="other"))
    await until(lambda: roundhouse.gateway.fleet.table.revision == "2")
    samples = await scraped(roundhouse)
    assert value(samples, "roundhouse_upstream_connections", **ONE, backend="one") == 0
    assert {dict(labels)["backend"] for labels in samples["roundhouse_backend_healthy"]} == {"other"}


async def test_a_model_that_moves_in_keeps_what_it_has(roundhouse: Roundhouse, engine: FakeEngine) -> None:
    """A backend whose place another model takes ends as it is; the new one stays the same at the next reload."""
    gate = engine.script = Gate()
    clients = [await roundhouse.connect() for _ in range(2)]
    await clients[0].send(ASK)
    await until(lambda: len(engine.turns) == 1)
    for revision in ("2", "3"):
        document = simple_map(engine, revision=revision)
        document["models"][0]["model"] = "other"
        roundhouse.write_map(document)
        await until(lambda wanted=revision: roundhouse.gateway.fleet.table.revision == wanted)
        if revision == "2":
            await clients[1].send(post({"model": "other"}))
            await until(lambda: len(engine.turns) == 2)
    assert roundhouse.backend().in_flight == 1
    gate.open.set()
    assert [(await client.answer()).status for client in clients] == [200, 200]
    samples = await scraped(roundhouse)
    for model in ("tiny", "other"):
        labels = ONE | {"model": model, "backend": "one"}
        assert value(samples, "roundhouse_requests_total", **labels, key="", status="200", code="") == 1
        assert value(samples, "roundhouse_requests_in_flight", **labels) == 0


async def test_a_route_without_backends_is_not_healthy(
    start_gateway: StartGateway, engine: FakeEngine
) -> None:
    document = simple_map(engine)
    document["models"][0]["engines"][0]["backends"][0] |= {"url": "http://nobody.invalid:1", "resolve": True}
    roundhouse = await start_gateway(document)
    assert value(await scraped(roundhouse), "roundhouse_backend_healthy", **ONE, backend="") == 0
    assert len((await scraped(roundhouse))["roundhouse_backend_healthy"]) == 1


async def test_the_head_of_a_stream_is_no_first_byte(
    roundhouse: Roundhouse, client: Client, engine: FakeEngine
) -> None:
    go_on = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send(STREAM_HEAD)
        await go_on.wait()
        await turn.send(chunk(event("one") + DONE) + END)

    engine.script = script
    await client.send(ASK)
    await client.head()
    # The clock goes on while the engine thinks.
    started = asyncio.get_running_loop().time()
    await until(lambda: asyncio.get_running_loop().time() > started + 0.02)
    go_on.set()
    await client.read_until(END)
    samples = await scraped(roundhouse)
    assert value(samples, "roundhouse_time_to_first_byte_seconds_sum", **ONE) >= 0.02
    assert value(samples, "roundhouse_time_between_chunks_seconds_count", **ONE) == 0


async def test_guesses_on_the_control_plane_count(
    start_gateway: StartGateway, engine: FakeEngine, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.yml", key("boss", admin=True))
    roundhouse = await start_gateway(simple_map(engine), keys=keys)
    client = await roundhouse.connect()
    for path in ("/v1/models", "/metrics", "/routes"):
        assert (await client.ask(get(path, "x-api-key: guess"))).status == 401
    wanted = {"model": "", "engine": "", "backend": "", "key": "", "status": "401", "code": "invalid_api_key"}
    assert value(await scraped(roundhouse, bearer("boss")), "roundhouse_requests_total", **wanted) == 3


class TestLoads:
    async def test_what_could_not_be_read_for_a_moment(self, roundhouse: Roundhouse) -> None:
        aside = roundhouse.path.with_suffix(".aside")
        roundhouse.path.replace(aside)
        await until(lambda: roundhouse.gateway.map_loads.last_error)
        assert value(await scraped(roundhouse), "roundhouse_map_last_load_successful") == 0
        aside.replace(roundhouse.path)
        await until(lambda: roundhouse.gateway.map_loads.last_error is None)
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_map_last_load_successful") == 1
        assert value(samples, "roundhouse_map_reloads_total") == 0

    async def test_reloads_and_refusals(self, roundhouse: Roundhouse, engine: FakeEngine) -> None:
        roundhouse.write_map({})
        await until(lambda: roundhouse.gateway.map_loads.last_error)
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_map_refusals_total") == 1
        assert value(samples, "roundhouse_map_last_load_successful") == 0
        roundhouse.write_map(simple_map(engine, revision="2"))
        await until(lambda: roundhouse.gateway.map_loads.last_error is None)
        samples = await scraped(roundhouse)
        assert value(samples, "roundhouse_map_reloads_total") == 1
        assert value(samples, "roundhouse_map_last_load_successful") == 1
        assert value(samples, "roundhouse_map_info", revision="2") == 1


class TestCounters:
    def test_workers_add_up(self) -> None:
        """Three workers: what each counts is in the sum, also after one was replaced."""
        slabs = [Slab() for _ in range(3)]
        parent = Counters(slabs)
        BackendMetrics(parent, "m", "e", "b")
        for slot in (0, 1, 2, 1):
            pid = os.fork()
            if not pid:
                metrics.begin(parent, slot)
                numbers = BackendMetrics(parent, "m", "e", "b")
                numbers.ended["k", 200, "", 3, 200] = [10, 1, 2]
                numbers.publish(State(in_flight=5))
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        sums = exposition.sums(slabs)
        assert sums["roundhouse_requests"] == {("m", "e", "b", "k", "200", ""): [40.0]}
        assert sums["roundhouse_tokens"][("m", "e", "k", "output")] == [8.0]
        # What is open now is not kept for the one that comes next: three workers, five requests each.
        assert sums["roundhouse_requests_in_flight"] == {("m", "e", "b"): [15.0]}
        first_byte = sums["roundhouse_time_to_first_byte_seconds"][("m", "e")]
        assert (first_byte[0], sum(first_byte[:-1]), first_byte[-1]) == (40.0, 40.0, pytest.approx(0.12))

    def test_no_room(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(counters, "_CELLS", 200)
        found = Counters([Slab()])
        offsets = [
            found.series("roundhouse_request_duration_seconds", (str(n), "e"), WIDTH) for n in range(20)
        ]
        assert 0 in offsets
        assert len({offset for offset in offsets if offset}) == sum(offset > 0 for offset in offsets)
        found.cells[offsets[-1] + WIDTH - 1] += 1  # goes nowhere, and hurts nobody
        assert [record.getMessage() for record in caplog.records] == [
            "no room for more metrics: what is new is not counted"
        ]

    @given(st.lists(st.integers(0, 1_000_000), max_size=50))
    def test_histograms(self, milliseconds: list[int]) -> None:
        found = Counters([Slab()])
        numbers = BackendMetrics(found, "m", "e", "b")
        numbers.gaps = dict(collections.Counter(milliseconds))
        seconds = [each / 1000 for each in milliseconds]
        numbers.publish(State())
        cells = exposition.sums(found.slabs)["roundhouse_time_between_chunks_seconds"][("m", "e")]
        for index, bound in enumerate(BOUNDS):
            assert sum(cells[: index + 1]) == sum(each <= bound for each in seconds)
        assert sum(cells[:-1]) == len(seconds)
        assert cells[-1] == pytest.approx(sum(seconds))


def test_every_metric_is_shown_with_its_text() -> None:
    shown = {}
    for name, about in (METRICS | STATE).items():
        family = exposition._family(name, about, {})
        shown[family.name] = (family.type, family.documentation)
    assert shown == {name: (about.kind, about.text) for name, about in (METRICS | STATE).items()}


class TestUsage:
    @pytest.mark.parametrize(
        ("data", "tokens"),
        [
            (b"", (0, 0)),
            (b"[]", (0, 0)),
            (b'{"usage":null}', (0, 0)),
            (b'{"usage":7}', (0, 0)),
            (b'{"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}', (5, 2)),
            (b'{"usage": {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7}}', (5, 2)),
            (b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', (5, 0)),
            (b'{"usage":{"prompt_tokens":5,"completion_tokens":null}}', (5, 0)),
            (
                b'{"usage":{"input_tokens":5,"input_tokens_details":{"input_tokens":4},"output_tokens":2}}',
                (5, 2),
            ),
            (b'{"usage":{"prompt_tokens":-5,"completion_tokens":99999999999999}}', (0, 0)),
            (b'{"a":"\\"usage\\":{\\"prompt_tokens\\":5}","b":"usage","prompt_tokens":5}', (0, 0)),
            (b'{"usage":{"prompt_tokens":5},"metadata":{"usage":{"prompt_tokens":1}}}', (5, 0)),
            (b'{"response":{"usage":{"prompt_tokens":5}}}', (0, 0)),
        ],
    )
    def test_whole(self, data: bytes, tokens: tuple[int, int]) -> None:
        assert usage.of(data) == tokens

    def test_anthropics_stream(self) -> None:
        found = usage.Usage(is_stream=True, echoes=True)
        found.events(
            b'data: {"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}'
        )
        found.events(b'event: x\ndata: {"type":"message_delta","usage":{"output_tokens":15}}\n\n')
        found.end()
        assert (found.read, found.written) == (25, 15)

    @given(st.data())
    def test_cut_anywhere(self, data: st.DataObject) -> None:
        told = b'"usage":{"prompt_tokens":512,"completion_tokens":34}'
        body = b'{"x":"' + b"y" * 2000 + b'",' + told + b',"z":"' + b"y" * 50 + b'"}'
        is_stream = data.draw(st.booleans())
        text = b'data: {"usage":null}\n\ndata: ' + body + b"\r\n\r\ndata: [DONE]\n\n" if is_stream else body
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
        found = usage.Usage(is_stream=is_stream, echoes=True)
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            found.feed(text[start:end])
        found.end()
        assert (found.read, found.written) == (512, 34)

    @pytest.mark.parametrize(("echoes", "tokens"), [(False, (8, 0)), (True, (0, 0))])
    def test_a_long_one(self, tokens: tuple[int, int], *, echoes: bool) -> None:
        found = usage.Usage(is_stream=False, echoes=echoes)
        for _ in range(20):
            found.feed(b"[0.123456789]," * 10_000)
        found.feed(b'], "usage": {"prompt_tokens": 8, "total_tokens": 8}, "x": {}}')
        found.end()
        assert (found.read, found.written) == tokens
        assert len(found._kept) <= 1 << 20

    def test_a_line_without_end(self) -> None:
        found = usage.Usage(is_stream=True, echoes=True)
        for _ in range(300):
            found.feed(b"data: " + b"x" * 10_000)
            assert len(found._kept) <= 1 << 20


async def test_a_large_body_in_pieces(roundhouse: Roundhouse, client: Client, engine: FakeEngine) -> None:
    body: dict[str, Any] = {
        "data": [{"embedding": [0.5] * 60_000}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }

    async def script(turn: Turn) -> None:
        await turn.send(answer(json.dumps(body).encode()))

    engine.script = script
    assert (await client.ask(post({"model": "tiny"}, path="/v1/embeddings"))).status == 200
    samples = await scraped(roundhouse)
    assert value(samples, "roundhouse_tokens_total", **ONE, key="", direction="input") == 8
