"""``pull`` of image files: from directories, and from web servers on which everything goes wrong."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from cfstools import api
from cfstools.api.pull import PullReport
from cfstools.errors import (
    AccessDenied,
    CfsError,
    CheckFailed,
    ContentsWrong,
    ImageError,
    InputError,
    LimitExceeded,
    NetworkError,
    NotFound,
    SignatureInvalid,
    UsageError,
)
from cfstools.signing import Verdict
from cfstools.sources.places import split_file
from tests.api.places import FILES, Made, Served, contents, is_object, make, stored
from tests.servers.faulty import CUT, END, Asked, FaultyServer, Part, head, reply, serve
from tests.servers.link import Link


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


def pull(place: str | Path, target: Path, made: Made | None = None, **words: object) -> PullReport:
    """Pull into ``app.cfs`` and ``store`` in *target*; with *made* its key must have signed."""
    options = api.PullOptions(keys=() if made is None else [made.key], **words)  # type: ignore[arg-type]
    return api.pull(str(place).encode(), bytes(target / "app.cfs"), stores=[bytes(target / "store")], options=options)


def assert_pulled(made: Made, target: Path) -> None:
    assert (target / "app.cfs").read_bytes() == Path(made.image.decode()).read_bytes()
    assert (target / "app.cfs.sig").read_bytes() == (made.place / "app.cfs.sig").read_bytes()
    assert contents(target / "store") == contents(made.place / "objects")


def assert_nothing_wrong(made: Made, target: Path) -> None:
    """No image, and no object that is not one of the image's."""
    assert not (target / "app.cfs").exists()
    assert not (target / "app.cfs.sig").exists()
    good = contents(made.place / "objects")
    assert all(good[name] == data for name, data in contents(target / "store").items())


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_from_a_directory(scheme: str, made: Made, tmp_path: Path) -> None:
    report = pull(f"{scheme}{made.place}/app.cfs", tmp_path, made)
    assert_pulled(made, tmp_path)
    assert report.objects == report.objects_fetched == report.requests == len(made.objects)
    assert report.signature.state is Verdict.VERIFIED
    assert report.manifest is None
    again = pull(f"{scheme}{made.place}/app.cfs", tmp_path, made)
    assert (again.objects_fetched, again.requests, again.bytes_fetched) == (0, 0, 0)


def test_from_a_link_to_an_image(made: Made, tmp_path: Path) -> None:
    (tmp_path / "latest.cfs").symlink_to(made.image.decode())
    pull(tmp_path / "latest.cfs", tmp_path, made)
    assert_pulled(made, tmp_path)


