"""URLs: what they are made of, where redirects may lead, and which proxy is on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import NetworkError
from cfstools.transport import url
from cfstools.transport.proxies import NO_PROXIES, parse_proxies
from cfstools.transport.url import MAX_URL, Origin, Url, is_local, join, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://Host", Url(Origin("https", "host", 443), "/")),
        ("HTTP://h:8080/a%20b?q=%2F&x#frag", Url(Origin("http", "h", 8080), "/a%20b", "q=%2F&x")),
        ("https://h:/ä", Url(Origin("https", "h", 443), "/%C3%A4")),
        ("https://[::1]:5/x?", Url(Origin("https", "[::1]", 5), "/x", "")),
    ],
)
def test_what_urls_are_made_of(text: str, expected: Url) -> None:
    assert parse(text) == expected
    assert parse(expected.whole) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is not a URL"),
        ("host/path", "'host/path' is not a URL"),
        ("https://h/a b", "'https://h/a b' is not a URL"),
        ("https://h/\r\nX: y", r"'https://h/\\r\\nX: y' is not a URL"),
        ("ftp://h/", "the scheme 'ftp' is none"),
        ("file:///etc/passwd", "the scheme 'file' is none"),
        ("https://user:hidden@h/", "must not have a user name"),
        ("https://h:0/", "names no host"),
        ("https://h:65536/", "names no host"),
        ("https:///x", "names no host"),
        ("https://[::g]/x", "names no host"),
        ("https://" + "h" * 254, "names no host"),
        ("https://ho\u00e4st/", "names no host"),
        ("https://h/" + "x" * MAX_URL, "is not a URL"),
    ],
)
def test_what_is_no_url(text: str, what: str) -> None:
    with pytest.raises(NetworkError, match=what) as raised:
        parse(text)
    assert "hidden" not in str(raised.value)


@given(st.text(max_size=200))
def test_anything_is_a_url_or_refused(text: str) -> None:
    for candidate in (text, f"https://{text}", f"https://h/{text}"):
        try:
            made = parse(candidate)
        except NetworkError:
            continue
        assert made.whole.isascii()
        assert not set("\r\n \t") & set(made.whole)
        assert parse(made.whole) == made


def test_a_url_in_a_message_has_no_query() -> None:
    made = parse("https://h/p?X-Amz-Signature=secret")
    assert str(made) == f"{made}" == "https://h/p"
    assert made.target == "/p?X-Amz-Signature=secret"
    assert made.whole == "https://h/p?X-Amz-Signature=secret"


def test_names_below_a_url_are_escaped() -> None:
    assert parse("https://h/base/?sas=1").below("a b/ü?#%").whole == "https://h/base/a%20b/%C3%BC%3F%23%25?sas=1"
    assert parse("https://h").below("x").whole == "https://h/x"
    assert parse("https://h/u").with_query("d=1").with_query("e=2").whole == "https://h/u?d=1&e=2"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("https://o/x?y", "https://o/x?y"),
        ("//o/x", "https://o/x"),
        ("/x?y", "https://h:5/x?y"),
        ("c", "https://h:5/a/c"),
        ("../c", "https://h:5/c"),
        ("?q", "https://h:5/a/b?q"),
    ],
)
def test_references(reference: str, expected: str) -> None:
    assert join(parse("https://h:5/a/b?z"), reference).whole == expected


def test_references_that_are_none() -> None:
    for reference in ("http://[::1", "https://h/" + "x" * MAX_URL, "javascript:x", "https://u:p@h/"):
        with pytest.raises(NetworkError):
            join(parse("https://h/"), reference)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "a.localhost", "localhost.", "127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254"),
        *("[::1]", "[::]", "[fe80::1]", "[::ffff:127.0.0.1]"),
        *("127.1", "2130706433", "0x7f.1", "0x7f000001", "017700000001"),
    ],
)
def test_hosts_that_are_this_machine_or_its_link(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host", ["h", "10.0.0.1", "192.168.1.1", "[2001:db8::1]", "localhost.example", "1and1.example"]
)
def test_hosts_elsewhere(host: str) -> None:
    assert not is_local(host)


# Redirects


def follow(start: str, location: str, *, method: str = "GET", status: int = 302, here: str | None = None) -> str:
    return url.follow(url.parse(start), url.parse(here or start), method, status, [location]).whole


def test_where_redirects_may_lead() -> None:
    assert follow("https://h/a", "https://cdn/b?sig=1") == "https://cdn/b?sig=1"
    assert follow("http://h/a", "https://h/a") == "https://h/a"
    assert follow("http://h/a", "/b") == "http://h/b"
    assert follow("http://127.0.0.1:1/a", "http://localhost:2/b") == "http://localhost:2/b"
    assert follow("https://h/a", "https://h/b", method="PUT", status=307) == "https://h/b"


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("http://h/b", "redirect to http://h/b refused: it leaves https"),
        ("ftp://h/b", "redirect refused: the scheme 'ftp'"),
        ("https://u:p@h/b", "redirect refused: a URL must not have a user name"),
        ("https://127.0.0.1/b", "refused: it leads to this machine or its link"),
        ("https://169.254.169.254/latest", "refused: it leads to this machine or its link"),
        ("https://2852039166/latest", "refused: it leads to this machine or its link"),
        ("https://[::ffff:a9fe:a9fe]/latest", "refused: it leads to this machine or its link"),
        ("https://h/\x00", "redirect refused: "),
    ],
)
def test_where_redirects_may_not_lead(location: str, what: str) -> None:
    with pytest.raises(NetworkError, match=what) as raised:
        follow("https://h/a", location)
    assert raised.value.subject == "https://h"


def test_redirects_that_are_not_followed() -> None:
    with pytest.raises(NetworkError, match="redirect of PUT to https://h/b refused"):
        follow("https://h/a", "https://h/b?q", method="PUT", status=302)
    for locations in ([], ["https://h/b", "https://h/c"]):
        with pytest.raises(NetworkError, match="does not say where to"):
            url.follow(parse("https://h/a"), parse("https://h/a"), "GET", 302, locations)


# Proxies


def proxy(origin: str, direct: str = "") -> str:
    found = parse_proxies("http://plain:3128", "https://user:p%40ss@tunnel", direct).for_origin(parse(origin).origin)
    return "" if found is None else str(found.origin)


def test_which_proxy_is_on_the_way() -> None:
    assert proxy("http://h/") == "http://plain:3128"
    assert proxy("https://h/") == "https://tunnel"
    assert NO_PROXIES.for_origin(parse("https://h/").origin) is None
    assert parse_proxies("", None, None) == NO_PROXIES
    assert parse_proxies("proxy:1", None, None).http == parse_proxies("http://proxy:1", None, None).http


def test_credentials_for_a_proxy_are_not_shown() -> None:
    made = parse_proxies(None, "http://user:p%40ss@tunnel:1", None)
    assert made.https is not None
    assert made.https.authorization == "Basic dXNlcjpwQHNz"
    assert "p@ss" not in repr(made)
    assert "dXNl" not in repr(made)
    with pytest.raises(NetworkError, match="the proxy cannot be used: the scheme 'socks5'") as raised:
        parse_proxies("socks5://user:hidden@h", None, None)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("*", "https://h/"),
        ("example.com", "https://example.com/"),
        ("example.com", "https://a.example.com/"),
        (".example.com", "https://a.example.com/"),
        ("*.example.com", "https://a.example.com/"),
        ("x, EXAMPLE.com:8443", "https://example.com:8443/"),
        ("10.0.0.0/8", "https://10.2.3.4/"),
        ("127.0.0.1", "http://127.0.0.1:5000/"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/"),
        ("::1", "http://[::1]:5000/"),
        ("[::1]:5000", "http://[::1]:5000/"),
        ("x y,localhost", "http://localhost/"),
    ],
)
def test_hosts_without_a_proxy(pattern: str, origin: str) -> None:
    assert proxy(origin, pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("example.com", "https://notexample.com/"),
        ("example.com:8443", "https://example.com/"),
        ("10.0.0.0/8", "https://11.2.3.4/"),
        ("[::1]:5000", "http://[::1]:5001/"),
        ("", "https://h/"),
    ],
)
def test_hosts_with_a_proxy(pattern: str, origin: str) -> None:
    assert proxy(origin, pattern) != ""
