"""Lazy objects from real servers, and from one on which everything goes wrong."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cfstools import api
from cfstools.errors import ContentsWrong, NetworkError, ObjectMissing, StoreError, UsageError
from cfstools.formats.registry import open_image
from cfstools.mount.lazy.filler import Filler
from cfstools.mount.lazy.options import LazyOptions
from cfstools.oci.registry.reference import RegistryOptions
from cfstools.sources.elsewhere import Elsewhere
from cfstools.sources.places import open_files, store_objects
from cfstools.store import DirectoryStore
from cfstools.transport.open import NetworkOptions
from cfstools.transport.retry import RetryRules
from cfstools.tree.objects import object_sizes
from cfstools.verity import object_path
from cfstools.verity.object_id import LARGE, leaves_name
from tests.api.places import Made, Served, is_object, make, path_of
from tests.mount.lazy.making import read_whole
from tests.mount.lazy.test_filler import in_threads
from tests.requirements import NEEDS_GO
from tests.servers.authority import Authority
from tests.servers.faulty import CUT, END, Asked, FaultyServer, Part, Wait, head, reply, serve
from tests.servers.link import Link
from tests.servers.nginx import nginx
from tests.servers.registries import docker_registry
from tests.servers.s3 import versitygw
from tests.store.conftest import assert_whole

SIZE = LARGE + 1_234_567
FILES = {f"dir/file{number}": bytes([number]) * (200 + 3000 * number) for number in range(1, 30)}
FILES["large"] = random.Random(9).randbytes(SIZE)
# No test waits for this time: how soon something comes is up to the load of the machine.
OPTIONS = LazyOptions(attempts=2, timeout=30, readahead=0)
ONE_ATTEMPT = OPTIONS._replace(attempts=1)
ONCE = RetryRules(attempts=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make(tmp_path_factory.mktemp("made"), FILES)
    # What `push` to a directory leaves: leaves beside the large object.
    api.push_objects([made.store], bytes(made.place / "remote" / "objects"), [made.image])
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(str(tmp_path / "store"), create=True) as opened:
        yield opened


def sizes(made: Made) -> dict[bytes, int]:
    return object_sizes(open_image(Path(os.fsdecode(made.image)).read_bytes()).tree())


def large(made: Made) -> bytes:
    return max(sizes(made), key=lambda digest: sizes(made)[digest])


def contents(made: Made, digest: bytes) -> bytes:
    return (made.place / "objects" / os.fsdecode(object_path(digest))).read_bytes()


@contextmanager
def lazily(
    made: Made,
    store: DirectoryStore,
    *places: str,
    network: NetworkOptions | None = None,
    options: LazyOptions = OPTIONS,
    log: Callable[[str], None] = print,
) -> Iterator[Filler]:
    network = network or NetworkOptions()
    if network.timeout is None:
        network = network._replace(timeout=options.timeout)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_files(place.encode(), network)) for place in places]
        sources = [store_objects(place, rules=ONCE) for place in opened]
        yield stack.enter_context(Filler(sources, sizes(made), local=[store], store=store, options=options, log=log))


def check_all(made: Made, lazy: Filler, store: DirectoryStore) -> None:
    """The first bytes of the large object come alone, then all of everything."""
    data = contents(made, large(made))
    found = lazy.open(large(made))
    assert found.read(SIZE - 4096, 4096) == data[-4096:]
    found.close()
    assert lazy.counters.objects == 0, "all of a large object was fetched for a part of it"
    assert 0 < lazy.counters.part_bytes < 1 << 20
    for digest in sizes(made):
        assert read_whole(lazy, digest) == contents(made, digest)
    lazy.close()
    assert assert_whole(Path(store.path)) == len(sizes(made))


def test_a_directory(made: Made, store: DirectoryStore) -> None:
    with lazily(made, store, str(made.place / "remote" / "objects")) as lazy:
        check_all(made, lazy, store)


def test_push_leaves_what_it_takes(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    report = api.push_files(made.image, bytes(tmp_path / "place") + b"/", stores=[made.store])
    assert report.objects_sent == len(made.objects)
    assert (tmp_path / "place" / "objects" / leaves_name(large(made))).is_file()
    again = api.push_files(made.image, bytes(tmp_path / "place") + b"/", stores=[made.store])
    assert again.objects_sent == 0
    # A store with leaves is nothing odd.
    assert not api.fsck(bytes(tmp_path / "place" / "objects"), now=0).problems
    with lazily(made, store, str(tmp_path / "place" / "objects")) as lazy:
        check_all(made, lazy, store)


def test_nginx_over_tls(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    network = NetworkOptions(authorities=(bytes(authority.certificate),))
    with nginx(made.place / "remote", tmp_path / "nginx", certificate=authority.issue("server")) as url:
        with lazily(made, store, f"{url}objects", network=network) as lazy:
            check_all(made, lazy, store)
        with lazily(made, store, f"{url}objects") as lazy:
            assert lazy.is_here(large(made))


def test_a_server_that_is_not_trusted(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server")
    with FaultyServer(Served(made.place / "remote"), (str(certificate), str(key))) as server:
        address = server.address("objects")
        with lazily(made, store, address) as lazy, pytest.raises(NetworkError):
            lazy.open(large(made))


@NEEDS_GO
def test_object_storage(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    with versitygw(tmp_path) as storage:
        network = NetworkOptions(cloud=storage.options().config)
        api.push_objects([made.store], b"s3://bucket/some/where", [made.image], network=network)
        assert (storage.bucket / "some" / "where" / leaves_name(large(made))).is_file()
        with lazily(made, store, "s3://bucket/some/where", network=network) as lazy:
            check_all(made, lazy, store)
        os.unlink(storage.bucket / "some" / "where" / leaves_name(large(made)))
        with (
            DirectoryStore(str(tmp_path / "other"), create=True) as other,
            lazily(made, other, "s3://bucket/some/where", network=network) as lazy,
        ):
            assert read_whole(lazy, large(made)) == contents(made, large(made))
            assert lazy.counters.objects == 1


@contextmanager
def from_registry(made: Made, store: DirectoryStore, place: str, options: LazyOptions = OPTIONS) -> Iterator[Filler]:
    with (
        Elsewhere(RegistryOptions(plain_http=True)) as elsewhere,
        elsewhere.offer(place.encode()) as offer,
        Filler(offer.sources(sizes(made)), sizes(made), local=[store], store=store, options=options, log=print) as lazy,
    ):
        yield lazy


def test_a_registry(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:
        place = f"docker://{host}/app:1"
        api.push(made.image, place.encode(), stores=[made.store], registries=RegistryOptions(plain_http=True))
        with from_registry(made, store, place) as lazy:
            check_all(made, lazy, store)


def test_what_is_fetched_behind_needs_few_requests(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    """Objects that lie together in a layer come in one range, though each could be asked for alone."""
    with docker_registry(tmp_path / "registry") as host:
        place = f"docker://{host}/app:1"
        api.push(made.image, place.encode(), stores=[made.store], registries=RegistryOptions(plain_http=True))
        with (
            Link(int(host.rpartition(":")[2])) as link,
            from_registry(made, store, f"docker://localhost:{link.port}/app:1") as lazy,
        ):
            before = (tmp_path / "registry" / "registry.log").read_bytes().count(b"http.request.method=GET")
            wanted = [digest for digest in sizes(made) if digest != large(made)]
            lazy.want(wanted)
            done = threading.Event()
            for _ in range(3000):
                if lazy.counters.objects == len(wanted):
                    break
                done.wait(0.01)
            assert lazy.counters.objects == len(wanted)
            after = (tmp_path / "registry" / "registry.log").read_bytes().count(b"http.request.method=GET")
            assert 0 < after - before <= 6, "two log lines for each request"


def test_a_registry_without_ranges_gives_a_layer_once(made: Made, store: DirectoryStore, tmp_path: Path) -> None:
    """Nothing is asked for twice, and all that came with it is kept."""
    from cfstools.transport.packs import Blob, Location, PackSource

    asked: list[object] = []
    warned: list[str] = []
    items = [(digest, contents(made, digest)) for digest in sizes(made)]
    blob = b"".join(data for _, data in items)
    where, at = {}, 0
    from cfstools.errors import NoRanges
    from cfstools.transport.base import BytesBody, Span

    for digest, data in items:
        where[digest] = Location(0, Span(at, at + len(data)))
        at += len(data)

    @contextmanager
    def opener(span: Span) -> Iterator[Callable[[int], bytes]]:
        asked.append(span)
        if span != Span(0, len(blob)):
            raise NoRanges("gives no ranges")
        with BytesBody(blob).open() as read:
            yield read

    source = PackSource("layers", [Blob("layer", len(blob), [opener])], where, warn=warned.append, rules=ONCE)
    with Filler([source], sizes(made), local=[store], store=store, options=OPTIONS) as lazy:
        results = in_threads(8, lambda: [read_whole(lazy, digest) for digest, _ in items])
        assert results == [[data for _, data in items]] * 8
    assert asked.count(Span(0, len(blob))) == 1
    assert len(warned) == 1
    assert assert_whole(Path(store.path)) == len(items)


Fault = Callable[[Asked, bytes], Iterable[Part] | None]


def small(made: Made) -> bytes:
    return min(sizes(made), key=lambda digest: sizes(made)[digest])


def of_name(name: str, answer: Callable[[Asked, bytes], Iterable[Part]]) -> Fault:
    return lambda asked, data: answer(asked, data) if path_of(asked).endswith(name) else None


FAULTS: dict[str, tuple[Callable[[Asked, bytes], Iterable[Part]], type[Exception]]] = {
    "reset": (lambda _asked, _data: [CUT], NetworkError),
    "closed": (lambda _asked, _data: [END], NetworkError),
    "cut in the head": (lambda _asked, _data: [b"HTTP/1.1 200", CUT], NetworkError),
    "cut in the body": (lambda _asked, data: [head(200, length=len(data)), data[: len(data) // 2], END], NetworkError),
    "silent": (lambda _asked, _data: [Wait(60)], NetworkError),
    "stalls": (lambda _asked, data: [head(200, length=len(data)), data[:10], Wait(60)], NetworkError),
    "500": (lambda _asked, _data: [reply(500)], NetworkError),
    "403": (lambda _asked, _data: [reply(403)], NetworkError),
    "404": (lambda _asked, _data: [reply(404)], ObjectMissing),
    "wrong": (lambda asked, data: [serve(bytes(len(data)), asked)], ContentsWrong),
    "shorter": (lambda asked, data: [serve(data[:-1], asked)], ContentsWrong),
    "no HTTP": (lambda _asked, _data: [b"hello\r\n\r\n", END], NetworkError),
}


def network_for(kind: str) -> NetworkOptions:
    """Only where a server is silent somebody has to wait for it."""
    return NetworkOptions(timeout=2 if kind in ("silent", "stalls") else None)


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_server_that_fails_is_an_error_in_time_and_tried_again(kind: str, made: Made, store: DirectoryStore) -> None:
    answer, error = FAULTS[kind]
    digest = small(made)
    mended = False

    def fault(asked: Asked, data: bytes) -> Iterable[Part] | None:
        return answer(asked, data) if is_object(asked) and not mended else None

    with (
        FaultyServer(Served(made.place / "remote", fault)) as server,
        lazily(made, store, server.address("objects"), network=network_for(kind), options=ONE_ATTEMPT) as lazy,
    ):
        for result in in_threads(4, lambda: read_whole(lazy, digest)):
            assert isinstance(result, StoreError)
            assert isinstance(result, error)
        assert not list(store.objects())
        mended = True
        assert read_whole(lazy, digest) == contents(made, digest)


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_the_next_server_stands_in(kind: str, made: Made, store: DirectoryStore) -> None:
    answer, _ = FAULTS[kind]

    def fault(asked: Asked, data: bytes) -> Iterable[Part] | None:
        return answer(asked, data) if is_object(asked) else None

    with (
        FaultyServer(Served(made.place / "remote", fault)) as bad,
        FaultyServer(Served(made.place / "remote")) as good,
        lazily(
            made,
            store,
            bad.address("objects"),
            good.address("objects"),
            network=network_for(kind),
            options=ONE_ATTEMPT,
        ) as lazy,
    ):
        for digest in (small(made), large(made)):
            found = lazy.open(digest)
            assert found.read(0, 100) == contents(made, digest)[:100]
            found.close()


def test_a_server_that_is_not_there(made: Made, store: DirectoryStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with lazily(made, store, f"http://127.0.0.1:{port}/objects") as lazy, pytest.raises(NetworkError):
        lazy.open(small(made))


def test_a_server_that_gives_no_ranges(made: Made, store: DirectoryStore) -> None:
    def whole(_asked: Asked, data: bytes) -> Iterable[Part] | None:
        return [reply(200, data)] if data else None

    with (
        FaultyServer(Served(made.place / "remote", whole)) as server,
        lazily(made, store, server.address("objects")) as lazy,
    ):
        for digest in sizes(made):
            assert read_whole(lazy, digest) == contents(made, digest)


def test_a_large_object_whose_connection_breaks_goes_on(made: Made, store: DirectoryStore) -> None:
    """It has no leaves there, and comes whole: from where it broke, though each attempt is the last."""

    def cut(asked: Asked, data: bytes) -> Iterable[Part] | None:
        if "leaves" in asked.target:
            return [reply(404)]
        if len(data) != SIZE:
            return None
        start = asked.span[0] if asked.span else 0
        whole = serve(data, asked)
        body = whole.index(b"\r\n\r\n") + 4
        end = body + (1 << 20)
        return [whole[:end], END] if start + (1 << 20) < SIZE else [whole]

    with (
        FaultyServer(Served(made.place / "remote", cut)) as server,
        lazily(made, store, server.address("objects"), options=ONE_ATTEMPT) as lazy,
    ):
        assert read_whole(lazy, large(made)) == contents(made, large(made))
        assert len(server.asked) > 8


def test_object_storage_in_a_child_of_a_process_that_used_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfstools.errors import Unsupported
    from cfstools.transport import cloud

    pytest.importorskip("obstore")
    monkeypatch.setattr(cloud, "_used_in", [1])
    with pytest.raises(Unsupported, match="fork"):
        cloud.CloudTarget("s3://bucket", cloud.CloudOptions())


def test_options_of_the_network() -> None:
    from cfstools.transport.pool import Patience

    assert Patience.of(None) == Patience()
    assert Patience.of(3) == Patience(connect=3, read=3, window=6)
    assert Patience.of(100).connect == Patience().connect
    with pytest.raises(UsageError):
        LazyOptions(timeout=-1)
