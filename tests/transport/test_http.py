"""Our rules over HTTP, with a function in the place of the network."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cfstools.errors import AccessDenied, NetworkError, NoRanges, NotFound, TransientError
from cfstools.threadpool import ThreadPool
from cfstools.transport.base import BytesBody
from cfstools.transport.http import MAX_WARNINGS, REMEMBERED, USER_AGENT, Http, Request
from cfstools.transport.response import MAX_ERROR_BODY
from cfstools.transport.retry import Clock
from cfstools.transport.scripted import Reply, ScriptedWire, Seen, in_turn
from cfstools.transport.secrets import Secrets
from cfstools.transport.slots import Slots
from cfstools.transport.url import Url, parse

HERE = "https://reg.example/v2/"


class Keys:
    """An authorizer with one password for one origin, and a new one each time it is refused."""

    def __init__(self, first: str | None = "Bearer token-0", renewals: int = 1) -> None:
        self.current = first
        self.renewals = renewals
        self.told: list[tuple[str, tuple[str, ...], str]] = []

    def header(self, url: Url, scope: str) -> str | None:
        return self.current

    def refused(self, url: Url, challenges: Sequence[str], scope: str) -> bool:
        self.told.append((str(url), tuple(challenges), scope))
        if self.renewals == 0:
            return False
        self.renewals -= 1
        self.current = f"Bearer token-{len(self.told)}"
        return True


class Net:
    """An ``Http`` over a function, with a clock that only tests move."""

    def __init__(self, answer: Callable[[Seen], Reply | NetworkError], **words: Any) -> None:
        self.wire = ScriptedWire(answer)
        self.slept: list[float] = []
        self.time = 1000.0
        self.warned: list[str] = []
        clock = Clock(now=lambda: self.time, sleep=self.slept.append, chance=lambda: 1)
        self.http = Http(self.wire, clock=clock, warn=self.warned.append, **words)

    @property
    def urls(self) -> list[str]:
        return [seen.request.url.whole for seen in self.wire.seen]

    @property
    def authorizations(self) -> list[str | None]:
        return [seen.header("authorization") for seen in self.wire.seen]

    def get(self, **words: Any) -> bytes:
        words = {"url": parse(HERE), **words}
        return self.http.document(Request(**words), limit=1000).data


def net(*replies: Reply | NetworkError, **words: Any) -> Net:
    return Net(in_turn(replies), **words)


def test_a_request_says_who_asks_and_wants_no_encoding() -> None:
    made = net(Reply(body=b"data"))
    assert made.get(headers={"Accept": "x"}) == b"data"
    sent = made.wire.seen[0].request
    assert sent.headers == {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "x"}


def test_a_body_is_sent_with_its_length_again_and_again() -> None:
    made = net(Reply(401), Reply(307, headers=[("Location", "/other")]), Reply(201))
    request = Request(parse(HERE), "PUT", body=BytesBody(b"12345"), authorizer=Keys())
    with made.http.open(request) as response:
        assert response.status == 201
    assert [(seen.body, seen.header("content-length")) for seen in made.wire.seen] == [(b"12345", "5")] * 3
    made = net(Reply(202))
    made.http.open(Request(parse(HERE), "POST")).close()
    assert made.wire.seen[0].header("content-length") == "0"


# Credentials


def test_a_refused_request_is_sent_once_more_with_new_credentials() -> None:
    challenge = [("WWW-Authenticate", 'Bearer realm="r"'), ("WWW-Authenticate", "Basic")]
    made = net(Reply(401, headers=challenge), Reply(body=b"x"))
    keys = Keys(None)
    assert made.get(authorizer=keys, scope="repository:a:pull") == b"x"
    assert made.authorizations == [None, "Bearer token-1"]
    assert keys.told == [(HERE, ('Bearer realm="r"', "Basic"), "repository:a:pull")]


@pytest.mark.parametrize("status", [401, 403])
def test_access_is_denied_after_two_new_tries(status: int) -> None:
    said = b'{"errors": [{"code": "DENIED", "message": "no \\u001b[1m"}]}'
    made = net(*[Reply(status, said, [("Content-Type", "application/json")])] * 3)
    with pytest.raises(AccessDenied) as raised:
        made.get(authorizer=Keys(renewals=9))
    assert str(raised.value) == f"{HERE}: access denied (DENIED: no \\x1b[1m)"
    assert len(made.urls) == 3
    made = net(Reply(status))
    with pytest.raises(AccessDenied, match=r"access denied$"):
        made.get(authorizer=Keys(renewals=0))
    with pytest.raises(AccessDenied, match=r"access denied$"):
        net(Reply(status)).get()


@pytest.mark.parametrize(
    "way",
    [
        ["https://cdn.example/a"],
        ["http://reg.example/a"],
        ["https://reg.example:444/a"],
        ["https://cdn.example/a", HERE],
    ],
)
def test_credentials_stay_with_their_origin_also_after_a_way_back(way: list[str]) -> None:
    start = HERE if way[0].startswith("https") else HERE.replace("https", "http")
    replies = [Reply(302, headers=[("Location", location)]) for location in way]
    if start != HERE:
        way[0] = "https://reg.example/a"
        replies = [Reply(302, headers=[("Location", way[0])])]
    made = net(*replies, Reply(body=b"x"))
    keys = Keys()
    assert made.get(url=parse(start), authorizer=keys, headers={"Range": "bytes=0-1"}) == b"x"
    assert made.urls == [start, *way]
    assert made.authorizations == ["Bearer token-0"] + [None] * len(way)
    assert {seen.header("range") for seen in made.wire.seen} == {"bytes=0-1"}


def test_no_credentials_are_asked_for_where_a_redirect_led() -> None:
    keys = Keys()
    made = net(Reply(302, headers=[("Location", "https://cdn.example/a")]), Reply(401))
    with pytest.raises(AccessDenied):
        made.get(authorizer=keys)
    assert keys.told == []


@pytest.mark.parametrize("name", ["Authorization", "authorization", "Cookie"])
def test_credentials_among_the_headers_stay_with_their_origin_too(name: str) -> None:
    for location, goes_along in (("https://cdn.example/a", False), ("/elsewhere", True)):
        made = net(Reply(302, headers=[("Location", location)]), Reply(400, b'{"code": "got hidden-word"}'))
        with pytest.raises(NetworkError, match=r"got \*\*\*"):
            made.get(headers={name: "Bearer hidden-word", "Range": "bytes=0-1"})
        first, second = made.wire.seen
        assert first.header(name) == "Bearer hidden-word"
        assert (second.header(name) is not None) == goes_along
        assert second.header("range") == "bytes=0-1"


def test_credentials_stay_on_the_same_origin() -> None:
    made = net(Reply(302, headers=[("Location", "/elsewhere")]), Reply(body=b"x"))
    made.get(authorizer=Keys())
    assert made.authorizations == ["Bearer token-0"] * 2


def test_no_message_repeats_what_was_sent() -> None:
    basic = "Basic " + b64encode(b"user:pass-word").decode()
    for authorization, parts in (
        (basic, [basic[6:], "pass-word"]),
        ("Bearer token-0", ["token-0"]),
        ("rawkey", ["rawkey"]),
    ):
        echo = json.dumps({"errors": [{"code": parts[0], "message": " and ".join(parts)}]})
        warning = [("Warning", f'299 - "{authorization}"'), ("Content-Type", "application/json")]
        made = net(Reply(400, echo.encode(), warning))
        with pytest.raises(NetworkError, match=r"the server answered 400 \(\*\*\*: ") as raised:
            made.get(authorizer=Keys(authorization))
        for part in parts:
            assert part not in str(raised.value)
            assert part not in made.warned[0]
        made = Net(lambda seen: NetworkError(f"odd line {seen.header('authorization')}"))
        with pytest.raises(NetworkError, match=r"odd line .*\*\*\*"):
            made.get(authorizer=Keys(authorization))


def test_secrets_that_are_none() -> None:
    secrets = Secrets()
    secrets.add("Basic !!!")
    secrets.add("Bearer abc")
    secrets.add("Bearer abcd")
    secrets.add("Bearer abcd")
    assert secrets.hide("abc !!! abcd") == "abc !!! ***"


# Redirects


def test_redirects_end() -> None:
    made = Net(lambda seen: Reply(302, headers=[("Location", seen.request.url.path + "x")]))
    with pytest.raises(NetworkError, match=r"https://reg\.example: more than 5 redirects"):
        made.get()
    assert len(made.urls) == 6
    made = net(*[Reply(307, headers=[("Location", "/a")])] * 5, Reply(body=b"x"))
    assert made.get() == b"x"


def test_a_redirect_that_must_not_be_followed_is_not() -> None:
    for location in ("http://reg.example/", "https://127.0.0.1/", "gopher://x/"):
        made = net(Reply(302, headers=[("Location", location)]))
        with pytest.raises(NetworkError, match=r"redirect .*refused"):
            made.get()
        assert made.urls == [HERE]


def test_a_remembered_target_is_used_again_for_a_while() -> None:
    location = [("Location", "https://cdn.example/b?sig=1")]

    def answer(seen: Seen) -> Reply:
        return Reply(307, headers=location) if seen.request.url.origin.host == "reg.example" else Reply(body=b"x")

    made = Net(answer)
    for _ in range(3):
        assert made.get(remember=True, authorizer=Keys()) == b"x"
    assert made.urls == [HERE, *["https://cdn.example/b?sig=1"] * 3]
    assert made.authorizations == ["Bearer token-0", None, None, None]
    made.time += REMEMBERED + 1
    made.get(remember=True)
    assert made.urls[4:] == [HERE, "https://cdn.example/b?sig=1"]
    made.get()
    assert made.urls[6] == HERE


def test_a_remembered_target_that_is_down_is_forgotten() -> None:
    down: set[str] = set()

    def answer(seen: Seen) -> Reply | NetworkError:
        if seen.request.url.origin.host in down:
            return TransientError("connection refused")
        if seen.request.url.origin.host == "reg.example":
            return Reply(307, headers=[("Location", f"https://cdn{len(down)}.example/a")])
        return Reply(body=b"x")

    made = Net(answer)
    assert made.get(remember=True) == b"x"
    down.add("cdn0.example")
    assert made.get(remember=True) == b"x"
    assert made.urls[2:] == ["https://cdn0.example/a", HERE, "https://cdn1.example/a"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_remembered_target_that_expired_is_forgotten(status: int) -> None:
    expired: set[str] = set()

    def answer(seen: Seen) -> Reply:
        if seen.request.url.origin.host == "cdn.example":
            return Reply(status) if seen.request.url.whole in expired else Reply(body=b"x")
        return Reply(307, headers=[("Location", f"https://cdn.example/{len(expired)}")])

    made = Net(answer)
    assert made.get(remember=True) == b"x"
    expired.add("https://cdn.example/0")
    assert made.get(remember=True) == b"x"
    assert made.urls[2:] == ["https://cdn.example/0", HERE, "https://cdn.example/1"]


# Answers


def test_a_document_is_tried_again_only_if_that_changes_nothing() -> None:
    made = net(
        Reply(503),
        TransientError("reset"),
        Reply(200, b"x", breaks=TransientError("cut"), headers=[("Content-Length", "2")]),
        Reply(body=b"ok"),
    )
    assert made.get() == b"ok"
    assert made.slept == [0.25, 0.5, 1]
    for method in ("POST", "PUT", "DELETE"):
        made = net(Reply(503))
        with pytest.raises(TransientError, match="the server failed with 503"):
            made.http.document(Request(parse(HERE), method), limit=1)
    made = Net(lambda _: Reply(502))
    with pytest.raises(TransientError, match=f"^{HERE}: the server failed with 502$"):
        made.get()
    assert len(made.urls) == 5


def test_a_server_that_asks_to_wait_is_waited_for() -> None:
    made = net(Reply(429, headers=[("Retry-After", "7")]), Reply(body=b"ok"))
    assert made.get() == b"ok"
    assert made.slept == [7]
    made = net(Reply(429, headers=[("Retry-After", "3600")]))
    with pytest.raises(NetworkError, match="too many requests; it asks to wait 3600 s") as raised:
        made.get()
    assert raised.value.hint == "log in, or try later"


@pytest.mark.parametrize(
    ("status", "kind", "what"),
    [
        (404, NotFound, "not found"),
        (410, NotFound, "not found"),
        (416, NoRanges, "the server gives no such range"),
        (501, NoRanges, "the server gives no such range"),
        (418, NetworkError, "the server answered 418"),
        (204, NetworkError, "the server answered 204"),
        (505, NetworkError, "the server answered 505"),
    ],
)
def test_statuses_are_told_apart(status: int, kind: type[NetworkError], what: str) -> None:
    with pytest.raises(kind, match=f"^{HERE}: {what}$"):
        net(Reply(status)).get()


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b'{"errors":[{"code":"A","message":"m"},{"code":"B"}]}', "application/json", " (A: m)"),
        (b'{"code":"A"}', "text/plain", " (A)"),
        (b'{"message":"m"}', "application/vnd.x+json", " (m)"),
        (b"<html>", "text/html", ""),
        (b"{", "application/json", ""),
        (b'{"errors":[]}', "application/json", ""),
        (b'{"errors":[7]}', "application/json", ""),
        (b'{"errors":[{"code":7}]}', "application/json", ""),
        (b"[1]", "application/json", ""),
        (b'{"code":"%s"}' % (b"x" * 400), "application/json", f" ({'x' * 300})"),
        (b'{"code":"%s"}' % (b"x" * MAX_ERROR_BODY), "application/json", ""),
    ],
)
def test_what_the_body_of_an_error_says(body: bytes, kind: str, said: str) -> None:
    with pytest.raises(NetworkError) as raised:
        net(Reply(400, body, [("Content-Type", kind)])).get()
    assert str(raised.value) == f"{HERE}: the server answered 400{said}"


def test_a_broken_body_does_not_hide_a_status() -> None:
    for reply in (
        Reply(416, b"short", [("Content-Length", "50000000")]),
        Reply(416, b"short", [("Content-Length", "10")]),
        Reply(416, b"{}", [("Content-Encoding", "gzip")]),
        Reply(416, b"{}", breaks=TransientError("reset"), untold=True),
    ):
        with pytest.raises(NoRanges):
            net(reply).get()


def test_a_document_has_a_limit() -> None:
    assert net(Reply(body=b"x" * 1000)).get() == b"x" * 1000
    assert net(Reply(body=b"x" * 1000, untold=True)).get() == b"x" * 1000
    for untold in (False, True):
        with pytest.raises(NetworkError, match="is longer than 1000 bytes"):
            net(Reply(body=b"x" * 1001, untold=untold)).get()
    with pytest.raises(NetworkError, match="encoded as 'br'"):
        net(Reply(headers=[("Content-Encoding", "br")])).get()


def test_heads_without_bodies() -> None:
    made = net(Reply(200, headers=[("Content-Length", "77"), ("X", "a"), ("X", "b")]))
    document = made.http.document(Request(parse(HERE), "HEAD"), limit=0)
    assert document.data == b""
    assert document.header("content-length") == "77"
    assert document.header("x") == "a"
    assert document.header("y") is None
    assert list(document.values("x")) == ["a", "b"]


def test_a_long_body_needs_a_length() -> None:
    response = net(Reply(untold=True)).http.open(Request(parse(HERE)))
    with response, pytest.raises(NetworkError, match="does not say how long it is"):
        response.read(1)
    response.close()
    with pytest.raises(NetworkError, match=f"{HERE}: the answer has two lengths"):
        net(Reply(headers=[("Content-Length", "1"), ("Content-Length", "1")])).get()


def test_warnings_are_shown_once_each_and_not_without_end() -> None:
    made = net(*[Reply(headers=[("Warning", '299 - "old \x07 tag"')])] * 2, Reply(headers=[("Warning", '299 - "b"')]))
    for _ in range(3):
        made.get()
    assert made.warned == ["https://reg.example: old \\x07 tag", "https://reg.example: b"]
    number = iter(range(1000))
    made = Net(lambda _: Reply(headers=[("Warning", f'299 - "{next(number)}"')]))
    for _ in range(MAX_WARNINGS + 5):
        made.get()
    assert len(made.warned) == MAX_WARNINGS


# Connections


def test_there_are_only_so_many_answers_at_once() -> None:
    open_now = 0
    most = 0
    lock = threading.Lock()
    reached = threading.Barrier(3)

    def answer(_seen: Seen) -> Reply:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        return Reply(body=b"x")

    made = Net(answer, connections=3)

    def get() -> None:
        nonlocal open_now
        with made.http.open(Request(parse(HERE))):
            reached.wait()
            with lock:
                open_now -= 1

    with ThreadPool(9, "get") as pool:
        for call in [pool.submit(get) for _ in range(9)]:
            call.result()
    assert most == 3


def test_too_many_requests_halve_the_connections() -> None:
    made = Net(lambda seen: Reply(429 if len(made.urls) < 3 else 200), connections=8)
    made.get()
    assert made.http.slots.limit == 2
    for _ in range(5):
        made.http.slots.halve()
    assert made.http.slots.limit == 1


def test_a_thread_never_waits_for_itself() -> None:
    slots = Slots(1)
    origin = parse(HERE).origin
    first = slots.take(origin)
    second = slots.take(origin)
    done = threading.Event()

    def other() -> None:
        slots.give(slots.take(origin))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    slots.give(first)
    assert not done.wait(0.05)
    slots.give(second)
    assert done.wait(60)
    thread.join()


def test_an_answer_that_cannot_be_used_leaves_no_place_taken() -> None:
    def answer(seen: Seen) -> Reply:
        if len(made.urls) > 3:
            raise KeyboardInterrupt
        return Reply(headers=[("Content-Length", "-1")])

    made = Net(answer, connections=1)
    for _ in range(3):
        with pytest.raises(NetworkError):
            made.get()
    with pytest.raises(KeyboardInterrupt):
        made.get()
    assert made.http.slots._taken[parse(HERE).origin] == 0
    made.http.close()
