"""Images go to places of files and come from there: web servers, object storage, directories, mirrors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.api.places import Made, Served, contents, is_object, make, path_of, stored
from tests.mkcfs import COMMAND, mkcfs
from tests.requirements import NEEDS_GO
from tests.servers.authority import Authority
from tests.servers.faulty import Asked, FaultyServer, Part, Wait, reply
from tests.servers.nginx import nginx
from tests.servers.registries import docker_registry
from tests.servers.s3 import SECRET, Storage, versitygw

Told = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Object storage that commands find by the environment."""
    with versitygw(tmp_path / "s3") as storage:
        for name, value in storage.environment.items():
            monkeypatch.setenv(name, value)
        yield storage


def push(made: Made, place: str | Path, *words: str | Path) -> Told:
    report: Told = json.loads(mkcfs("push", made.image, "--store", made.store, place, "--json", *words).stdout)
    return report


def pull(made: Made, place: str, target: Path, *words: str | Path) -> Told:
    """Pull with the key, and look whether all of it came."""
    check: list[str | Path] = ["--key", made.place / "release.pub", "--json"]
    done = mkcfs("pull", place, target / "got.cfs", "--store", target / "store", *check, *words)
    for suffix in ("", ".sig"):
        assert (target / f"got.cfs{suffix}").read_bytes() == (made.place / f"app.cfs{suffix}").read_bytes()
    assert contents(target / "store") == contents(made.place / "objects")
    report: Told = json.loads(done.stdout)
    assert report["signature"]["state"] == "verified"
    return report


def test_by_a_directory_to_a_web_server(made: Made, tmp_path: Path) -> None:
    assert push(made, f"{tmp_path}/www/")["objects_sent"] == len(made.objects)
    authority = Authority(tmp_path / "authority")
    certificate = authority.issue("localhost", hosts=("localhost", "127.0.0.1"))
    with nginx(tmp_path / "www", tmp_path / "nginx", certificate=certificate) as base:
        trusted: list[str | Path] = ["--ca-file", authority.certificate]
        report = pull(made, f"{base}app.cfs", tmp_path, *trusted)
        assert report["requests"] == report["objects_fetched"] == len(made.objects)
        again = pull(made, f"{base}app.cfs", tmp_path, *trusted)
        assert (again["objects_fetched"], again["requests"]) == (0, 0)
        stores: list[str | Path] = ["--store", f"{base}objects", *trusted]
        mkcfs("verify", tmp_path / "got.cfs", *stores)
        mkcfs("extract", tmp_path / "got.cfs", tmp_path / "out", *stores)
        planned = json.loads(mkcfs("plan", f"{base}app.cfs", f"{base}app.cfs", *trusted, "--json").stdout)
        assert planned["cost"]["objects"] == 0
        done = mkcfs("pull", f"{base}app.cfs", tmp_path / "x", "--store", tmp_path / "y", check=False)
        assert done.code == 1
        assert b"certificate verify failed" in done.stderr


@NEEDS_GO
@pytest.mark.parametrize("place", ["s3://bucket", "s3://bucket/a/b/", "s3://bucket/with%20space/%C3%BC+%25/"])
def test_object_storage(place: str, storage: Storage, made: Made, tmp_path: Path) -> None:
    first = push(made, place)
    assert (first["objects_sent"], first["objects"]) == (len(made.objects), len(made.objects))
    second = push(made, place)
    assert (second["objects_sent"], second["bytes_sent"]) == (0, 0)
    (image,) = storage.bucket.rglob("app.cfs")
    assert sorted(path.name for path in image.parent.iterdir() if not path.name.startswith(".")) == [
        "app.cfs",
        "app.cfs.sig",
        "objects",
    ]
    base = place.rstrip("/")
    report = pull(made, f"{base}/app.cfs", tmp_path)
    assert report["objects_fetched"] == len(made.objects)
    mkcfs("verify", tmp_path / "got.cfs", "--store", f"{base}/objects")


@NEEDS_GO
def test_an_image_whose_name_needs_escapes(storage: Storage, made: Made, tmp_path: Path) -> None:
    name = "my app+ü 100%.cfs"
    for suffix in ("", ".sig"):
        shutil.copy(f"{made.image.decode()}{suffix}", tmp_path / f"{name}{suffix}")
    mkcfs("push", tmp_path / name, "--store", made.store, "s3://bucket/a/")
    mkcfs("push", tmp_path / name, "--store", made.store, f"{tmp_path}/www/")
    escaped = "my%20app+%C3%BC%20100%25.cfs"
    pull(made, f"s3://bucket/a/{escaped}", tmp_path)
    with nginx(tmp_path / "www", tmp_path / "nginx") as base:
        pull(made, f"{base}{escaped}", tmp_path)
    pull(made, f"file://{tmp_path}/www/{escaped}", tmp_path)
    pull(made, f"{tmp_path}/www/{name}", tmp_path)