def test_a_signature_attached_to_the_image_is_beside_it_afterwards(made: Made, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(made.place, there)
    (there / "app.cfs.sig").unlink()
    api.sign(bytes(there / "app.cfs"), [api.read_private_key(bytes(made.place / "release.key"))], attach=True)
    assert pull(there / "app.cfs", tmp_path, made).signature.state is Verdict.VERIFIED
    assert_pulled(made, tmp_path)


def test_only_what_no_store_has_is_fetched(made: Made, tmp_path: Path) -> None:
    names = sorted(made.objects)
    for store, some in (("store", names[:20]), ("other", names[15:40])):
        for name in some:
            (tmp_path / store / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made.place / "objects" / name, tmp_path / store / name)
    options = api.PullOptions(keys=[made.key])
    stores = [bytes(tmp_path / "store"), bytes(tmp_path / "other")]
    place = bytes(made.place / "app.cfs")
    planned = api.pull(place, None, stores=stores, options=options)
    report = api.pull(place, bytes(tmp_path / "app.cfs"), stores=stores, options=options)
    assert report.objects_fetched == planned.objects_fetched == len(names) - 40
    assert report.bytes_fetched == planned.bytes_fetched
    assert report.requests == planned.requests
    assert stored(tmp_path / "store") == set(names[:20]) | set(names[40:])


def test_a_dry_run_writes_nothing(made: Made, tmp_path: Path) -> None:
    report = api.pull(made.image, None, stores=[bytes(tmp_path / "none")])
    assert report.image is None
    assert report.cost is not None
    assert (report.cost.objects, report.cost.requests) == (len(made.objects), len(made.objects))
    assert report.cost.bytes == report.cost.bytes_fetched == sum(map(len, FILES.values()))
    assert report.cost.files[0].path == "/dir0/large"
    assert list(tmp_path.iterdir()) == []


# What is wrong with the image or its signature


def copied(made: Made, place: Path) -> Path:
    shutil.copytree(made.place, place)
    return place


def test_an_image_that_the_key_has_not_signed(made: Made, tmp_path: Path) -> None:
    other = make(tmp_path / "other", {"one": b"1" * 100})
    with pytest.raises(SignatureInvalid):
        pull(made.place / "app.cfs", tmp_path, other)
    assert_nothing_wrong(made, tmp_path)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("words", ["key", "digest"])
def test_no_byte_is_interpreted_before_it_is_known_to_be_good(words: str, made: Made, tmp_path: Path) -> None:
    there = copied(made, tmp_path / "there")
    data = (there / "app.cfs").read_bytes()
    (there / "app.cfs").write_bytes(data[:1024] + b"\xff" * 400 + data[1424:])
    options = {"digest": api.ObjectId.parse(hashlib.sha256(b"other").hexdigest())} if words == "digest" else {}
    with pytest.raises(CheckFailed) as caught:
        pull(there / "app.cfs", tmp_path, made if words == "key" else None, **options)
    assert not isinstance(caught.value, ImageError)
    assert_nothing_wrong(made, tmp_path)


def test_an_image_that_is_broken(made: Made, tmp_path: Path) -> None:
    there = copied(made, tmp_path / "there")
    (there / "app.cfs").write_bytes((there / "app.cfs").read_bytes()[:4096])
    with pytest.raises(ImageError):
        pull(there / "app.cfs", tmp_path)
    assert_nothing_wrong(made, tmp_path)


def test_a_signature_that_is_not_there(made: Made, tmp_path: Path) -> None:
    there = copied(made, tmp_path / "there")
    (there / "app.cfs.sig").unlink()
    with pytest.raises(SignatureInvalid):
        pull(there / "app.cfs", tmp_path, made)
    assert_nothing_wrong(made, tmp_path)
    report = pull(there / "app.cfs", tmp_path)
    assert (report.signature.state, report.signature_path) == (Verdict.MISSING, None)


def test_an_image_that_is_not_there(made: Made, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not found") as caught:
        pull(made.place / "none.cfs", tmp_path)
    assert caught.value.subject == str(made.place / "none.cfs")
    with pytest.raises(InputError, match="cannot open"):
        pull(tmp_path / "none/none.cfs", tmp_path)


def test_objects_that_are_not_there(made: Made, tmp_path: Path) -> None:
    there = copied(made, tmp_path / "there")
    first, second, *_ = sorted(made.objects)
    (there / "objects" / first).unlink()
    (there / "objects" / second).unlink()
    with pytest.raises(InputError, match=f"2 objects are missing at every place, first {first}") as caught:
        pull(there / "app.cfs", tmp_path, made)
    assert caught.value.subject == str(there / "app.cfs")
    assert_nothing_wrong(made, tmp_path)
    assert stored(tmp_path / "store") == made.objects - {first, second}
    shutil.rmtree(there / "objects")
    with pytest.raises(InputError, match="2 objects are missing at every place"):
        pull(there / "app.cfs", tmp_path, made)


def test_stores_over_a_network_are_mirrors(made: Made, tmp_path: Path) -> None:
    for stores in ([b"https://h.example/x?key=word"], [bytes(tmp_path / "s"), b"s3://bucket"]):
        with pytest.raises(UsageError, match="cannot be used here") as caught:
            api.pull(made.image, bytes(tmp_path / "a"), stores=stores)
        assert "mirrors" in str(caught.value.hint)
        assert "word" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


ADDRESSES = {
    b"https://h/a/b.cfs": (b"https://h/a", "b.cfs"),
    b"https://h/b.cfs": (b"https://h", "b.cfs"),
    b"https://h/a/b%20c%c3%a4.cfs?x=/y": (b"https://h/a?x=/y", "b cä.cfs"),
    b"s3://bucket/b.cfs": (b"s3://bucket", "b.cfs"),
}


@pytest.mark.parametrize(("address", "parts"), ADDRESSES.items())
def test_where_a_file_is(address: bytes, parts: tuple[bytes, str]) -> None:
    assert split_file(address) == parts


@pytest.mark.parametrize(
    "address", [b"https://h", b"https://h/", b"s3://b", b"s3://b/x/", b"https://h/a/%2e%2e", b"https://h/a%2fb"]
)
def test_what_names_no_file(address: bytes) -> None:
    with pytest.raises(UsageError, match="names no image"):
        split_file(address)


# A server that fails

Fault = Callable[[Asked, bytes], Iterable[Part] | None]


class Once:
    """A fault that every object meets once, the first time it is asked for."""

    def __init__(self, answer: Callable[[Asked, bytes], Iterable[Part]]) -> None:
        self._answer = answer
        self._met: set[str] = set()

    def __call__(self, asked: Asked, data: bytes) -> Iterable[Part] | None:
        if not is_object(asked) or asked.target in self._met:
            return None
        self._met.add(asked.target)
        return self._answer(asked, data)


def always(answer: Callable[[Asked, bytes], Iterable[Part]]) -> Fault:
    return lambda asked, data: answer(asked, data) if is_object(asked) else None


HEALED: dict[str, Callable[[Asked, bytes], Iterable[Part]]] = {
    "reset": lambda _asked, data: [head(200, length=len(data)), data[: len(data) // 2], CUT],
    "end": lambda _asked, data: [head(200, length=len(data)), data[: len(data) // 2], END],
    "no answer": lambda _asked, _data: [CUT],
    "503": lambda _asked, _data: [reply(503)],
    "429": lambda _asked, _data: [reply(429, b"", "Retry-After: 0")],
    "500": lambda _asked, _data: [reply(500, b"sorry")],
}


@pytest.mark.parametrize("answer", HEALED.values(), ids=HEALED)
def test_what_passes_is_overcome(answer: Callable[[Asked, bytes], Iterable[Part]], tmp_path: Path) -> None:
    made = make(tmp_path / "made", dict([*list(FILES.items())[:6], ("large", FILES["dir0/large"])]))
    with FaultyServer(Served(made.place, Once(answer))) as server:
        report = pull(server.address("app.cfs"), tmp_path, made)
    assert_pulled(made, tmp_path)
    assert report.objects_fetched == len(made.objects)
    assert report.requests >= 2 * len(made.objects)


FINAL: dict[str, tuple[Callable[[Asked, bytes], Iterable[Part]], type[CfsError], str]] = {
    "404": (lambda _asked, _data: [reply(404)], InputError, "7 objects are missing at every place, first "),
    "403": (lambda _asked, _data: [reply(403)], AccessDenied, "access denied"),
    "400": (lambda _asked, _data: [reply(400)], NetworkError, "400"),
    "other bytes": (lambda asked, data: [serve(bytes(len(data)), asked)], ContentsWrong, "contents are wrong at http"),
    "too short": (lambda asked, data: [serve(data[:-1], asked)], ContentsWrong, "contents are wrong at http"),
    "compressed": (
        lambda _asked, data: [reply(200, data, "Content-Encoding: gzip")],
        ContentsWrong,
        "contents are wrong at http",
    ),
    "a loop": (lambda asked, _data: [reply(302, b"", f"Location: {asked.target}")], NetworkError, "redirect"),
    "another scheme": (lambda _asked, _data: [reply(302, b"", "Location: ftp://h/x")], NetworkError, "redirect"),
    "a user name": (lambda _asked, _data: [reply(302, b"", "Location: http://u:p@h/")], NetworkError, "redirect"),
}


@pytest.mark.parametrize(("answer", "kind", "text"), FINAL.values(), ids=FINAL)
def test_what_does_not_pass_ends_it(
    answer: Callable[[Asked, bytes], Iterable[Part]], kind: type[CfsError], text: str, tmp_path: Path
) -> None:
    made = make(tmp_path / "made", dict([*list(FILES.items())[:6], ("large", FILES["dir0/large"])]))
    with FaultyServer(Served(made.place, always(answer))) as server, pytest.raises(kind) as caught:
        pull(server.address("app.cfs?secret=hidden"), tmp_path, made)
    assert text in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert caught.value.exit_code == (3 if kind is ContentsWrong else 1)
    assert_nothing_wrong(made, tmp_path)
    assert not stored(tmp_path / "store")


def test_bytes_behind_an_object_do_not_matter(tmp_path: Path) -> None:
    made = make(tmp_path / "made", dict(list(FILES.items())[:6]))
    with FaultyServer(Served(made.place, always(lambda asked, data: [serve(data + b"more", asked)]))) as server:
        pull(server.address("app.cfs"), tmp_path, made)
    assert_pulled(made, tmp_path)


def test_an_image_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    def huge(asked: Asked, _data: bytes) -> Iterable[Part] | None:
        return [head(200, length=1 << 40), *([b"x" * 1000] if asked.method == "GET" else [])]

    with FaultyServer(Served(tmp_path, huge)) as server, pytest.raises(LimitExceeded, match="at most"):
        pull(server.address("app.cfs"), tmp_path)
    assert [asked.method for asked in server.asked] == ["HEAD"]


def test_a_signature_that_nobody_may_read_is_none(made: Made, tmp_path: Path) -> None:
    """Object storage answers 403 for what is not there, where nothing may be listed."""

    def refused(asked: Asked, _data: bytes) -> Iterable[Part] | None:
        return [reply(403)] if asked.target.endswith(".sig") else None

    said: list[str] = []
    with FaultyServer(Served(made.place, refused)) as server:
        place = server.address("app.cfs").encode()
        with pytest.raises(SignatureInvalid):
            pull(place.decode(), tmp_path, made)
        stores = [bytes(tmp_path / "store")]
        report = api.pull(place, bytes(tmp_path / "app.cfs"), stores=stores, warn=said.append)
    assert report.signature.state is Verdict.MISSING
    assert len(said) == 1
    assert "no signature is used: " in said[0]


def test_a_link_that_cuts_every_connection(made: Made, tmp_path: Path) -> None:
    with FaultyServer(Served(made.place)) as server, Link(server.port, allowed=300_000) as link:
        pull(f"http://127.0.0.1:{link.port}/app.cfs", tmp_path, made)
    assert_pulled(made, tmp_path)
    assert link.cut > 5


# Mirrors


@pytest.fixture
def mirrors(made: Made, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The address of a mirror of a kind: one that is down, one with a flipped bit in every object, a good one."""

    def flipped(asked: Asked, data: bytes) -> Iterable[Part] | None:
        return [serve(bytes([data[0] ^ 1]) + data[1:], asked)] if is_object(asked) else None

    with FaultyServer(Served(made.place)) as good, FaultyServer(Served(made.place, flipped)) as wrong:
        addresses = {
            "down": "http://127.0.0.1:1/objects",
            "wrong": wrong.address("objects"),
            "good": good.address("objects"),
            "empty": good.address("nothing"),
        }
        yield addresses.__getitem__


@pytest.mark.parametrize("kinds", ["down wrong good", "wrong empty good", "good wrong", "empty down good"])
def test_mirrors_stand_in_for_each_other(kinds: str, made: Made, mirrors: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    for name in ("app.cfs", "app.cfs.sig"):
        shutil.copy(made.place / name, tmp_path / "alone" / name)
    places = [mirrors(kind).encode() for kind in kinds.split()]
    report = pull(tmp_path / "alone/app.cfs", tmp_path, made, mirrors=places)
    assert_pulled(made, tmp_path)
    assert report.objects_fetched == len(made.objects)


def test_without_a_good_mirror(made: Made, mirrors: Callable[[str], str], tmp_path: Path) -> None:
    places = [mirrors(kind).encode() for kind in ("down", "wrong")]
    with pytest.raises(ContentsWrong, match="contents are wrong at http") as caught:
        pull(made.place / "app.cfs", tmp_path, made, mirrors=places)
    assert caught.value.exit_code == 3
    assert_nothing_wrong(made, tmp_path)
    assert not stored(tmp_path / "store")


def test_a_directory_is_a_mirror_too(made: Made, mirrors: Callable[[str], str], tmp_path: Path) -> None:
    pull(made.place / "app.cfs", tmp_path, made, mirrors=[mirrors("wrong").encode(), made.store])
    assert_pulled(made, tmp_path)
    with pytest.raises(InputError, match="cannot open"):
        pull(made.place / "app.cfs", tmp_path, made, mirrors=[bytes(tmp_path / "nothing")])
