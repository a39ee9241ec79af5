"""Every verb explains itself, and the examples in its help work as printed."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cfstools.api.digest import digest as compute
from cfstools.api.keygen import keygen
from cfstools.api.sign import sign
from cfstools.cli.verbs import mkcfs as group
from cfstools.errors import exit_codes
from cfstools.signing.keys import KeyType, read_private_key
from tests.api.places import Served
from tests.mkcfs import mkcfs
from tests.mounts import unmount_below
from tests.oci import making
from tests.requirements import need_command, need_mounts, need_overlay_for_users
from tests.servers.faulty import FaultyServer
from tests.servers.images import OneImage
from tests.servers.registries import docker_registry

VERBS = group.list_commands(click.Context(group))


def leaves(command: click.Command, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(words, command)]
    context = click.Context(command)
    found = []
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        found += leaves(below, (*words, name))
    return found


COMMANDS = dict(leaves(group, ()))


def examples_of(command: click.Command) -> list[str]:
    text = command.epilog or ""
    return [line.strip() for line in text.splitlines() if line.strip().startswith("mkcfs ")]


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that an image without libraries can have as its shell."""
    path = tmp_path_factory.mktemp("shell") / "sh"
    need_command("gcc")
    subprocess.run(["gcc", "-static", "-o", path, "-x", "c", "-"], input=b"int main(void) { return 0; }", check=True)
    return path


@pytest.fixture
def workplace(tmp_path: Path, shell: Path) -> Iterator[Path]:
    """A directory in which the examples of all verbs can run."""
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/hostname").write_text("host\n")
    (rootfs / "usr").mkdir()
    (rootfs / "usr/large").write_bytes(b"x" * 10_000)
    (rootfs / "bin").mkdir()
    shutil.copy(shell, rootfs / "bin/sh")
    (tmp_path / "tree.dump").write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n/f 2 100644 1 0 0 0 0.0 - hi -\n")
    layout = making.Layout()
    layout.tag(layout.manifest([making.hello()]), "latest")
    for name, data in layout.files().items():
        (tmp_path / "layout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layout" / name).write_bytes(data)
    (tmp_path / "app.tar").write_bytes(making.archive(layout.files()))
    (tmp_path / "base.tar.gz").write_bytes(gzip.compress(making.hello()))
    (tmp_path / "top.tar").write_bytes(making.tar(making.member("usr/top", b"x" * 100)))
    run(tmp_path, "mkcfs build rootfs/ image.cfs --store ./objects")
    make_keys(tmp_path)
    for name in ("mnt", "upper", "work"):
        (tmp_path / name).mkdir()
    yield tmp_path
    unmount_below(tmp_path)


def files_of(directory: Path) -> list[str]:
    return [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]


def make_keys(place: Path) -> None:
    """Keys and the signatures and digest of image.cfs that examples speak of."""
    (place / "secret.txt").write_text("a passphrase\n")
    names = [os.fsencode(place / name) for name in ("release", "ci")]
    for name in names:
        keygen(name)
    sign(os.fsencode(place / "image.cfs"), [read_private_key(name + b".key") for name in names])
    keygen(os.fsencode(place / "kernel"), kind=KeyType.P256)
    request = ["openssl", "req", "-x509", "-new", "-key", "kernel.key", "-out", "kernel.crt", "-subj", "/CN=kernel"]
    subprocess.run(request, cwd=place, check=True, capture_output=True)
    (digest,) = compute([os.fsencode(place / "image.cfs")])
    (place / "image.digest").write_text(f"sha256:{digest.digest.hex()} image.cfs\n")


def with_files(workplace: Path, line: str) -> None:
    """Run a line about files elsewhere; what is in a bucket in the example is in a directory here."""
    (workplace / "www").mkdir(exist_ok=True)
    run_as_printed(workplace, f"mkcfs push image.cfs --store ./objects {workplace}/www/images/")
    with FaultyServer(Served(workplace / "www")) as server:
        places = {"https://example.com/": server.address(), "s3://bucket/": f"file://{workplace}/www/", "/mnt/": "mnt/"}
        for place, here in places.items():
            line = line.replace(place, here)
        run_as_printed(workplace, line)


def run(workplace: Path, line: str) -> None:
    if re.search("https://example.com/|s3://|/mnt/", line):
        with_files(workplace, line)
        return
    if re.match("mkcfs (push|pull|plan|mount) .*docker://", line):
        with docker_registry(workplace / "registry") as host:
            if not line.startswith("mkcfs push"):
                run_as_printed(workplace, f"mkcfs push image.cfs --store ./objects docker://{host}/app:2")
            run_as_printed(workplace, re.sub(r"registry\.example|localhost:5000", host, line))
        return
    if "docker://registry.example/" in line:
        one = OneImage({name: (workplace / "layout" / name).read_bytes() for name in files_of(workplace / "layout")})
        with FaultyServer(one) as server:
            run_as_printed(workplace, line.replace("registry.example", f"127.0.0.1:{server.port}"))
        return
    run_as_printed(workplace, line)


def run_as_printed(workplace: Path, line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "mkcfs"
    done = subprocess.run(
        [sys.executable, "-m", "cfstools.cli", *words[1:]],
        cwd=workplace,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, (line, done.stderr.decode())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_work_as_printed(words: tuple[str, ...], workplace: Path) -> None:
    lines = examples_of(COMMANDS[words])
    assert lines, f"{words} has no example"
    if words[0] in ("mount", "umount"):
        need_mounts("erofs", "overlay")
    if words == ("run",):
        need_overlay_for_users()
    if words == ("umount",):
        run(workplace, "mkcfs mount image.cfs mnt --store ./objects")
    if words[0] in ("pull", "plan"):
        run(workplace, "mkcfs push image.cfs --store ./objects oci:layout:app")
    for line in lines:
        run(workplace, line)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_explained(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


def test_the_options_of_build_stand_in_groups() -> None:
    shown = mkcfs("build", "--help").stdout.decode()
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert headings == [
        "Source options",
        "Container image options",
        "Network options",
        "Image options",
        "Store options",
        "Signature options",
        "General options",
    ]
    for option in COMMANDS["build",].params:
        if isinstance(option, click.Option):
            assert len(re.findall(rf"^  .*{option.opts[0]}\b(?!-)", shown, re.MULTILINE)) >= 1, option.name


def test_the_help_lists_the_exit_codes_of_the_errors() -> None:
    listed = mkcfs("--help").stdout.decode().partition("Exit codes:\n")[2]
    assert " ".join(listed.split()) == " ".join(f"{code} {meaning}" for code, meaning in exit_codes().items())


def test_every_verb_in_the_table_has_a_command() -> None:
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        assert command.name == verb
