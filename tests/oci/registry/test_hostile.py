"""Registries that lie, fail or listen in: what is said, what is not said, and to whom nothing is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import AccessDenied, CfsError, CheckFailed, LimitExceeded, NetworkError, OciError
from cfstools.oci.content import Content
from cfstools.oci.descriptor import Descriptor, Digest, Platform
from cfstools.oci.images import OciImages
from cfstools.oci.registry.reference import RegistryOptions, parse_image_reference
from cfstools.oci.registry.referrers import MAX_PAGES, MAX_REFERRERS, attach, referrers, tag_of
from cfstools.oci.registry.remote import Registries
from cfstools.oci.registry.repository import ManifestDocument
from cfstools.oci.registry.uploads import Blob, Uploader
from cfstools.oci.select import Selector
from cfstools.sources.oci import read_oci
from cfstools.streams.buffered import read_up_to
from cfstools.streams.limits import MAX_JSON
from cfstools.transport.base import BytesBody, Span
from cfstools.transport.open import NetworkOptions
from cfstools.transport.retry import Clock
from tests.mkcfs import mkcfs
from tests.oci import making
from tests.oci.making import MANIFEST, member, tar
from tests.oci.registry.conftest import PASSWORD, USER, auth_file, some_layers
from tests.servers.authority import Authority
from tests.servers.faulty import CUT, Asked, FaultyServer, Part, head, reply, serve
from tests.servers.images import OneImage, problem

IMAGE = making.image(some_layers(), "+gzip")
NO_WAIT = Clock(sleep=lambda _seconds: None)
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Running:
    """A scripted registry that runs, as the library sees it."""

    def __init__(self, server: FaultyServer, registries: Registries, warnings: list[str]) -> None:
        self.server = server
        self.host = f"127.0.0.1:{server.port}"
        self.registries = registries
        self.warnings = warnings

    @property
    def reference(self) -> str:
        return f"docker://{self.host}/app:1"

    def content(self, tag: str = ":1") -> Content:
        return self.registries.content(parse_image_reference(f"docker://{self.host}/app{tag}"))

    def build(self, tag: str = ":1") -> str:
        """Read the image; the result is its tree as text."""
        return repr(read_oci(OciImages(self.content(tag), "docker")).root)

    def uploader(self, **words: Any) -> Uploader:
        return Uploader(self.registries.writable(parse_image_reference(self.reference)), **words)

    @property
    def targets(self) -> list[str]:
        return [f"{asked.method} {asked.target}" for asked in self.server.asked]


@contextmanager
def running(answer: Callable[[Asked], Iterable[Part]], *, connections: int = 8) -> Iterator[Running]:
    warnings: list[str] = []
    options = RegistryOptions(plain_http=True, network=NetworkOptions(connections=connections))
    with FaultyServer(answer) as server, Registries(options, warn=warnings.append, clock=NO_WAIT) as registries:
        yield Running(server, registries, warnings)


def expected() -> str:
    from cfstools.oci.files import MemoryFiles
    from cfstools.oci.images import layout_images

    return repr(read_oci(layout_images(MemoryFiles(IMAGE))).root)


def on_manifest(*answer: Part) -> OneImage:
    """A registry that answers requests for manifests so."""
    return OneImage(IMAGE, lambda asked: answer if "/manifests/" in asked.target else None)


# Manifests


def test_manifests_of_all_sizes() -> None:
    good = json.loads(OneImage(IMAGE).manifest)
    padded = json.dumps({**good, "annotations": {"a": "x"}}).encode()
    data = padded[:-1] + b" " * (MAX_JSON - len(padded)) + b"}"
    assert len(data) == MAX_JSON
    with running(on_manifest(reply(200, data, f"Content-Type: {MANIFEST}"))) as registry:
        assert registry.build() == expected()
    for cause in (
        reply(200, data + b" ", f"Content-Type: {MANIFEST}"),
        head(200, f"Content-Type: {MANIFEST}", "Transfer-Encoding: chunked")
        + b"".join(b"100000\r\n" + b" " * 0x100000 + b"\r\n" for _ in range(5)),
        reply(200, data[:100], f"Content-Length: {1 << 62}"),
    ):
        with running(on_manifest(cause, CUT)) as registry, pytest.raises(NetworkError):
            registry.build()


def test_manifests_with_another_digest() -> None:
    other = "sha256:" + "0" * 64
    one = OneImage(IMAGE)
    wrong = reply(200, one.manifest, f"Content-Type: {MANIFEST}", f"Docker-Content-Digest: {other}")
    with running(on_manifest(wrong)) as registry, pytest.raises(CheckFailed, match=r"manifest 1: the contents have"):
        registry.build()
    plain = reply(200, one.manifest, f"Content-Type: {MANIFEST}")
    with running(on_manifest(plain)) as registry:
        assert registry.build() == expected()
        with pytest.raises(CheckFailed, match=f"manifest {other}"):
            registry.build(f"@{other}")
        assert registry.build(f"@{one.digest}") == expected()
    odd = reply(200, one.manifest, f"Content-Type: {MANIFEST}; charset=utf-8", "Docker-Content-Digest: md5:12")
    with running(on_manifest(odd)) as registry:
        assert registry.build() == expected()


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        ("application/vnd.oci.image.index.v1+json", "the registry calls it"),
        ("application/vnd.docker.distribution.manifest.v2+json", "the registry calls it"),
        ("application/octet-stream", None),
        ("", None),
        ("text/html; charset=utf-8", None),
    ],
)
def test_the_type_of_a_manifest(stated: str, text: str | None) -> None:
    with running(on_manifest(reply(200, OneImage(IMAGE).manifest, f"Content-Type: {stated}"))) as registry:
        if text is None:
            assert registry.build() == expected()
        else:
            with pytest.raises(OciError, match=text):
                registry.build()


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", b"[]", b"{}", b'{"schemaVersion": 1, "fsLayers": []}', b'{"a": 1, "a": 2}', b"[" * 100],
)
def test_manifests_that_are_none(data: bytes) -> None:
    with running(on_manifest(reply(200, data, f"Content-Type: {MANIFEST}"))) as registry, pytest.raises(CfsError):
        registry.build()


def test_two_hundred_headers() -> None:
    headers = [f"X-{number}: y" for number in range(200)]
    answer = reply(200, OneImage(IMAGE).manifest, *headers)
    with running(on_manifest(answer)) as registry, pytest.raises(NetworkError):
        registry.build()


# Blobs


def cut_after(count: int) -> OneImage:
    """A registry whose connections break after so many bytes of a blob."""

    def override(asked: Asked) -> Iterable[Part] | None:
        found = asked.target.rpartition("/")[2]
        if "/blobs/" not in asked.target or found not in one.blobs:
            return None
        whole = serve(one.blobs[found], asked)
        at = whole.index(b"\r\n\r\n") + 4 + count
        return [whole[:at], CUT] if at < len(whole) else [whole]

    one = OneImage(making.image(some_layers()), override)
    return one


def test_connections_that_break_are_taken_up() -> None:
    with running(cut_after(70_000)) as registry:
        assert registry.build() == expected_plain()
        ranges = [asked.headers["range"] for asked in registry.server.asked if "range" in asked.headers]
        assert len(ranges) >= 5
        assert len(set(ranges)) == len(ranges)


def expected_plain() -> str:
    from cfstools.oci.files import MemoryFiles
    from cfstools.oci.images import layout_images

    return repr(read_oci(layout_images(MemoryFiles(making.image(some_layers())))).root)


def test_connections_that_break_without_end_are_given_up() -> None:
    with running(cut_after(0)) as registry, pytest.raises(NetworkError):
        registry.build()


def test_a_registry_without_ranges_is_read_again_from_the_start() -> None:
    layer = tar(member("usr"), member("usr/big", os.urandom(48 << 20)))
    attempts: list[int] = []

    def override(asked: Asked) -> Iterable[Part] | None:
        if not asked.target.endswith(one.layers[0]):
            return None
        whole = reply(200, one.blobs[one.layers[0]])
        attempts.append(1)
        return [whole[: 47 << 20], CUT] if len(attempts) == 1 else [whole]

    one = OneImage(making.image([layer]), override)
    with running(one) as registry:
        registry.build()
        (warning,) = registry.warnings
        assert "the registry gives no ranges; fetching all" in warning


@pytest.mark.parametrize("change", ["flip", "short", "absent", "html"])
def test_wrong_blobs(change: str) -> None:
    def override(asked: Asked) -> Iterable[Part] | None:
        if not asked.target.endswith(one.layers[1]):
            return None
        data = bytearray(one.blobs[one.layers[1]])
        if change == "absent":
            return [problem(404, "BLOB_UNKNOWN", "blob unknown to registry")]
        if change == "html":
            return [reply(200, b"<html>", "Content-Type: text/html")]
        if change == "short":
            del data[-1]
        else:
            data[-20] ^= 1
        return [serve(bytes(data), asked)]

    one = OneImage(IMAGE, override)
    with running(one) as registry, pytest.raises((CheckFailed, NetworkError, OciError)) as caught:
        registry.build()
    assert one.layers[1].removeprefix("sha256:") in str(caught.value)
    if change == "absent":
        assert "BLOB_UNKNOWN: blob unknown to registry" in str(caught.value)


def test_the_first_error_of_several_layers_ends_the_others() -> None:
    """Layers that would come for ever do not keep the build from failing."""
    forever = threading.Event()

    def override(asked: Asked) -> Iterable[Part] | None:
        if asked.target.endswith(one.layers[2]):
            return [problem(404, "BLOB_UNKNOWN", "gone")]
        if asked.target.endswith(one.layers[1]):
            return dripping()
        return None

    def dripping() -> Iterator[Part]:
        yield head(200, length=len(one.blobs[one.layers[1]]))
        for byte in one.blobs[one.layers[1]]:
            forever.wait(0.02)
            yield bytes([byte])

    one = OneImage(making.image(some_layers()), override)
    with running(one) as registry, pytest.raises(NetworkError, match="gone"):
        registry.build()


def test_three_layers_come_at_once() -> None:
    """Each answer waits until all three layers were asked for."""
    together = threading.Barrier(3, timeout=60)

    def override(asked: Asked) -> Iterable[Part] | None:
        if asked.target.rpartition("/")[2] in one.layers:
            together.wait()
        return None

    one = OneImage(IMAGE, override)
    with running(one) as registry:
        assert registry.build() == expected()


def test_mirrors_that_lie_are_left_for_the_next(tmp_path: Path) -> None:
    def lying(asked: Asked) -> Iterable[Part] | None:
        if "/manifests/" in asked.target:
            return [reply(200, OneImage(IMAGE).manifest + b" ", f"Content-Type: {MANIFEST}")]
        return [problem(500, "UNKNOWN", "down")]

    one = OneImage(IMAGE)
    with FaultyServer(OneImage(IMAGE, lying)) as bad, FaultyServer(one) as good:
        configuration = tmp_path / "registries.conf"
        configuration.write_text(
            f'[[registry]]\nlocation = "127.0.0.1:{good.port}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "127.0.0.1:{bad.port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        warnings: list[str] = []
        options = RegistryOptions(configurations=(bytes(configuration),), plain_http=True)
        reference = parse_image_reference(f"docker://127.0.0.1:{good.port}/app@{one.digest}")
        with Registries(options, warn=warnings.append, clock=NO_WAIT) as registries:
            assert repr(read_oci(OciImages(registries.content(reference), "docker")).root) == expected()
        assert f"docker://127.0.0.1:{bad.port}/app is skipped" in warnings[0]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_layer_that_is_wrong_at_a_mirror_is_fetched_from_the_next_place(wrong: int, tmp_path: Path) -> None:
    def flipped(asked: Asked) -> Iterable[Part] | None:
        digest = asked.target.rpartition("/")[2]
        if digest != one.layers[wrong]:
            return None
        data = bytearray(one.blobs[digest])
        data[len(data) // 2] ^= 1
        return [serve(bytes(data), asked)]

    one = OneImage(IMAGE)
    with FaultyServer(OneImage(IMAGE, flipped)) as bad, FaultyServer(one) as good:
        text = (
            '[[registry]]\nlocation = "127.0.0.1:{0}"\n[[registry.mirror]]\nlocation = "127.0.0.1:{1}"\n'
            '[[registry.mirror]]\nlocation = "127.0.0.1:{1}"\n'
        )
        configuration = tmp_path / "registries.conf"
        options = RegistryOptions(configurations=(bytes(configuration),), plain_http=True)
        for last, fails in ((good, False), (bad, True)):
            configuration.write_text(text.format(last.port, bad.port), encoding="utf-8")
            reference = parse_image_reference(f"docker://127.0.0.1:{last.port}/app:1")
            warnings: list[str] = []
            with Registries(options, warn=warnings.append, clock=NO_WAIT) as registries:
                images = OciImages(registries.content(reference), "docker")
                if fails:
                    with pytest.raises(CheckFailed, match=one.layers[wrong].removeprefix("sha256:")):
                        read_oci(images)
                else:
                    assert repr(read_oci(images).root) == expected()
                    assert f"fetching {one.layers[wrong]} from here" in warnings[-1]


# Credentials


class Guarded:
    """A registry that wants a token, and the server that gives them; ``good`` are the tokens it takes."""

    def __init__(self, *, challenge: str = "", lifetime: int = 300) -> None:
        self.one = OneImage(IMAGE, self.answer)
        self.good: set[str] = set()
        self.uses: dict[str, int] = {}
        self.given = 0
        self.challenge = challenge
        self.host = ""
        self.allowed = 1 << 30
        self.body: dict[str, Any] | None = None

    def answer(self, asked: Asked) -> Iterable[Part] | None:
        if asked.target.startswith("/token"):
            self.given += 1
            token = f"s3cret-{self.given}"
            self.good = {token}
            return [
                reply(200, json.dumps({"token": token, "expires_in": 1} if self.body is None else self.body).encode())
            ]
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        self.uses[token] = self.uses.get(token, 0) + 1
        if token in self.good and self.uses[token] <= self.allowed:
            return None
        challenge = self.challenge or f'Bearer realm="http://{asked.headers["host"]}/token",service="test"'
        return [problem(401, "UNAUTHORIZED", f"no {token}", f"WWW-Authenticate: {challenge}")]


def test_a_token_that_ends_is_renewed() -> None:
    guarded = Guarded()
    guarded.allowed = 1
    with running(guarded.one, connections=1) as registry:
        assert registry.build() == expected()
        assert guarded.given == 5  # the manifest, the config, three layers
        scopes = {target.partition("scope=")[2] for target in registry.targets if "/token" in target}
        assert scopes == {"repository:app:pull"}


def test_one_token_for_all_threads() -> None:
    guarded = Guarded()
    with running(guarded.one) as registry:
        assert registry.build() == expected()
        assert guarded.given == 1


def test_tokens_that_are_refused_end_it_after_a_second() -> None:
    guarded = Guarded()
    guarded.allowed = 0
    with running(guarded.one) as registry, pytest.raises(AccessDenied) as caught:
        registry.build()
    assert guarded.given <= 2
    assert "s3cret" not in str(caught.value)
    assert "access denied (UNAUTHORIZED: no ***)" in str(caught.value)


def test_a_refusal_without_a_challenge_asks_the_root() -> None:
    guarded = Guarded()

    def answer(asked: Asked) -> Iterable[Part]:
        parts = list(guarded.one(asked))
        if parts[0].startswith(b"HTTP/1.1 401") and asked.target != "/v2/":  # type: ignore[union-attr]
            return [reply(401, b"no")]
        return parts

    with running(answer) as registry:
        assert registry.build() == expected()
        assert registry.targets.count("GET /v2/") == 1


@pytest.mark.parametrize(
    ("challenge", "text"),
    [
        ('Bearer realm="ftp://127.0.0.1/token"', "the token server cannot be used"),
        ('Bearer realm="http://me:s3cret@127.0.0.1/token"', "the token server cannot be used"),
        ('Bearer realm="/token"', "the token server cannot be used"),
        ("Negotiate", "access denied"),
        ('Digest realm="x", nonce="y"', "access denied"),
        ("Basic realm=x", "access denied"),
        ("", "access denied"),
    ],
)
def test_challenges_that_cannot_be_answered(challenge: str, text: str) -> None:
    answer = [reply(401, b"", *([f"WWW-Authenticate: {challenge}"] if challenge else []))]
    with running(lambda _asked: answer) as registry, pytest.raises(NetworkError, match=text) as caught:
        registry.build()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [{"token": "s3cret\r\nX-Evil: 1"}, {"token": ["s3cret"]}, {}, {"token": "s3cret" * 200_000}],
    ids=["a line", "a list", "nothing", "too long"],
)
def test_tokens_that_are_none(body: dict[str, Any]) -> None:
    guarded = Guarded()
    guarded.body = body
    with running(guarded.one) as registry, pytest.raises(CfsError) as caught:
        registry.build()
    assert "s3cret" not in str(caught.value)


def test_a_password_goes_to_nobody_else(tmp_path: Path) -> None:
    """A blob is redirected to another origin, and an upload is sent there: neither is told who we are."""
    with FaultyServer(lambda asked: [serve(one.blobs[asked.target.rpartition("/")[2]], asked)]) as elsewhere:

        def override(asked: Asked) -> Iterable[Part] | None:
            if asked.headers.get("authorization") != BASIC:
                return [problem(401, "UNAUTHORIZED", "who?", 'WWW-Authenticate: Basic realm="x"')]
            if "/blobs/" in asked.target:
                return [reply(307, b"", f"Location: {elsewhere.address(asked.target.rpartition('/')[2])}?sig=s3cret")]
            return None

        def redirected(asked: Asked) -> bytes:
            return one.blobs[asked.target.rpartition("/")[2].partition("?")[0]]

        one = OneImage(IMAGE, override)
        elsewhere._answer = lambda asked: [serve(redirected(asked), asked)]
        with FaultyServer(one) as server:
            path = auth_file(tmp_path / "auth.json", f"127.0.0.1:{server.port}")
            options = RegistryOptions(plain_http=True, auth_files=(bytes(path),))
            with Registries(options, clock=NO_WAIT) as registries:
                reference = parse_image_reference(f"docker://127.0.0.1:{server.port}/app:1")
                assert repr(read_oci(OciImages(registries.content(reference), "docker")).root) == expected()
            assert any("authorization" in asked.headers for asked in server.asked)
        assert len(elsewhere.asked) >= 4
        assert not any("authorization" in asked.headers for asked in elsewhere.asked)


def test_no_message_tells_a_credential(tmp_path: Path) -> None:
    """A registry that repeats in its errors what it was sent, in the line, in --debug and in a redirect."""

    def answer(asked: Asked) -> Iterable[Part]:
        sent = asked.headers.get("authorization", "")
        if not sent:
            return [problem(401, "UNAUTHORIZED", "who?", 'WWW-Authenticate: Basic realm="x"')]
        told = f"you sent {sent} {PASSWORD}"
        if asked.target.endswith("redirected"):
            return [reply(307, b"", f"Location: ftp://{USER}:{PASSWORD}@else.example/?sig={sent}")]
        return [problem(403, PASSWORD, told, f'Warning: 299 - "{told}"')]

    with FaultyServer(answer) as server:
        path = auth_file(tmp_path / "auth.json", f"127.0.0.1:{server.port}")
        for tag in ("1", "redirected"):
            words: list[str | Path] = [
                f"docker://127.0.0.1:{server.port}/app:{tag}",
                "--authfile",
                path,
                "--plain-http",
                "--debug",
            ]
            done = mkcfs("build", *words, "--print-digest-only", check=False)
            assert done.code == 1
            said = done.stdout + done.stderr
            assert PASSWORD.encode() not in said
            assert BASIC.removeprefix("Basic ").encode() not in said


def test_a_server_that_wants_more_scopes(tmp_path: Path) -> None:
    """It says so of the token that our scope gave; only scopes of repositories are added."""
    guarded = Guarded()

    def answer(asked: Asked) -> Iterable[Part]:
        parts = list(guarded.one(asked))
        if asked.headers.get("authorization") and "other" not in registry.targets[-1 - asked_since_token()]:
            more = 'error="insufficient_scope",scope="repository:other:pull registry:catalog:*"'
            realm = f'Bearer realm="http://{asked.headers["host"]}/token",{more}'
            return [problem(401, "DENIED", "more", f"WWW-Authenticate: {realm}")]
        return parts

    def asked_since_token() -> int:
        return next(at for at, target in enumerate(reversed(registry.targets)) if "/token" in target)

    with running(answer, connections=1) as registry:
        assert registry.build() == expected()
        tokens = [target for target in registry.targets if "/token" in target]
        assert len(tokens) == 2
        assert tokens[1].endswith("scope=repository:app:pull&scope=repository:other:pull")


def test_a_token_server_without_tls_gets_no_password(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("server")
    challenge = 'WWW-Authenticate: Bearer realm="http://127.0.0.1:9/token"'
    answer = [problem(401, "UNAUTHORIZED", "who?", challenge)]
    with FaultyServer(lambda _asked: answer, (str(certificate), str(key))) as server:
        path = auth_file(tmp_path / "auth.json", f"127.0.0.1:{server.port}")
        network = NetworkOptions(authorities=(bytes(authority.certificate),))
        options = RegistryOptions(auth_files=(bytes(path),), network=network)
        reference = parse_image_reference(f"docker://127.0.0.1:{server.port}/app:1")
        with Registries(options, clock=NO_WAIT) as registries, pytest.raises(NetworkError) as caught:
            registries.content(reference).resolve(None)
    assert "the token server http://127.0.0.1:9/token refused: it leaves https" in str(caught.value)


# Indexes


def two_images() -> OneImage:
    """An index of two images, and of one that is not there."""
    made = making.Layout()
    entries = []
    for architecture in ("amd64", "arm64"):
        layer = tar(member("usr"), member("usr/a", architecture.encode() * 20))
        manifest = made.manifest([layer], config={"architecture": architecture})
        entries.append({**manifest, "platform": {"os": "linux", "architecture": architecture}})
    absent = {**entries[0], "digest": "sha256:" + "7" * 64, "platform": {"os": "linux", "architecture": "riscv64"}}
    return OneImage(made.tag(made.index([*entries, absent])).files())


def test_images_of_an_index_that_are_missing_are_skipped() -> None:
    with running(two_images()) as registry:
        images = OciImages(registry.content(), "docker")
        with pytest.raises(OciError, match="2 images match"):
            images.image()
        arm = Selector(platform=Platform(os="linux", architecture="arm64"))
        assert images.image(arm).platform == arm.platform
        with pytest.raises((OciError, NetworkError)):
            images.image(Selector(platform=Platform(os="linux", architecture="riscv64")))


def test_a_manifest_whose_type_was_lost_is_found_among_the_manifests() -> None:
    one = OneImage(IMAGE)
    with running(one) as registry:
        content = registry.content()
        digest = Digest("sha256", one.digest.removeprefix("sha256:"))
        lost = Descriptor(media_type="application/octet-stream", digest=digest, size=len(one.manifest))
        one.blobs = {name: data for name, data in one.blobs.items() if name != one.digest}
        kept = OneImage(IMAGE)
        one.override = lambda asked: kept(asked) if "/manifests/" in asked.target else None
        assert content.read(lost, MAX_JSON) == kept.manifest
        with pytest.raises(LimitExceeded):
            content.read(lost, lost.size - 1)


def test_the_digest_of_a_manifest_that_the_registry_does_not_state() -> None:
    one = OneImage(IMAGE)

    def override(asked: Asked) -> Iterable[Part] | None:
        if "/manifests/" not in asked.target:
            return None
        return [head(200, length=len(one.manifest)) if asked.method == "HEAD" else reply(200, one.manifest)]

    one.override = override
    with running(one) as registry:
        repository = registry.registries.writable(parse_image_reference(registry.reference))
        assert str(repository.has_manifest("1")) == one.digest


# Referrers

SUBJECT = Digest("sha256", "5" * 64)


def artifact(subject: str = str(SUBJECT), **fields: Any) -> bytes:
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/x-kind",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": making.digest(b"{}"), "size": 2},
        "layers": [],
        "subject": {"mediaType": MANIFEST, "digest": subject, "size": 3},
        **fields,
    }
    return json.dumps(body).encode()


def entry(data: bytes) -> dict[str, Any]:
    return making.descriptor(data, MANIFEST)


def listed(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": making.INDEX, "manifests": list(entries)}).encode()


def referring(answers: dict[str, bytes]) -> Callable[[Asked], Iterable[Part]]:
    """A registry that answers by the end of the path."""

    def answer(asked: Asked) -> Iterable[Part]:
        for end, found in answers.items():
            if asked.target.endswith(end):
                return [found]
        return [problem(404, "MANIFEST_UNKNOWN", "manifest unknown")]

    return answer


def manifests(*data: bytes) -> dict[str, bytes]:
    return {f"/manifests/{making.digest(one)}": reply(200, one, f"Content-Type: {MANIFEST}") for one in data}


def index_reply(data: bytes, *headers: str) -> bytes:
    return reply(200, data, f"Content-Type: {making.INDEX}", *headers)


def found_by(answers: dict[str, bytes]) -> list[str]:
    with running(referring(answers)) as registry:
        repository = registry.registries.writable(parse_image_reference(registry.reference))
        return [str(one.digest) for one in referrers(repository, SUBJECT)]


def test_lists_that_lie() -> None:
    good, other, absent, odd = artifact(), artifact(f"sha256:{'6' * 64}"), artifact(a=1), b'{"subject": 5}'
    none = json.dumps({"config": {}}).encode()
    api = {f"/referrers/{SUBJECT}": index_reply(listed(*map(entry, (other, absent, odd, none, good, good))))}
    assert found_by({**api, **manifests(good, other, odd, none)}) == [making.digest(good)]
    lying = {**manifests(good), f"/manifests/{making.digest(absent)}": reply(200, good, f"Content-Type: {MANIFEST}")}
    assert found_by({**api, **lying}) == [making.digest(good)]


@pytest.mark.parametrize(
    "api",
    [
        reply(404, b"<html>"),
        problem(405, "UNSUPPORTED", "no"),
        reply(200, b"<html>", "Content-Type: text/html"),
        reply(200, b'{"manifests": 5}', f"Content-Type: {making.INDEX}"),
        reply(303, b"", "Location: /a/page"),
    ],
    ids=["404", "405", "html", "no index", "303"],
)
def test_what_is_no_list_leads_to_the_tag(api: bytes) -> None:
    good = artifact()
    tagged = {f"/manifests/{tag_of(SUBJECT)}": index_reply(listed(entry(good))), **manifests(good)}
    page = {"/a/page": reply(200, b"<html>please log in</html>", "Content-Type: text/html")}
    assert found_by({f"/referrers/{SUBJECT}": api, **page, **tagged}) == [making.digest(good)]
    assert found_by({f"/referrers/{SUBJECT}": api, **page}) == []


def test_a_tag_that_is_the_image_itself() -> None:
    body = listed(entry(artifact()))
    subject = Digest("sha256", hashlib.sha256(body).hexdigest())
    answers = {f"/manifests/{tag_of(subject)}": index_reply(body)}
    with running(referring(answers)) as registry:
        repository = registry.registries.writable(parse_image_reference(registry.reference))
        assert list(referrers(repository, subject)) == []


def test_pages_and_how_many() -> None:
    many = [artifact(a=number) for number in range(MAX_REFERRERS + 5)]
    path = f"/referrers/{SUBJECT}"
    pages = {
        path: index_reply(listed(*map(entry, many[:20])), f'Link: </v2/app{path}?page=2>; rel="next"'),
        "?page=2": index_reply(listed(*map(entry, many[20:]))),
    }
    assert found_by({**pages, **manifests(*many)}) == [making.digest(one) for one in many[:MAX_REFERRERS]]
    endless = {path: index_reply(listed(), f"Link: </v2/app{path}>; rel=next")}
    with running(referring(endless)) as registry:
        repository = registry.registries.writable(parse_image_reference(registry.reference))
        assert list(referrers(repository, SUBJECT)) == []
        assert len(registry.server.asked) == MAX_PAGES
    away = {path: index_reply(listed(), 'Link: <http://else.example/>; rel="next"')}
    with pytest.raises(NetworkError, match="the next page of referrers is refused"):
        found_by(away)


@pytest.mark.parametrize(("lost", "fails"), [(1, False), (9, True)])
def test_a_list_that_others_change_is_written_again(lost: int, fails: bool) -> None:
    """Whoever puts another list at the same moment takes our entry out of it; three times are enough."""
    lists: list[bytes] = []
    puts: list[str] = []

    def answer(asked: Asked) -> Iterable[Part]:
        if asked.method == "PUT":
            if tag_of(SUBJECT) in asked.target:
                puts.append(asked.target)
                if len(puts) > lost:
                    lists.append(asked.body)
            return [reply(201)]
        return [index_reply(lists[-1]) if lists else problem(404, "MANIFEST_UNKNOWN", "unknown")]

    data = artifact()
    document = ManifestDocument(MANIFEST, Digest("sha256", hashlib.sha256(data).hexdigest()), data)
    with running(answer) as registry:
        if fails:
            with pytest.raises(NetworkError, match="others change the list of referrers"):
                attach(registry.uploader(), SUBJECT, document)
            assert len(puts) == 3
        else:
            attach(registry.uploader(), SUBJECT, document)
            (found,) = json.loads(lists[-1])["manifests"]
            assert (found["artifactType"], found["digest"]) == ("application/x-kind", making.digest(data))


# Uploads


class Receiving:
    """A registry that takes uploads; ``override`` goes first, and ``limit`` is what one request may bring."""

    def __init__(self, override: Callable[[Asked], Iterable[Part] | None] = lambda _asked: None) -> None:
        self.override = override
        self.limit = 1 << 30
        self.least = 0
        self.sessions: dict[str, bytearray] = {}
        self.blobs: dict[str, bytes] = {}
        self.deleted: list[str] = []

    def __call__(self, asked: Asked) -> Iterable[Part]:
        changed = self.override(asked)
        return [self.answer(asked)] if changed is None else changed

    def answer(self, asked: Asked) -> bytes:
        path, _, query = asked.target.partition("?")
        session = path.rpartition("/")[2]
        match asked.method:
            case "HEAD":
                there = self.blobs.get(session)
                return head(404, length=0) if there is None else head(200, length=len(there))
            case "POST":
                name = str(len(self.sessions))
                self.sessions[name] = bytearray()
                more = [f"OCI-Chunk-Min-Length: {self.least}"] if self.least else []
                return reply(202, b"", f"Location: /v2/app/blobs/uploads/{name}?state=a%2Fb", *more)
            case "DELETE":
                self.deleted.append(session)
                return reply(204)
            case _:
                return self.take(asked, path, query)

    def take(self, asked: Asked, path: str, query: str) -> bytes:
        session = path.rpartition("/")[2]
        assert query.startswith("state=a%2Fb")
        if len(asked.body) > self.limit:
            return reply(413, b"too large")
        self.sessions[session] += asked.body
        return self.more(asked, path) if asked.method == "PATCH" else self.end(session, query)

    def more(self, asked: Asked, path: str) -> bytes:
        end = len(self.sessions[path.rpartition("/")[2]])
        assert asked.headers["content-range"] == f"{end - len(asked.body)}-{end - 1}"
        return reply(202, b"", f"Location: {path}?state=a%2Fb", f"Range: 0-{end - 1}")

    def end(self, session: str, query: str) -> bytes:
        data, digest = bytes(self.sessions[session]), query.partition("digest=")[2]
        if making.digest(data) != digest:
            return problem(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.blobs[digest] = data
        return reply(201, b"", f"Location: /v2/app/blobs/{digest}")


DATA = os.urandom(100_000)
BLOB = Blob(Digest("sha256", hashlib.sha256(DATA).hexdigest()), BytesBody(DATA))


def test_a_blob_goes_in_one_piece() -> None:
    receiving = Receiving()
    with running(receiving) as registry:
        assert registry.uploader().blob(BLOB)
        assert [asked.method for asked in registry.server.asked] == ["HEAD", "POST", "PUT"]
    assert receiving.blobs == {str(BLOB.digest): DATA}


def test_a_blob_that_is_too_large_goes_in_chunks() -> None:
    receiving = Receiving()
    receiving.limit, receiving.least = 40_000, 30_000
    with running(receiving) as registry:
        assert registry.uploader(chunk=1).blob(BLOB)  # which is less than the registry wants
        assert [asked.method for asked in registry.server.asked] == ["HEAD", "POST", *["PATCH"] * 4, "PUT"]
    assert receiving.blobs == {str(BLOB.digest): DATA}
    large = os.urandom(40 << 20)
    receiving = Receiving()
    receiving.limit = 20 << 20
    with running(receiving) as registry:
        assert registry.uploader().blob(Blob(Digest("sha256", hashlib.sha256(large).hexdigest()), BytesBody(large)))
        methods = [asked.method for asked in registry.server.asked]
        assert methods == ["HEAD", "POST", "PUT", "DELETE", "POST", *["PATCH"] * 3, "PUT"]
    receiving = Receiving()
    receiving.limit = 10
    with running(receiving) as registry, pytest.raises(NetworkError, match="the server answered 413"):
        registry.uploader().blob(BLOB)
    assert len(receiving.deleted) == 2


def test_a_failed_upload_begins_anew_three_times() -> None:
    failures: Iterator[list[Part]] = iter([[CUT], [reply(503)]])

    def override(asked: Asked) -> Iterable[Part] | None:
        return next(failures, None) if asked.method == "PUT" else None

    receiving = Receiving(override)
    with running(receiving) as registry:
        assert registry.uploader().blob(BLOB)
    assert receiving.blobs == {str(BLOB.digest): DATA}
    assert receiving.deleted == ["0", "1"]
    receiving = Receiving(lambda asked: [CUT] if asked.method == "PUT" else None)
    with running(receiving) as registry, pytest.raises(NetworkError):
        registry.uploader().blob(BLOB)
    assert len(receiving.sessions) == 3


@pytest.mark.parametrize(("kept", "sessions"), [(5000, 1), (20_000, 1), (1, 2), (30_000, 2), (0, 2)])
def test_a_broken_chunk_goes_on_where_the_registry_has_it(kept: int, sessions: int) -> None:
    """What cannot be meant, and "0-0", which may mean nothing at all, begins anew."""
    broken: list[Asked] = []

    def override(asked: Asked) -> Iterable[Part] | None:
        if asked.method == "PATCH" and asked.headers["content-range"].startswith("0-") and not broken:
            broken.append(asked)
            receiving.sessions["0"] += asked.body[:kept]
            return [CUT]
        if asked.method == "GET":
            return [reply(204, b"", *([f"Range: 0-{kept - 1}"] if kept else []))]
        return None

    receiving = Receiving(override)
    with running(receiving) as registry:
        assert registry.uploader(chunk=20_000).blob(BLOB)
    assert receiving.blobs == {str(BLOB.digest): DATA}
    assert len(receiving.sessions) == sessions


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://me:s3cret@127.0.0.1/x", "", "http://[/"])
def test_locations_that_are_refused(location: str) -> None:
    answer = reply(202, b"", *([f"Location: {location}"] if location else []))
    receiving = Receiving(lambda asked: [answer] if asked.method == "POST" else None)
    with running(receiving) as registry, pytest.raises(NetworkError) as caught:
        registry.uploader().blob(BLOB)
    assert "s3cret" not in str(caught.value)


def test_an_upload_elsewhere_is_not_told_who_we_are(tmp_path: Path) -> None:
    with FaultyServer(lambda _asked: [reply(201)]) as elsewhere:

        def override(asked: Asked) -> Iterable[Part] | None:
            if asked.headers.get("authorization") != BASIC:
                return [problem(401, "UNAUTHORIZED", "who?", 'WWW-Authenticate: Basic realm="x"')]
            if asked.method == "POST":
                return [reply(202, b"", f"Location: {elsewhere.address('there')}?a=b")]
            return None

        with FaultyServer(Receiving(override)) as server:
            path = auth_file(tmp_path / "auth.json", f"127.0.0.1:{server.port}")
            options = RegistryOptions(plain_http=True, auth_files=(bytes(path),))
            with Registries(options, clock=NO_WAIT) as registries:
                reference = parse_image_reference(f"docker://127.0.0.1:{server.port}/app:1")
                assert Uploader(registries.writable(reference)).blob(BLOB)
        (sent,) = elsewhere.asked
        assert (sent.method, sent.target) == ("PUT", f"/there?a=b&digest={BLOB.digest}")
        assert sent.body == DATA
        assert "authorization" not in sent.headers


def test_content_at_any_offset() -> None:
    with running(OneImage(IMAGE)) as registry:
        content = registry.content()
        layer = OciImages(content, "docker").image().layers[1].blob
        assert layer is not None
        with content.open(layer) as read:
            data = read_up_to(read, layer.size)
        (opened,) = content.spans(layer)
        for start, end in ((5, 15), (layer.size - 3, layer.size), (layer.size, layer.size)):
            with opened(Span(start, end)) as read:
                assert read_up_to(read, 1 << 20) == data[start:end]