@NEEDS_GO
def test_a_store_is_pushed_once(storage: Storage, made: Made, tmp_path: Path) -> None:
    """Among ten thousand others: what is there is listed, page by page."""
    objects = storage.bucket / "objects"
    for number in range(10_000):
        path = objects / f"{number % 256:02x}" / f"{number:062x}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    words: list[str | bytes | Path] = ["store", "push", "--store", made.store, "s3://bucket/objects"]
    first = json.loads(mkcfs(*words, "--json").stdout)
    assert (first["objects"], first["objects_sent"]) == (len(made.objects),) * 2
    assert mkcfs(*words).stdout.startswith(f"s3://bucket/objects: 0 of {len(made.objects)} objects sent".encode())
    assert json.loads(mkcfs(*words, made.image, "--json").stdout)["objects_sent"] == 0
    # And back: another store takes what this one lists.
    (cut,) = [path for path in objects.rglob("*") if path.name == min(made.objects)[3:]]
    cut.write_bytes(b"short")
    assert json.loads(mkcfs(*words, made.image, "--json").stdout)["objects_sent"] == 1
    for path in objects.rglob("0000*"):
        path.unlink()
    back = mkcfs("store", "push", "--store", "s3://bucket/objects", tmp_path / "back", "--json")
    assert json.loads(back.stdout)["objects_sent"] == len(made.objects)
    assert contents(tmp_path / "back") == contents(made.place / "objects")


