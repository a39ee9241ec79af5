"""A store over a dictionary, of which nothing but the protocol is known, serves every verb that reads objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.api.cat import cat
from cfstools.api.diff import DiffOptions, diff
from cfstools.api.extract import extract
from cfstools.api.listing import objects
from cfstools.api.verify import ProblemKind, verify
from cfstools.errors import CheckFailed, InputError, ObjectMissing, UsageError
from cfstools.tree.diff import Aspect
from cfstools.verity import Algorithm

FILES = {"etc/motd": b"hello\n" * 50, "usr/large": bytes(range(256)) * 20_000, "usr/small": b"inline"}


class Words:
    """An object that is read a bit at a time and has no file."""

    checked = False

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.is_closed = False

    def read(self, offset: int, count: int) -> bytes:
        assert not self.is_closed
        if self.data == b"unreadable":
            raise InputError("cannot read: gone")
        return self.data[offset : offset + count]

    def fileno(self) -> None:
        return

    def close(self) -> None:
        self.is_closed = True


class DictionaryStore:
    """Objects by digest."""

    def __init__(self, held: dict[bytes, bytes]) -> None:
        self.held = held
        self.opened: list[Words] = []

    def size(self, digest: bytes) -> int | None:
        data = self.held.get(digest)
        return None if data is None else len(data)

    def open(self, digest: bytes) -> Words:
        if digest not in self.held:
            raise ObjectMissing("no such object", subject=self.describe(digest))
        self.opened.append(Words(self.held[digest]))
        return self.opened[-1]

    def open_path(self, path: bytes) -> Words:
        return self.open(bytes.fromhex(path.replace(b"/", b"").decode()))

    def objects(self) -> Iterator[bytes]:
        return iter(sorted(self.held))

    def describe(self, digest: bytes) -> str:
        return f"word {digest.hex()[:4]}"


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    build(bytes(tmp_path / "source"), bytes(tmp_path / "image.cfs"), stores=[bytes(tmp_path / "objects")])
    return bytes(tmp_path / "image.cfs")


@pytest.fixture
def store(image: bytes, tmp_path: Path) -> Iterator[DictionaryStore]:
    paths = (path for path in (tmp_path / "objects").glob("??/*"))
    made = DictionaryStore({bytes.fromhex(path.parent.name + path.name): path.read_bytes() for path in paths})
    yield made
    assert all(word.is_closed for word in made.opened)


@pytest.mark.parametrize("threads", [1, 3])
def test_verify(image: bytes, store: DictionaryStore, threads: int) -> None:
    report = verify(image, stores=[store], threads=threads)
    assert report.ok
    assert (report.objects_needed, report.objects_hashed) == (2, 2)
    assert verify(image, stores=[store], deep=False, threads=threads).objects_present == 2
    first, second = sorted(store.held, key=lambda digest: len(store.held[digest]))
    store.held[first] = store.held[first][:-1] + b"?"
    del store.held[second]
    report = verify(image, stores=[store], threads=threads)
    assert {(problem.kind, problem.subject) for problem in report.problems} == {
        (ProblemKind.DAMAGED, store.describe(first)),
        (ProblemKind.MISSING, f"{second.hex()[:2]}/{second.hex()[2:]}"),
    }


def test_several_stores_are_asked_in_turn(image: bytes, store: DictionaryStore, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert verify(image, stores=[bytes(empty), store]).ok
    assert verify(image, stores=[DictionaryStore({}), bytes(tmp_path / "objects")]).ok
    assert objects([image], missing_from=[bytes(empty)]) == objects([image])
    assert objects([image], missing_from=[bytes(empty), store]) == []


def test_cat(image: bytes, store: DictionaryStore) -> None:
    for name, data in FILES.items():
        assert b"".join(cat(image, b"/" + name.encode(), stores=[store])) == data
    digest = next(digest for digest, data in store.held.items() if data == FILES["usr/large"])
    store.held[digest] = bytes(len(FILES["usr/large"]))
    with pytest.raises(CheckFailed, match=f"object word {digest.hex()[:4]} is damaged"):
        list(cat(image, b"/usr/large", stores=[store]))


@pytest.mark.parametrize("threads", [1, 3])
def test_extract_and_diff(image: bytes, store: DictionaryStore, tmp_path: Path, threads: int) -> None:
    target = tmp_path / "target"
    report = extract(image, bytes(target), stores=[store], threads=threads)
    assert (report.files, report.bytes_copied) == (3, sum(map(len, FILES.values())))
    assert {name: (target / name).read_bytes() for name in FILES} == FILES
    assert diff(image, bytes(target)).same
    store.held.clear()
    with pytest.raises(CheckFailed, match="in none of the stores"):
        extract(image, bytes(tmp_path / "other"), stores=[store])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_diff_compares_contents_named_by_two_algorithms(
    image: bytes, store: DictionaryStore, tmp_path: Path, threads: int
) -> None:
    other = tmp_path / "other.cfs"
    options = BuildOptions(algorithm=Algorithm.SHA512)
    build(bytes(tmp_path / "source"), bytes(other), options=options)
    assert diff(image, bytes(other)).contents_incomparable == 2
    for one, two in ((image, bytes(other)), (bytes(other), image)):
        report = diff(one, two, stores=[store], threads=threads)
        # The store has them by SHA-256 only, on whatever side that is.
        assert (report.contents_incomparable, len(report.changes)) == (0, 0)
    motd = tmp_path / "source/etc/motd"
    motd.write_bytes(FILES["etc/motd"][::-1])
    build(bytes(tmp_path / "source"), bytes(other), options=options)
    times = DiffOptions(ignore=frozenset({Aspect.MTIME}))
    report = diff(image, bytes(other), stores=[store], threads=threads, options=times)
    assert [(change.path, change.differences[0].aspect) for change in report.changes] == [("/etc/motd", "content")]
    assert report.contents_incomparable == 0
    del store.held[min(store.held, key=lambda digest: len(store.held[digest]))]
    report = diff(image, bytes(other), stores=[store], options=times)
    assert (report.contents_incomparable, len(report.changes)) == (1, 0)


def test_diff_names_a_damaged_object(image: bytes, store: DictionaryStore, tmp_path: Path) -> None:
    other = tmp_path / "other.cfs"
    build(bytes(tmp_path / "source"), bytes(other), options=BuildOptions(algorithm=Algorithm.SHA512))
    digest = next(digest for digest, data in store.held.items() if data == FILES["usr/large"])
    store.held[digest] = bytes(len(FILES["usr/large"]))
    with pytest.raises(CheckFailed, match=r"/usr/large: object word .* is damaged"):
        diff(image, bytes(other), stores=[store])


def test_diff_fetches_only_what_no_store_has(image: bytes, store: DictionaryStore, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    report = diff(bytes(tmp_path / "nothing"), image)
    assert (report.objects_to_fetch, report.bytes_to_fetch) == (2, sum(map(len, store.held.values())))
    report = diff(bytes(tmp_path / "nothing"), image, stores=[store])
    assert (report.objects_to_fetch, report.bytes_to_fetch, report.objects_shared) == (0, 0, 0)
    digest, data = store.held.popitem()
    report = diff(bytes(tmp_path / "nothing"), image, stores=[store])
    assert (report.objects_to_fetch, report.bytes_to_fetch) == (1, len(data))
    assert digest not in store.held


def test_builds_look_in_it_and_do_not_write_to_it(image: bytes, store: DictionaryStore, tmp_path: Path) -> None:
    first = tmp_path / "new"
    report = build(bytes(tmp_path / "source"), None, stores=[bytes(first), store])
    assert (report.objects_new, report.objects_shared) == (0, 2)
    with pytest.raises(UsageError, match="can only be written to a directory"):
        build(bytes(tmp_path / "source"), None, stores=[store])
    assert os.listdir(first) == [".mkcfs-lock"]
