"""Reading of requests: any cutting of the bytes gives the same requests."""

from hypothesis import given
from hypothesis import strategies as st

from roundhouse_gateway.reader import RequestReader

from .client import get, post

bodies = st.binary(max_size=300)
headers = st.lists(st.sampled_from(["X-A: 1", "X-B:", "Accept: */*", "X-Long: " + "x" * 200]), max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a request as it is sent, and its body."""
    body = draw(bodies)
    lines = draw(headers)
    kind = draw(st.sampled_from(["length", "chunked", "none", "upgrade"]))
    if kind == "none":
        return get("/healthz", *lines), b""
    if kind == "upgrade":
        return post(body, "Connection: upgrade", "Upgrade: h2c", *lines), body
    if kind == "length":
        return post(body, *lines), body
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    head = post(b"", "Transfer-Encoding: chunked", *lines).replace(b"Content-Length: 0\r\n", b"")
    return head + chunks + b"0\r\n\r\n", body


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 2000), max_size=8))
def test_any_cutting(sent: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    wire = b"".join(request for request, _ in sent)
    places = sorted({min(cut, len(wire)) for cut in cuts})
    reader = RequestReader(max_header=2000, max_body=1000)
    for start, end in zip([0, *places], [*places, len(wire)], strict=True):
        reader.feed(wire[start:end])
    assert [request.error for request in reader.waiting] == [None] * len(sent)
    assert [request.body for request in reader.waiting] == [body for _, body in sent]
    assert not reader.ended
    assert reader.incoming is None


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes(data: bytes, cut: int) -> None:
    reader = RequestReader(max_header=2000, max_body=1000)
    reader.feed(data[:cut])
    reader.feed(data[cut:])
    for request in reader.waiting:
        assert request.error is None or (request.error.close and reader.ended)