@NEEDS_GO
def test_wrong_credentials(storage: Storage, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    cases: list[list[str | bytes | Path]] = [
        ["push", made.image, "s3://bucket/a/", "--store", made.store],
        ["store", "push", "s3://bucket/a", "--store", made.store],
        ["pull", "s3://bucket/a/app.cfs", "x.cfs", "--store", made.place / "none"],
    ]
    for words in cases:
        done = mkcfs(*words, "--debug", check=False)
        assert done.code == 1
        assert b": access denied" in done.stderr
        assert b"wrong-secret" not in done.stderr
        assert SECRET.encode() not in done.stderr
    assert not list(storage.bucket.iterdir())


def test_a_token_that_has_expired(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"

    def answer(asked: Asked) -> Iterable[Part]:
        return [reply(400 if asked.method == "GET" else 403, said, "Content-Type: application/xml")]

    with FaultyServer(answer) as server:
        variables = {
            "AWS_ENDPOINT_URL": server.address().rstrip("/"),
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hidden",
            "AWS_SESSION_TOKEN": "hidden-token",
            "AWS_ALLOW_HTTP": "true",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = mkcfs("store", "push", "--store", made.store, "s3://bucket/a", "--debug", check=False)
    assert done.code == 1
    assert b"ExpiredToken: The provided token has expired." in done.stderr
    assert b"hidden" not in done.stderr
    assert any(asked.headers.get("x-amz-security-token") == "hidden-token" for asked in server.asked)


def test_a_registry_with_mirrors(made: Made, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host, FaultyServer(Served(made.place)) as server:
        place = f"docker://{host}/app:1"
        mkcfs("push", made.image, "--store", made.store, place)
        mirrored = pull(made, place, tmp_path / "a", "--from", server.address("objects"))
        assert mirrored["requests"] == len(made.objects)
        assert len([asked for asked in server.asked if is_object(asked)]) == len(made.objects)
        # What mirrors do not have comes from the layers.
        (tmp_path / "some").mkdir()
        for name in sorted(made.objects)[::2]:
            (tmp_path / "some" / name).parent.mkdir(exist_ok=True)
            shutil.copy(made.place / "objects" / name, tmp_path / "some" / name)
        mixed = pull(made, place, tmp_path / "b", "--from", tmp_path / "some", "--from", server.address("none"))
        assert mixed["objects_fetched"] == len(made.objects)


def test_mirrors_of_which_none_is_good(made: Made, tmp_path: Path) -> None:
    def flipped(asked: Asked, data: bytes) -> Iterable[Part] | None:
        return [reply(200, bytes([data[0] ^ 1]) + data[1:])] if is_object(asked) else None

    with FaultyServer(Served(made.place, flipped)) as wrong:
        mirrors = ["--from", "http://127.0.0.1:1/objects", "--from", wrong.address("objects")]
        words: list[str | bytes | Path] = [made.image, tmp_path / "got.cfs", "--store", tmp_path / "store", *mirrors]
        done = mkcfs("pull", *words, check=False)
        assert done.code == 3
        assert b"contents are wrong at http" in done.stderr
        assert not (tmp_path / "got.cfs").exists()
        assert not stored(tmp_path / "store")
        mkcfs("pull", *words, "--from", made.store)
    assert contents(tmp_path / "store") == contents(made.place / "objects")


def test_a_store_is_repaired_from_where_it_was_pushed(made: Made, tmp_path: Path) -> None:
    mkcfs("store", "push", "--store", made.store, tmp_path / "www/objects")
    shutil.copytree(made.place / "objects", tmp_path / "local")
    for name in sorted(made.objects)[:5]:
        (tmp_path / "local" / name).write_bytes(b"!")
    with nginx(tmp_path / "www", tmp_path / "nginx") as base:
        mkcfs("store", "fsck", "--store", tmp_path / "local", "--repair", "--from", f"{base}objects")
    assert contents(tmp_path / "local") == contents(made.place / "objects")


REFUSED: dict[str, tuple[str, str]] = {
    "options of layers": ("push IMAGE DIR/ --store STORE --compression gzip", "--compression is only for docker://"),
    "no such directory": ("push IMAGE registry.example/app --store STORE", "is no place of images"),
    "a web server": ("push IMAGE https://h.example/x/ --store STORE", "web servers take no uploads"),
    "no store": ("push IMAGE DIR/", "add --store"),
    "no store to push": ("store push DIR", "add --store"),
    "a store of pull": (
        "pull IMAGE x.cfs --store https://h.example/o",
        "to fetch objects from there, use --from",
    ),
    "a store of build": ("build DIR x.cfs --store s3://b/o", "with `mkcfs store push`"),
    "no file": ("pull https://h.example x.cfs --store STORE", "names no image"),
    "options of registries": ("pull IMAGE x.cfs --store STORE --plain-http", "only for an image in a registry"),
}


def test_what_is_said_of_a_pull(made: Made, tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"file": b"x" * 1000})
    words: list[str | bytes | Path] = ["--store", tmp_path / "store", "--key", one.place / "release.pub", "-v"]
    done = mkcfs("pull", one.image, tmp_path / "got.cfs", *words)
    said = "1 of 1 objects fetched, 1000 B in 1 request; signature verified by "
    assert done.stderr.decode().startswith(f"{tmp_path}/got.cfs: {said}")
    done = mkcfs("pull", made.image, "--store", tmp_path / "store", "--dry-run")
    first, second, *_ = done.stdout.decode().splitlines()
    assert first.startswith(f"{len(made.objects)} of {len(made.objects)} objects to fetch, ")
    assert first.endswith(f" in {len(made.objects)} requests; not checked: no key and no digest was given")
    assert second == "directories:"
    done = mkcfs("pull", one.image, tmp_path / "got.cfs", *words)
    assert done.stderr.decode().startswith(f"{tmp_path}/got.cfs: 0 of 1 objects fetched, nothing to ask for; ")


def test_a_layout_in_a_directory_is_no_place_of_files(made: Made, tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    mkcfs("push", made.image, "--store", made.store, f"oci:{tmp_path}/layout/")
    assert (tmp_path / "layout/index.json").is_file()
    assert not (tmp_path / "layout/objects").exists()


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(words: str, text: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.place / "objects", tmp_path / "store")
    before = sorted(tmp_path.iterdir())
    names = {"IMAGE": made.image.decode(), "STORE": f"{tmp_path}/store", "DIR/": f"{tmp_path}/", "DIR": str(tmp_path)}
    done = mkcfs(*[names.get(word, word) for word in words.split()], check=False)
    assert done.code in {1, 2}
    assert text in done.stderr.decode()
    assert sorted(tmp_path.iterdir()) == before


# A pull that is killed


class Slow:
    """Serves so many objects, and then holds its answers until it is let go."""

    def __init__(self, root: Path, allowed: int) -> None:
        self._served = Served(root, self._hold)
        self._left = allowed
        self.stopped = Event()

    def __call__(self, asked: Asked) -> Iterable[Part]:
        return self._served(asked)

    def _hold(self, asked: Asked, _data: bytes) -> Iterable[Part] | None:
        if not is_object(asked):
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        self.stopped.set()
        return [Wait(60)]


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_pull_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    made = make(tmp_path / "made", {f"{number:04}": f"{number:05}".encode() * 30 for number in range(1300)})
    store = tmp_path / "store"
    slow = Slow(made.place, 1100)
    with FaultyServer(slow) as server:
        words = ["pull", server.address("app.cfs"), str(tmp_path / "got.cfs"), "--store", str(store)]
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert slow.stopped.wait(60)
            until(lambda: len(stored(store)) >= 500)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    there = stored(store)
    assert not (tmp_path / "got.cfs").exists()
    good = contents(made.place / "objects")
    assert all(good[name] == data for name, data in contents(store).items())
    with FaultyServer(Served(made.place)) as server:
        report = pull(made, server.address("app.cfs"), tmp_path)
    asked = {path_of(one).removeprefix("objects/") for one in server.asked if is_object(one)}
    assert asked == made.objects - there
    assert report["objects_fetched"] == len(made.objects) - len(there)
    assert report["bytes_fetched"] == 150 * len(asked)
    # What the killed one left behind is gone.
    assert sorted(name for name in os.listdir(store) if len(name) != 2) == [".mkcfs-lock"]
