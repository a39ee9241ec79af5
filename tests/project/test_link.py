"""The link that makes loopback slow passes every byte, late, and counts it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from tests.servers.link import Link, Passed

_DATA = bytes(range(256)) * 8192  # 2 MiB


def _echo(listening: socket.socket) -> None:
    """Send back what comes, each connection to its end."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))
    thread = Thread(target=_echo, args=(listening,), daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def _exchange(connection: socket.socket, data: bytes) -> bytes:
    sender = Thread(target=connection.sendall, args=(data,))
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        piece = connection.recv(1 << 16)
        assert piece
        got += piece
    sender.join()
    return bytes(got)


def test_every_byte_comes_through_and_is_counted(echo: int) -> None:
    with Link(echo) as link:
        for turn in range(2):
            before = link.passed
            with socket.create_connection(("127.0.0.1", link.port)) as connection:
                assert _exchange(connection, _DATA) == _DATA
            assert link.passed.since(before) == Passed(1, len(_DATA), len(_DATA)), turn


def test_the_end_of_each_side_comes_through(echo: int) -> None:
    with Link(echo, round_trip=0.02) as link, socket.create_connection(("127.0.0.1", link.port)) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read() == b"last words"


def test_a_connection_takes_a_round_trip_and_each_exchange_another(echo: int) -> None:
    took = []
    with Link(echo, round_trip=0.1) as link, socket.create_connection(("127.0.0.1", link.port)) as connection:
        for _ in range(2):
            start = time.monotonic()
            assert _exchange(connection, b"ping") == b"ping"
            took.append(time.monotonic() - start)
    assert took[0] >= 0.2
    assert took[1] >= 0.1


def test_connections_share_the_rate(echo: int) -> None:
    with Link(echo, rate=4 * len(_DATA)) as link:
        start = time.monotonic()
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", link.port)) as connection:
                assert _exchange(connection, _DATA) == _DATA
        assert time.monotonic() - start >= 0.5


def test_a_connection_is_cut_after_so_many_bytes(echo: int) -> None:
    with Link(echo, allowed=1000) as link:
        for size, got in ((999, 999), (1000, 1000), (5000, 1000)):
            with socket.create_connection(("127.0.0.1", link.port)) as connection:
                connection.sendall(_DATA[:size])
                if size < 1000:
                    connection.shutdown(socket.SHUT_WR)
                assert connection.makefile("rb").read() == _DATA[:got]
    assert link.cut == 2


def test_a_server_that_is_not_there_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with Link(port) as link, socket.create_connection(("127.0.0.1", link.port)) as connection:
        assert connection.recv(1) == b""
    assert link.passed == Passed(0, 0, 0)
