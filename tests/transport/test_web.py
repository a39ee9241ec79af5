"""Places over http and https on a real server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.errors import ContentsWrong, NetworkError, NotFound
from cfstools.streams.buffered import read_up_to
from cfstools.transport.base import Span
from cfstools.transport.http import Http
from cfstools.transport.pool import Pool
from cfstools.transport.reading import SpanReader, open_at, read_whole
from cfstools.transport.tls import TlsFiles
from cfstools.transport.web import WebPlace
from tests.servers.authority import Authority
from tests.servers.nginx import nginx

DATA = random.Random(3).randbytes(200_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("root")
    (made / "objects/ab").mkdir(parents=True)
    (made / "objects/ab/cd").write_bytes(DATA)
    (made / "sp ace ä").write_bytes(b"odd")
    (made / "page.html").write_bytes(b"<html>" * 1000)
    return made


@contextmanager
def place(root: Path, work: Path, *, more: str = "", tls: bool = False) -> Iterator[WebPlace]:
    authority = Authority(work / "authority")
    pool = Pool(tls=lambda _origin: TlsFiles((bytes(authority.certificate),)))
    http = Http(pool)
    with nginx(root, work / "nginx", more=more, certificate=authority.issue("server") if tls else None) as base:
        yield WebPlace(base, http)
    http.close()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_files_of_a_web_server(root: Path, tmp_path: Path, *, tls: bool) -> None:
    with place(root, tmp_path, tls=tls) as web:
        assert web.size("objects/ab/cd") == len(DATA)
        assert web.size("objects/ab/ce") is None
        assert web.size("sp ace ä") == 3
        assert read_whole(web, "sp ace ä", 10) == b"odd"
        assert read_whole(web, "objects/ab/cd", len(DATA)) == DATA
        with SpanReader([open_at(web, "objects/ab/cd")], Span(7, 150_000)) as reader:
            assert read_up_to(reader.read, len(DATA)) == DATA[7:150_000]
        with pytest.raises(NotFound):
            read_whole(web, "nothing", 1)
        with pytest.raises(ContentsWrong), web.read("objects/ab/cd", Span(0, len(DATA) + 1)):
            pass
        with pytest.raises(ContentsWrong), web.read("objects/ab/cd", Span(len(DATA), len(DATA) + 1)):
            pass


def test_a_server_without_ranges(root: Path, tmp_path: Path) -> None:
    with place(root, tmp_path, more="max_ranges 0;") as web, web.read("objects/ab/cd", Span(7, 20)) as read:
        assert read_up_to(read, 100) == DATA[7:20]


def test_a_server_that_compresses_is_asked_not_to(root: Path, tmp_path: Path) -> None:
    with place(root, tmp_path, more="gzip on; gzip_min_length 1; gzip_types *;") as web:
        assert read_whole(web, "page.html", 10_000) == b"<html>" * 1000


def test_a_server_that_redirects(root: Path, tmp_path: Path) -> None:
    more = "location /old/ { rewrite ^/old/(.*)$ /$1 redirect; } location /loop { return 302 /loop; }"
    with place(root, tmp_path, more=more) as web:
        old = WebPlace(web.base.below("old"), web._http)
        assert old.size("objects/ab/cd") == len(DATA)
        with old.read("objects/ab/cd", Span(7, 20)) as read:
            assert read_up_to(read, 100) == DATA[7:20]
        with pytest.raises(NetworkError, match="more than 5 redirects"):
            web.size("loop")
