"""What servers and connections do wrong, line by line, on a server that fails as it is told to."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable, Iterator

import pytest

from cfstools.errors import (
    AccessDenied,
    CfsError,
    ContentsWrong,
    NetworkError,
    NoRanges,
    NotFound,
    SourceChanged,
    TransientError,
)
from cfstools.streams.buffered import read_up_to
from cfstools.transport import url
from cfstools.transport.base import BytesBody, Open, Span, Version
from cfstools.transport.http import Http, Request
from cfstools.transport.pool import MAX_HEAD, MAX_ORIGINS, Patience, Pool
from cfstools.transport.ranges import CHEAP, open_range
from cfstools.transport.reading import SpanReader
from cfstools.transport.retry import Clock
from cfstools.transport.web import WebPlace
from tests.servers.faulty import CUT, END, Answer, Asked, FaultyServer, Part, Wait, head, reply, serve
from tests.servers.ports import own_port

DATA = bytes(range(256)) * 1200
PATIENT = Patience(connect=60, read=60)
STALL = Wait(600)


class Client:
    """Our side, which does not sleep, and whose time goes on by *tick* at each look at the clock.

    A test may make it impatient until the first failure: a loaded machine must not make another one.
    """

    def __init__(self, connections: int = 8, tick: float = 0) -> None:
        self.slept: list[float] = []
        self.time = 0.0
        self._tick = tick
        self.clock = Clock(now=self._now, sleep=self._sleep, chance=lambda: 1)
        self.pool = Pool(patience=PATIENT, clock=self.clock, connections=connections)
        self.http = Http(self.pool, clock=self.clock, connections=connections)

    def _now(self) -> float:
        self.time += self._tick
        return self.time

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.pool._patience = PATIENT

    def reader(self, *servers: FaultyServer, span: Span = Span(0, len(DATA)), size: int | None = None) -> SpanReader:  # noqa: B008
        def opener(server: FaultyServer) -> Open:
            version = Version()
            return lambda span: open_range(self.http, Request(server.url("a")), span, size=size, version=version)

        return SpanReader([opener(server) for server in servers], span, clock=self.clock)

    def read(self, *servers: FaultyServer, span: Span = Span(0, len(DATA)), size: int | None = None) -> bytes:  # noqa: B008
        with self.reader(*servers, span=span, size=size) as reader:
            return read_up_to(reader.read, span.size + 1)

    def document(self, server: FaultyServer, limit: int = 1 << 20) -> bytes:
        return self.http.document(Request(server.url("a")), limit=limit).data


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.http.close()


def good(asked: Asked) -> Iterable[Part]:
    return [serve(DATA, asked)]


def once(*parts: Part) -> Answer:
    """Fail the first request by these parts, then be good."""
    return lambda asked: parts if asked.number == 0 else good(asked)


def always(*parts: Part) -> Answer:
    return lambda _asked: parts


def beginning(asked: Asked, came: int) -> bytes:
    """The head of an answer and so many bytes."""
    whole = serve(DATA, asked)
    return whole[: whole.index(b"\r\n\r\n") + 4 + came]


def cut(came: int, *end: Part) -> Answer:
    """Give so many bytes of each answer."""
    return lambda asked: [beginning(asked, came), *end]


def drip(begin: bytes, part: bytes) -> Iterator[Part]:
    """Go on for ever, a little at a time."""
    yield begin
    while True:
        yield part
        yield Wait(0.02)


HALF = head(206, f"Content-Range: bytes 0-{len(DATA) - 1}/{len(DATA)}", length=len(DATA))


# Connections that break: asked for again from where they broke


@pytest.mark.parametrize("end", [CUT, END, STALL], ids=["reset", "end", "timeout"])
@pytest.mark.parametrize("came", [0, 1, 100_000])
def test_a_body_that_breaks_is_resumed(client: Client, came: int, end: Part) -> None:
    if end == STALL:
        client.pool._patience = PATIENT._replace(read=1)
    with FaultyServer(once(HALF + DATA[:came], end)) as server:
        assert client.read(server) == DATA
        # What was still on its way when the connection was reset is asked for again.
        start, last = server.asked[1].span or (0, 0)
        assert start <= came
        assert last == len(DATA)
        assert end == CUT or start == came
    assert client.slept == [0.25]


@pytest.mark.parametrize("end", [CUT, END, STALL], ids=["reset", "end", "timeout"])
@pytest.mark.parametrize("came", [b"", b"HTT", head(206, "X: y")[:-2]])
def test_a_head_that_breaks_is_asked_for_again(client: Client, came: bytes, end: Part) -> None:
    patience = PATIENT._replace(read=0.1) if end == STALL else PATIENT
    client.pool._patience = patience
    with FaultyServer(once(came, end)) as server:
        assert client.read(server) == DATA
    client.pool._patience = patience
    with FaultyServer(once(came, end)) as server:
        assert client.document(server) == DATA
    assert client.slept == [0.25, 0.25]


def test_a_chunk_that_is_cut_is_asked_for_again(client: Client) -> None:
    chunked = head(200, "Transfer-Encoding: chunked")
    for body in (b"5\r\nab", b"5\r\nabcde\r\n", b"5", b"zz\r\nabc"):
        with FaultyServer(once(chunked + body, END)) as server:
            assert client.document(server) == DATA


def test_a_place_that_breaks_all_the_time_is_given_up(client: Client) -> None:
    with (
        FaultyServer(cut(100, END)) as server,
        pytest.raises(TransientError, match="the connection broke"),
    ):
        client.read(server)
    assert client.slept == [0.25, 0.5, 1, 2]
    assert len(server.asked) == 5


def test_a_place_that_breaks_is_not_given_up_while_it_gives_enough(client: Client) -> None:
    def answer(asked: Asked) -> Iterable[Part]:
        assert asked.span is not None
        return [serve(DATA, asked)[: (64 << 10) + 200], END]

    with FaultyServer(answer) as server:
        assert client.read(server) == DATA
        assert len(server.asked) > 4
    assert set(client.slept) == {0.25}


def test_the_next_mirror_goes_on_where_one_stopped(client: Client) -> None:
    with FaultyServer(cut(1000, END)) as bad, FaultyServer(good) as mirror:
        assert client.read(bad, mirror) == DATA
        assert mirror.asked[0].span == (5000, len(DATA))


def test_nobody_listens(client: Client) -> None:
    with (
        own_port() as port,
        pytest.raises(TransientError, match=rf"^http://127.0.0.1:{port}: cannot connect: Connection refused$"),
    ):
        client.http.document(Request(url.parse(f"http://127.0.0.1:{port}/a")), limit=1)
    assert len(client.slept) == 4


def test_a_name_that_is_not_known(client: Client) -> None:
    with pytest.raises(NetworkError, match=r"^http://no\.invalid: cannot connect: "):
        client.http.document(Request(url.parse("http://no.invalid/")), limit=1)


# Servers that are slow on purpose


def test_a_server_that_drips_is_a_stall() -> None:
    client = Client(tick=25)
    slow = r"the server stalls: only \d+ bytes in 75 s"
    with (
        FaultyServer(lambda asked: drip(beginning(asked, 0), b"x")) as server,
        pytest.raises(TransientError, match=slow),
    ):
        client.read(server)


@pytest.mark.parametrize(("begin", "part"), [(b"HTTP/1.1 200 OK\r\nX: ", b"y"), (b"", b"HTTP/1.1 100 Go on\r\n\r\n")])
def test_a_server_that_drips_its_head_is_a_stall(begin: bytes, part: bytes) -> None:
    client = Client(tick=25)
    with (
        FaultyServer(lambda _: drip(begin, part)) as server,
        pytest.raises(TransientError, match="the server stalls"),
    ):
        client.document(server)


def test_slow_readers_do_not_make_a_server_slow(client: Client) -> None:
    with FaultyServer(good) as server, client.reader(server) as reader:
        for _ in range(4):
            assert reader.read(10)
            client.time += 100
        assert read_up_to(reader.read, len(DATA)) == DATA[40:]
        assert len(server.asked) == 1


# Bytes that cannot be right: never asked of the same place again


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (
            lambda a: [reply(206, DATA[1:101], "Content-Range: bytes 1-100/307200")],
            "sent another range than it was asked for",
        ),
        (
            lambda a: [reply(206, DATA[:50], "Content-Range: bytes 0-49/307200")],
            "sent another range than it was asked for",
        ),
        (
            lambda a: [reply(206, DATA[:50], "Content-Range: bytes 0-99/307200")],
            "sent another range than it was asked for",
        ),
        (
            lambda a: [reply(206, DATA[:200], "Content-Range: bytes 0-99/307200")],
            "sent another range than it was asked for",
        ),
        (lambda a: [reply(206, DATA[:100], "Content-Range: bytes 0-99/50")], "says it is the part"),
        (lambda a: [reply(206, b"x", "Content-Type: multipart/byteranges; boundary=x")], "does not say which part"),
        (lambda a: [reply(416, b"no", f"Content-Range: bytes */{len(DATA)}")], "is shorter there than it should be"),
        (lambda a: [head(416, length=50_000_000), b"{broken", CUT], "is shorter there than it should be"),
        (lambda a: [reply(200, DATA[:99])], "is shorter there than it should be"),
        (
            lambda a: [reply(206, gzip.compress(DATA[:100]), "Content-Encoding: gzip", "Content-Range: bytes 0-99/9")],
            "encoded as 'gzip'",
        ),
        (lambda a: [reply(200, gzip.compress(DATA), "Content-Encoding: gzip")], "encoded as 'gzip'"),
    ],
)
def test_wrong_bytes_are_not_asked_for_again(client: Client, answer: Answer, what: str) -> None:
    with FaultyServer(answer) as server, pytest.raises(ContentsWrong, match=what) as raised:
        client.read(server, span=Span(0, 100))
    assert raised.value.subject == str(server.url("a"))
    assert len(server.asked) == 1
    with FaultyServer(answer) as bad, FaultyServer(good) as mirror:
        assert client.read(bad, mirror, span=Span(0, 100)) == DATA[:100]
        assert len(bad.asked) == 1
    assert client.slept == []


def test_what_changed_in_between_is_told(client: Client) -> None:
    tags = itertools.count()

    def answer(asked: Asked) -> Iterable[Part]:
        whole = serve(DATA, asked).replace(b"\r\n", b'\r\nETag: "%d"\r\n' % next(tags), 1)
        return [whole[:2000], END]

    with FaultyServer(answer) as server, pytest.raises(SourceChanged, match="changed while it was read"):
        client.read(server)
    assert server.asked[1].headers["if-range"] == '"0"'
    assert len(server.asked) == 2


@pytest.mark.parametrize("validator", ['ETag: "a"', "Last-Modified: Sat, 28 Nov 2026 20:00:00 GMT", 'ETag: W/"a"'])
def test_what_did_not_change_goes_on(client: Client, validator: str) -> None:
    def answer(asked: Asked) -> Iterable[Part]:
        whole = serve(DATA, asked).replace(b"\r\n", f"\r\n{validator}\r\n".encode(), 1)
        return [whole[:2000], END] if asked.number == 0 else [whole]

    with FaultyServer(answer) as server:
        assert client.read(server) == DATA
    value = validator.partition(": ")[2]
    assert server.asked[1].headers.get("if-range") == (None if value.startswith("W/") else value)


# Servers without ranges


def test_a_short_body_is_read_through_for_a_part_of_it(client: Client) -> None:
    with FaultyServer(lambda _: [reply(200, DATA)]) as server:
        assert client.read(server, span=Span(1000, 2000)) == DATA[1000:2000]


def test_a_long_body_is_not_read_for_a_part_of_it(client: Client) -> None:
    size = CHEAP + 1
    answer = always(head(200, length=size), b"x" * 100)
    with FaultyServer(answer) as server, pytest.raises(NoRanges, match=f"the server gives no ranges of {size} bytes"):
        client.read(server, span=Span(0, size // 4))
    with FaultyServer(lambda _: [head(200, length=size), b"x" * size]) as server:
        assert client.read(server, span=Span(1, size // 4 + 2)) == b"x" * (size // 4 + 1)
    with FaultyServer(answer) as bad, FaultyServer(good) as mirror:
        assert client.read(bad, mirror, span=Span(0, 10)) == DATA[:10]
        assert len(bad.asked) == 1


def test_all_of_something_is_asked_for_without_a_range(client: Client) -> None:
    def answer(asked: Asked) -> Iterable[Part]:
        return [reply(501)] if asked.span else [reply(200, DATA)]

    with FaultyServer(answer) as server:
        assert client.read(server, size=len(DATA)) == DATA
        with pytest.raises(NoRanges):
            client.read(server, span=Span(0, 10), size=len(DATA))


def test_nothing_is_no_request(client: Client) -> None:
    with FaultyServer(good) as server:
        assert client.read(server, span=Span(5, 5)) == b""
        with open_range(client.http, Request(server.url("a")), Span(5, 5)) as read:
            assert read(1) == b""
        assert server.asked == []


# Statuses


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_tried_again(client: Client, status: int) -> None:
    with FaultyServer(once(reply(status, b"busy"))) as server:
        assert client.read(server) == DATA
    assert client.slept == [0.25]
    with FaultyServer(always(reply(status))) as server, pytest.raises(TransientError):
        client.read(server)
    assert len(server.asked) == 5


def test_a_wait_that_is_asked_for(client: Client) -> None:
    with FaultyServer(once(reply(429, b"", "Retry-After: 11"))) as server:
        assert client.read(server) == DATA
    assert client.slept == [11]
    assert client.http.slots.limit == 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, NetworkError),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (410, NotFound),
        (418, NetworkError),
        (505, NetworkError),
    ],
)
def test_a_status_that_is_final(client: Client, status: int, kind: type[CfsError]) -> None:
    with FaultyServer(always(reply(status))) as server, pytest.raises(kind) as raised:
        client.read(server)
    assert not isinstance(raised.value, TransientError)
    assert len(server.asked) == 1
    with FaultyServer(always(reply(status))) as bad, FaultyServer(good) as mirror:
        assert client.read(bad, mirror) == DATA
    assert client.slept == []


# Heads that lie or never end


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ([head(200, "Content-Length: 3", length=3) + b"abc"], "two lengths"),
        ([head(200, "Content-Length: 3", length=4) + b"abcd"], "two lengths"),
        ([head(200, length=-1) + b"abc", END], "a length of '-1'"),
        ([head(200, length="1e3") + b"abc", END], "a length of '1e3'"),
        ([head(200) + b"abc", END], "does not say how long it is"),
        ([head(200, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"], "does not say how long it is"),
        ([head(200, "Transfer-Encoding: chunked", length=3) + b"3\r\nabc\r\n0\r\n\r\n"], "does not say clearly"),
        ([head(200, "Transfer-Encoding: gzip") + b"abc", END], "does not say clearly"),
        ([head(200, *[f"X-{number}: y" for number in range(200)], length=3) + b"abc"], "not HTTP"),
        ([head(200, "X: " + "y" * 70_000, length=3) + b"abc"], "not HTTP"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n", Wait(0.1), END], "not HTTP"),
        ([b"HTTP/1.1 OK OK\r\n\r\n", END], "not HTTP"),
        ([b"HTTP/1.1 99999 OK\r\n\r\n", END], "not HTTP"),
        ([b"\x00\xff" * 500 + b"\r\n\r\n", END], "not HTTP"),
        (itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "longer than it may be"),
    ],
)
def test_heads_that_are_refused(client: Client, answer: Iterable[Part], what: str) -> None:
    with FaultyServer(lambda _: answer) as server:
        with pytest.raises(NetworkError, match=what) as raised:
            client.read(server, span=Span(0, 3))
        assert not isinstance(raised.value, TransientError)
        assert len(server.asked) == 1
    assert client.slept == []
    assert client.http.slots._taken.total() == 0


def test_a_hundred_headers_are_enough_for_anybody(client: Client) -> None:
    with FaultyServer(lambda _: [head(200, *[f"X-{number}: y" for number in range(98)], length=3) + b"abc"]) as server:
        assert client.document(server) == b"abc"


@pytest.mark.parametrize(
    "body",
    [
        b"1;" + b"x" * 60_000 + b"\r\na\r\n",
        b"0\r\n" + b"X: y\r\n" * 10_000,
        b"1\r\na\r\n" * 1000,
    ],
    ids=["extensions", "trailers", "endless"],
)
def test_chunks_that_never_end(client: Client, body: bytes) -> None:
    first, *_ = body.partition(b"\r\n")
    repeated = itertools.repeat(body if first != b"0" else b"X: y\r\n" * 10_000)
    answer = [head(200, "Transfer-Encoding: chunked") + body]
    with (
        FaultyServer(lambda _: itertools.chain(answer, repeated)) as server,
        pytest.raises(NetworkError, match="longer than"),
    ):
        client.document(server, limit=10_000)
    assert client.slept == []


def test_the_head_has_a_limit_of_its_own() -> None:
    assert MAX_HEAD < 1 << 20


# Requests that carry a body


def test_a_put_is_sent_in_pieces_as_long_as_it_says(client: Client) -> None:
    with (
        FaultyServer(always(reply(201))) as server,
        client.http.open(Request(server.url("a"), "PUT", body=BytesBody(DATA))) as response,
    ):
        assert response.status == 201
    assert server.asked[0].body == DATA
    assert "transfer-encoding" not in server.asked[0].headers


def test_a_body_that_is_too_short_breaks_off(client: Client) -> None:
    class Short:
        size = len(DATA) + 1
        open = BytesBody(DATA).open

    with FaultyServer(always(reply(201))) as server, pytest.raises(CfsError, match="1 of 307201 bytes are missing"):
        client.http.open(Request(server.url("a"), "PUT", body=Short()))
    assert client.http.slots._taken.total() == 0


def test_an_answer_before_the_end_of_the_body_is_taken(client: Client) -> None:
    request = Request(url.parse("http://127.0.0.1/"), "PUT", body=BytesBody(b"x"))
    with FaultyServer(always(reply(413, b"", "Connection: close"), END)) as server:
        response = client.http.open(request._replace(url=server.url("a")))
        assert response.status == 413
        response.close()


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\x00b"])
def test_a_header_cannot_be_split(client: Client, value: str) -> None:
    with FaultyServer(good) as server, pytest.raises(NetworkError, match=r": the request cannot be sent$"):
        client.http.open(Request(server.url("a"), headers={"Authorization": value}))
    assert server.asked == []


# Connections that are kept


def test_connections_are_kept_where_that_is_safe(client: Client) -> None:
    with FaultyServer(good) as server:
        for _ in range(5):
            assert client.read(server, span=Span(0, 1000)) == DATA[:1000]
            assert client.document(server) == DATA
        assert server.connections == 1
        with client.reader(server) as reader:
            assert reader.read(1)
        assert client.document(server) == DATA
        assert server.connections == 2


def test_a_connection_with_something_left_on_it_is_not_used_again(client: Client) -> None:
    extra = reply(200, b"first") + reply(200, b"smuggled")
    with FaultyServer(always(extra)) as server:
        for _ in range(10):
            assert client.document(server) == b"first"


def test_connections_are_not_kept_to_everybody() -> None:
    client = Client()
    with FaultyServer(good) as server:
        for number in range(MAX_ORIGINS + 8):
            origin = server.url().origin._replace(host=f"127.0.0.{number + 1}") if number else server.url().origin
            client.pool._pool(origin)
        assert len(client.pool._pools) == MAX_ORIGINS
    client.http.close()
    assert not client.pool._pools


# A place


def test_a_place_over_http(client: Client) -> None:
    def answer(asked: Asked) -> Iterable[Part]:
        if asked.target == "/base/sp%20ace/%C3%A4":
            return good(asked)
        return [reply({"/base/denied": 403, "/base/odd": 302}.get(asked.target, 404))]

    with FaultyServer(answer) as server:
        place = WebPlace(server.url("base/"), client.http)
        assert place.size("sp ace/ä") == len(DATA)
        assert place.size("nothing") is None
        with pytest.raises(AccessDenied, match="/base/denied: access denied"):
            place.size("denied")
        with pytest.raises(NetworkError, match="it does not say where to"):
            place.size("odd")
        with place.read("sp ace/ä") as read:
            assert read_up_to(read, len(DATA) + 1) == DATA
        with place.read("sp ace/ä", Span(3, 9)) as read:
            assert read_up_to(read, 100) == DATA[3:9]
        with pytest.raises(NotFound), place.read("nothing"):
            pass
        with pytest.raises(CfsError, match="cannot be a name"):
            place.size("../up")
        assert place.describe("sp ace/ä") == server.address("base/sp%20ace/%C3%A4")
        assert place.describe("") == server.address("base/")
        place.close()
    with FaultyServer(once(reply(503))) as server:
        assert WebPlace(server.url(), client.http).size("a") == len(DATA)
    with (
        FaultyServer(always(head(200, "Transfer-Encoding: chunked"))) as server,
        pytest.raises(NetworkError, match="does not say how long"),
    ):
        WebPlace(server.url(), client.http).size("a")
