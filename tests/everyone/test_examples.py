"""The examples and the commands of the README for users without root, from end to end, as a real user."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.everyone.ways import Image
from tests.mkcfs import mkcfs
from tests.requirements import REPOSITORY, need_fuse_for_users, need_overlay_for_users
from tests.servers.registries import docker_registry
from tests.users import User

pytestmark = [pytest.mark.root, pytest.mark.kernel]

EXAMPLES = REPOSITORY / "examples"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def published(user: User, small_image: Image, tmp_path: Path) -> Iterator[str]:
    """A registry with the signed image; the user has nothing but the public key. Returns HOST/NAME."""
    key = tmp_path / "release"
    mkcfs("keygen", key, "--no-passphrase")
    image = tmp_path / "image.cfs"
    shutil.copy(small_image.path, image)
    mkcfs("sign", image, "--key", f"{key}.key")
    shutil.copy(f"{key}.pub", user.home / "release.pub")
    (user.home / "release.pub").chmod(0o644)
    with docker_registry(tmp_path / "registry") as host:
        mkcfs("push", image, "--store", small_image.store, f"docker://{host}/app:2")
        yield host


@pytest.fixture
def local(user: User, small_image: Image, tmp_path: Path) -> None:
    """The signed image and its store as files of the user."""
    key = tmp_path / "release"
    mkcfs("keygen", key, "--no-passphrase")
    for name, source in (("image.cfs", small_image.path), ("release.pub", Path(f"{key}.pub"))):
        shutil.copy(source, user.home / name)
    shutil.copytree(small_image.store, user.home / "objects")
    mkcfs("sign", user.home / "image.cfs", "--key", f"{key}.key")
    user.give(user.home)


def commands(heading: str) -> list[str]:
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (mkcfs .*?)(?:\s+#.*)?$", section, re.MULTILINE)


def objects(store: Path) -> list[str]:
    return [path.name for path in store.glob("[0-9a-f][0-9a-f]/*")]


@pytest.mark.usefixtures("local")
def test_the_rootless_example(user: User) -> None:
    need_overlay_for_users()
    need_fuse_for_users()
    done = user.run(EXAMPLES / "rootless/rootless.sh", "image.cfs", "objects", "release.pub", "out")
    assert done.stdout == b"NAME=small\n"
    assert (user.home / "out/upper/etc/changed").read_text() == "changed by 0\n"
    assert (user.home / "out/upper/etc/changed").stat().st_uid == user.uid
    assert (user.home / "out/release").read_text() == "NAME=small\n"
    user.wait_for_no_process()
    assert user.place.new_mounts() == []


@pytest.mark.usefixtures("local")
def test_the_rootless_example_refuses_another_key(user: User) -> None:
    need_overlay_for_users()
    user.mkcfs("keygen", "other", "--no-passphrase")
    done = user.run(EXAMPLES / "rootless/rootless.sh", "image.cfs", "objects", "other.pub", "out", check=False)
    assert (done.code, done.stdout) == (3, b"")


def test_the_lazy_example(user: User, small_image: Image, published: str) -> None:
    need_overlay_for_users()
    script = EXAMPLES / "lazy/lazy.sh"
    words = (f"docker://{published}/app:2", "release.pub", "host", "/bin/cat", "/data/external")
    assert user.run(script, *words).stdout == b"external " * 1000
    first = objects(user.home / "host/objects")
    assert 0 < len(first) < len(objects(small_image.store))
    user.wait_for_no_process()  # the trace is written once the mount is gone, which may be after the command
    trace = json.loads((user.home / "host/trace").read_text())
    wanted = {entry["digest"] for entry in trace["objects"]}
    assert wanted < {digest_of(name, small_image) for name in first}
    # On another machine, that is with an empty store, the trace says what will be wanted. A read that overtakes it
    # fetches others ahead as before.
    shutil.rmtree(user.home / "host/objects")
    assert user.run(script, *words).stdout == b"external " * 1000
    assert {digest_of(name, small_image) for name in objects(user.home / "host/objects")} >= wanted
    user.wait_for_no_process()


def digest_of(name: str, image: Image) -> str:
    (path,) = image.store.glob(f"*/{name}")
    return path.parent.name + name


def test_the_lazy_example_refuses_another_key(user: User, published: str) -> None:
    need_overlay_for_users()
    user.mkcfs("keygen", "other", "--no-passphrase")
    words = (f"docker://{published}/app:2", "other.pub", "host", "/bin/true")
    done = user.run(EXAMPLES / "lazy/lazy.sh", *words, check=False)
    assert (done.code, done.stdout) == (3, b"")
    assert objects(user.home / "host/objects") == []


@pytest.mark.usefixtures("local")
def test_the_commands_without_root(user: User) -> None:
    need_overlay_for_users()
    need_fuse_for_users()
    lines = commands("Without root")
    assert [shlex.split(line)[1] for line in lines] == ["run", "mount", "umount"]
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    shell, mount, umount = lines
    done = user.run(*shlex.split(shell), stdin=b"cat /data/inline; id -u\n")
    assert done.stdout == b"inline0\n"
    user.run(*shlex.split(mount))
    assert user.run("cat", "mnt/data/external").stdout == b"external " * 1000
    user.run(*shlex.split(umount))
    user.wait_for_no_process()


def test_the_command_before_everything_is_there(user: User, small_image: Image, published: str) -> None:
    """One command, as printed: a pushed image from a registry, lazily, with nothing but the public key."""
    need_fuse_for_users()
    (line,) = commands("Before everything is there")
    assert os.listdir(user.home).count("release.pub") == 1
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    user.run(*shlex.split(line.replace("registry.example", published)))
    assert user.run("ls", "mnt/data").stdout.split() == [b"external", b"inline", b"large"]
    assert objects(user.home / "store") == []
    assert user.run("cat", "mnt/data/external").stdout == b"external " * 1000
    user.run("mkcfs", "umount", "mnt")
    user.wait_for_no_process()
    assert 0 < len(objects(user.home / "store")) < len(objects(small_image.store))
    user.run(*shlex.split(line.replace("registry.example", published)))
    user.run("cp", "-r", "mnt/data", "copy")
    assert (user.home / "copy/large").read_bytes() == bytes(range(256)) * 10_000
    user.run("mkcfs", "umount", "mnt")
