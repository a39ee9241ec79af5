"""Object storage as a place: against a server that checks signatures, hashes and conditions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from cfstools.errors import AccessDenied, CfsError, ContentsWrong, InputError, NetworkError, NotFound, SourceChanged
from cfstools.streams.buffered import read_up_to
from cfstools.transport.base import BytesBody, Span
from cfstools.transport.cloud import IN_MEMORY, CloudOptions, CloudTarget
from cfstools.transport.reading import SpanReader, open_at, read_whole
from tests.requirements import NEEDS_GO
from tests.servers.s3 import SECRET, Storage, versitygw

pytestmark = NEEDS_GO
DATA = random.Random(1).randbytes(300_000)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with versitygw(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def target(storage: Storage, request: pytest.FixtureRequest) -> CloudTarget:
    return CloudTarget(f"s3://bucket/{request.node.name}/deep/", storage.options())


def test_what_was_put_is_there(target: CloudTarget, storage: Storage) -> None:
    assert target.put("a/b", BytesBody(DATA), replace=False)
    assert target.size("a/b") == len(DATA)
    assert target.size("nothing") is None
    assert read_whole(target, "a/b", len(DATA)) == DATA
    with target.read("a/b", Span(1000, 200_000)) as read:
        assert read_up_to(read, len(DATA)) == DATA[1000:200_000]
    with target.read("a/b", Span(5, 5)) as read:
        assert read(1) == b""
    assert (storage.bucket / "test_what_was_put_is_there/deep/a/b").read_bytes() == DATA
    target.close()


def test_nothing_is_replaced_unless_that_is_wanted(target: CloudTarget) -> None:
    assert target.put("a", BytesBody(b"first"), replace=False)
    assert not target.put("a", BytesBody(b"second"), replace=False)
    assert read_whole(target, "a", 100) == b"first"
    assert target.put("a", BytesBody(b"third"), replace=True)
    assert read_whole(target, "a", 100) == b"third"


def test_what_is_large_is_sent_in_parts(target: CloudTarget) -> None:
    data = random.Random(2).randbytes(IN_MEMORY * 2 + 17)
    assert target.put("a", BytesBody(data), replace=False)
    assert not target.put("a", BytesBody(data), replace=False)
    assert read_whole(target, "a", len(data)) == data


@pytest.mark.parametrize("size", [100, IN_MEMORY + 100])
def test_a_body_that_is_shorter_than_it_says_leaves_nothing(target: CloudTarget, size: int) -> None:
    class Short:
        def __init__(self) -> None:
            self.size = size
            self.open = BytesBody(bytes(size - 1)).open

    with pytest.raises(InputError, match=f"1 of {size} bytes are missing"):
        target.put("a", Short(), replace=True)
    assert target.size("a") is None


@pytest.mark.parametrize(
    "name", ["sp ace", "ä/ö", "100%25", "x+y", "q?r#s", "é'\"", "~tilde", "a=b&c", "back\\slash", "*"]
)
def test_names_that_need_escapes(storage: Storage, name: str) -> None:
    target = CloudTarget("s3://bucket/names", storage.options())
    assert target.put(name, BytesBody(name.encode()), replace=True)
    assert read_whole(target, name, 100) == name.encode()
    assert (name, len(name.encode())) in set(target.names())


def test_names_are_listed_in_pages(storage: Storage) -> None:
    target = CloudTarget("s3://bucket/many", storage.options())
    directory = storage.bucket / "many/objects/ab"
    directory.mkdir(parents=True)
    for number in range(2500):
        (directory / f"{number:05}").write_bytes(b"xy")
    assert target.put("other", BytesBody(b"x"), replace=True)
    expected = {(f"objects/ab/{number:05}", 2) for number in range(2500)}
    assert set(target.names("objects")) == expected
    assert set(target.names()) == {*expected, ("other", 1)}
    assert list(target.names("nothing")) == []


def test_what_is_not_there(target: CloudTarget, storage: Storage) -> None:
    target.put("a", BytesBody(b"12345"), replace=True)
    with pytest.raises(NotFound, match=r"deep/b: not found$"), target.read("b"):
        pass
    for span in (Span(3, 6), Span(5, 6), Span(100, 101)):
        with pytest.raises(ContentsWrong, match="is shorter there than it should be"), target.read("a", span):
            pass
    gone = CloudTarget("s3://no-bucket/x", storage.options())
    with pytest.raises(NotFound), gone.read("a"):
        pass
    with pytest.raises(CfsError, match="cannot be a name"):
        target.size("../a")


def test_what_changed_in_between_is_told(target: CloudTarget) -> None:
    opener = open_at(target, "a")
    target.put("a", BytesBody(b"old contents"), replace=True)
    with SpanReader([opener], Span(0, 3)) as reader:
        assert reader.read(3) == b"old"
    target.put("a", BytesBody(b"new contents"), replace=True)
    with pytest.raises(SourceChanged), SpanReader([opener], Span(3, 12)) as reader:
        reader.read(3)


def test_wrong_credentials_are_told_without_being_shown(storage: Storage) -> None:
    target = CloudTarget("s3://bucket/x", storage.options(secret_access_key="wrong-secret"))
    calls: list[Callable[[], object]] = [
        partial(target.size, "a"),
        partial(next, target.names()),
        target.read("a").__enter__,
        partial(target.put, "a", BytesBody(b"x"), replace=True),
    ]
    for call in calls:
        with pytest.raises(AccessDenied, match=r"^s3://bucket/x.*: access denied") as raised:
            call()
        for secret in ("wrong-secret", "access-key", SECRET, "Signature="):
            assert secret not in str(raised.value)
    assert SECRET not in repr(storage.options())


def test_a_server_that_is_not_there(storage: Storage) -> None:
    target = CloudTarget("s3://bucket/x", storage.options(endpoint="http://127.0.0.1:1"))
    with pytest.raises(NetworkError, match="the storage failed: "):
        target.size("a")


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "ftp://b/x", "s3://b/x?y", "s3://u:p@b/x", "s3://b /x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(NetworkError, match="names no bucket"):
        CloudTarget(address, CloudOptions())
    with pytest.raises(CfsError, match="cannot be a name"):
        CloudTarget("s3://b/x/../y", CloudOptions())


def test_an_option_that_there_is_not(storage: Storage) -> None:
    with pytest.raises(NetworkError, match="bogus"):
        CloudTarget("s3://bucket/x", storage.options(bogus="1"))
