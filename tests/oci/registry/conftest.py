"""Registries on loopback, each started once for the tests of a process, and an image that is pushed to them."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mkcfs import mkcfs
from tests.oci import making
from tests.oci.making import Layout, link, member, tar
from tests.requirements import NEEDS_GO, need_command
from tests.servers.authority import Authority
from tests.servers.registries import docker_registry, go_registry
from tests.servers.tokens import TokenServer, token_server

_FRESH = itertools.count()
USER, PASSWORD = "tester", "correct horse s3cret"


class Served(NamedTuple):
    """A registry, and what a client has to know of it."""

    host: str
    authority: Path | None = None  # its certificate
    tokens: TokenServer | None = None
    has_password: bool = False

    @property
    def options(self) -> list[str]:
        """What a verb of ours needs to speak to it."""
        return [] if self.authority is None else ["--ca-file", str(self.authority)]

    def skopeo(self, side: str = "dest") -> list[str]:
        """What skopeo needs."""
        words = [f"--{side}-tls-verify=false"]
        if self.authority is not None:
            words = [f"--{side}-cert-dir={self.authority.parent}"]
        if self.has_password:
            words.append(f"--{side}-creds={USER}:{PASSWORD}")
        return words


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers keep their files."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def authority(servers: Path) -> Authority:
    return Authority(servers / "authority")


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("server")


@pytest.fixture(scope="session")
def plain_registry(servers: Path) -> Iterator[Served]:
    """docker-registry, without TLS and open to all."""
    with docker_registry(servers / "plain") as host:
        yield Served(host)


@pytest.fixture(scope="session")
def referrers_registry(servers: Path) -> Iterator[Served]:
    """The registry written in Go that knows referrers."""
    with go_registry(servers / "referrers") as host:
        yield Served(host)


@pytest.fixture(scope="session")
def password_registry(servers: Path, authority: Authority, certificate: tuple[Path, Path]) -> Iterator[Served]:
    """docker-registry with TLS, and a password by Basic."""
    need_command("htpasswd")
    made = subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, check=True)
    passwords = servers / "passwords"
    passwords.write_bytes(made.stdout)
    with docker_registry(servers / "password", certificate=certificate, passwords=passwords) as host:
        yield Served(host, authority.certificate, has_password=True)


@pytest.fixture(scope="session")
def _token_registry(servers: Path, authority: Authority, certificate: tuple[Path, Path]) -> Iterator[Served]:
    (servers / "tokens").mkdir()
    with (
        token_server(servers / "tokens", certificate) as tokens,
        docker_registry(servers / "token", certificate=certificate, tokens=tokens) as host,
    ):
        tokens.users[USER] = PASSWORD
        yield Served(host, authority.certificate, tokens, has_password=True)


@pytest.fixture
def token_registry(_token_registry: Served) -> Served:
    """docker-registry with TLS and tokens; what the token server is told is forgotten after each test."""
    tokens = _token_registry.tokens
    assert tokens is not None
    tokens.public, tokens.identities = (), {}
    tokens.requests.clear()
    return _token_registry


@pytest.fixture(
    params=[
        "plain_registry",
        pytest.param("referrers_registry", marks=NEEDS_GO),
        "password_registry",
        "token_registry",
    ]
)
def each_registry(request: pytest.FixtureRequest) -> Served:
    """Each of the registries in turn."""
    served = request.getfixturevalue(request.param)
    assert isinstance(served, Served)
    return served


def some_layers() -> list[bytes]:
    """Layers with every kind of thing that one layer does to another."""
    base = tar(
        member("usr"),
        member("usr/a", b"a" * 5000),
        member("usr/b", bytes(range(256)) * 40),
        member("usr/gone", b"g" * 500),
        member("etc"),
        member("etc/x", b"small"),
        link("usr/link", "a"),
        link("usr/hard", "usr/a", hard=True),
    )
    middle = tar(member("usr/.wh.gone", b""), member("usr/c", b"c" * 300_000), member("etc/x", b"other" * 100))
    top = tar(member("run"), member("run/y", b"y" * 100), member("opt"), member("opt/z", b"z" * 70_000))
    return [base, middle, top]


def write_layout(root: Path, files: dict[str, bytes]) -> Path:
    """A layout as a directory."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with one image of three layers."""
    return write_layout(tmp_path / "layout", making.image(some_layers(), "+gzip"))


def two_platforms() -> dict[str, bytes]:
    """The files of a layout whose one entry is an index of two platforms."""
    made = Layout()
    entries = []
    for architecture, content in (("amd64", b"for amd64" * 20), ("arm64", b"for arm64" * 20)):
        layer = tar(member("usr"), member("usr/program", content))
        platform = {"os": "linux", "architecture": architecture}
        manifest = made.manifest([layer], config={"architecture": architecture}, compression="+gzip")
        entries.append({**manifest, "platform": platform})
    return made.tag(made.index(entries), "both").files()


def push(layout: Path, served: Served, name: str, *more: str) -> str:
    """Push what is in a layout, with skopeo; the result is its reference."""
    need_command("skopeo")
    reference = f"docker://{served.host}/{name}"
    words = ["skopeo", "copy", "--quiet", *more, *served.skopeo(), f"oci:{layout}", reference]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return reference


def auth_file(path: Path, key: str, user: str = USER, password: str = PASSWORD) -> Path:
    """An auth file with one entry."""
    entry = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
    path.write_text(json.dumps({"auths": {key: entry}}), encoding="utf-8")
    return path


def need(*commands: str) -> None:
    """Go on only with these commands."""
    need_command(*commands)


@pytest.fixture
def fresh() -> str:
    """The beginning of names that no registry has anything under, not even of this test when it runs once more."""
    return f"fresh{next(_FRESH)}"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep credentials and configurations of whoever runs the tests out of them."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", "/dev/null")
    return home


def make_tree(path: Path, version: int) -> Path:
    """A root file system; two files and a name differ from version to version."""
    (path / "usr/bin").mkdir(parents=True)
    (path / "etc").mkdir()
    for number in range(60):
        seed = version if number % 30 == 0 else 0
        data = b"".join(bytes([(number * 7 + seed * 13 + step * step) % 256]) * (step % 5 + 1) for step in range(3000))
        (path / f"usr/bin/program{number}").write_bytes(data)
    os.link(path / "usr/bin/program1", path / "usr/bin/alias")
    (path / "etc/version").write_text(str(version), encoding="utf-8")
    (path / "etc/link").symlink_to("../usr/bin/alias")
    (path / f"only-in-{version}").write_bytes(b"x")
    for inode in [path, *path.rglob("*")]:
        os.utime(inode, ns=(0, 1_700_000_000_123_456_789), follow_symlinks=False)
    return path


class Made:
    """Images of two versions in one store, in a directory that has the trees as well."""

    def __init__(self, root: Path) -> None:
        self.store = root / "objects"
        self.images = {version: root / f"v{version}.cfs" for version in (1, 2)}


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory, cache_directory: Path) -> Path:
    root = tmp_path_factory.mktemp("made")
    made = Made(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKCFS_CACHE_DIR", str(cache_directory))
        for version, image in made.images.items():
            mkcfs("build", make_tree(root / f"tree{version}", version), image, "--store", made.store)
    return root


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Made:
    """They are a test's own: it may sign the images and damage the objects."""
    subprocess.run(["cp", "-a", f"{_made}/.", str(tmp_path)], check=True)
    return Made(tmp_path)
