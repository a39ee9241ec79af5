"""Whatever names, tags and messages hold: what is printed disturbs no terminal, and no line of it is forged."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfstools.cli import app
from cfstools.formats.escape import unescape
from cfstools.signing import ImageDigests, make_statement, sign_envelope
from cfstools.text import shown_path
from cfstools.tree import Directory, Symlink
from tests.cli.hostile import ENDS, NAMES, TERMINAL, TEXT, Ran, check_output, run
from tests.formats.images import directory, external, regular, write_image
from tests.fuzz.trust import Trusting
from tests.mkcfs import COMMAND, mkcfs
from tests.oci import making
from tests.requirements import REPOSITORY


@pytest.fixture(scope="module", params=range(len(NAMES)), ids=["bytes", "lines"])
def name(request: pytest.FixtureRequest) -> bytes:
    number: int = request.param
    return NAMES[number]


def hostile_tree(name: bytes) -> Directory:
    """Names, targets, payloads, attributes and contents that all are *name*."""
    attributes = {b"user." + name[:240]: name, b"security." + name[:200]: name}
    return directory(
        {
            name: directory({name: external(payload=name), b"x": regular(name)}, xattrs=attributes),
            b"l" + name[:250]: Symlink(mode=stat.S_IFLNK | 0o777, target=name),
            b"plain": external(payload=b"ab/" + name, digest=None, size=5),
        },
        xattrs=attributes,
    )


@pytest.fixture(scope="module")
def place(name: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A directory of a hostile name, which has an image, its signature, a store and a tree, all of hostile names."""
    place = os.fsencode(tmp_path_factory.mktemp("hostile")) + b"/" + name
    os.mkdir(place)
    image = bytes(write_image(hostile_tree(name)))
    Path(os.fsdecode(place + b"/image.cfs")).write_bytes(image)
    Path(os.fsdecode(place + b"/plain.cfs")).write_bytes(bytes(write_image(directory({b"a": regular(b"b")}))))
    os.makedirs(place + b"/tree/" + name)
    Path(os.fsdecode(place + b"/tree/" + name + b"/f")).write_bytes(b"contents" * 20)
    os.symlink(name, place + b"/tree/link")
    os.makedirs(place + b"/store/" + name)
    os.makedirs(place + b"/store/ab")
    Path(os.fsdecode(place + b"/store/ab/" + name)).write_bytes(b"x")
    Path(os.fsdecode(place + b"/store/" + b"f" + name[:250])).write_bytes(b"x")
    return place


VERBS: list[tuple[str, ...]] = [
    ("inspect", "{place}/image.cfs"),
    ("inspect", "{place}/image.cfs", "--tree"),
    ("inspect", "{place}/image.cfs", "--tree", "/{name}"),
    ("inspect", "{place}/image.cfs", "--tree", "/{name}/none"),
    ("inspect", "{place}/image.cfs", "--layout"),
    ("inspect", "{place}/image.cfs", "--json", "--tree"),
    ("inspect", "{place}/image.cfs", "--json", "--layout"),
    ("inspect", "{place}/none"),
    ("inspect", "{place}/tree"),
    ("verify", "{place}/image.cfs", "--store", "{place}/store"),
    ("verify", "{place}/image.cfs", "--store", "{place}/store", "--json"),
    ("verify", "{place}/image.cfs", "--canonical", "--digest", "{name}"),
    ("verify", "{place}/image.cfs", "--key", "{place}/none"),
    ("verify", "{place}/image.cfs", "--key", "{place}/image.cfs"),
    ("verify", "{place}/image.cfs", "--signature", "{place}/store/ab/{name}"),
    ("verify", "{place}/image.cfs", "--digest-file", "{place}/image.cfs"),
    ("ls", "{place}/image.cfs"),
    ("ls", "{place}/image.cfs", "--json-lines"),
    ("ls", "--filter", "{name}", "{place}/image.cfs"),
    ("ls", "--filter", "/{name}", "{place}/image.cfs"),
    ("dump", "{place}/image.cfs"),
    ("dump", "{place}/image.cfs", "--json-lines"),
    ("objects", "{place}/image.cfs"),
    ("objects", "{place}/image.cfs", "--json-lines"),
    ("objects", "{place}/image.cfs", "--missing", "--store", "{place}/store"),
    ("objects", "{place}/image.cfs", "--missing", "--store", "{place}/none"),
    ("digest", "{place}/image.cfs", "{place}/store/ab/{name}"),
    ("digest", "{place}/image.cfs", "--json-lines"),
    ("digest", "{place}/image.cfs", "--for-builtin-sig"),
    ("digest", "{place}/image.cfs", "--salt", "{name}"),
    ("digest", "{place}/none"),
    ("diff", "{place}/image.cfs", "{place}/plain.cfs"),
    ("diff", "{place}/plain.cfs", "{place}/image.cfs", "--json"),
    ("diff", "{place}/image.cfs", "{place}/tree"),
    ("diff", "{place}/image.cfs", "{place}/tree", "--ignore", "{name}"),
    ("diff", "{place}/tree", "--expect", "{name}"),
    ("diff", "{place}/tree", "--expect", "00" * 32),
    ("sign", "{place}/image.cfs", "--key", "{place}/none"),
    ("sign", "{place}/image.cfs", "--key", "{place}/image.cfs"),
    ("sign", "-v", "{place}/image.cfs", "--remove", "-o", "{place}/store/ab/{name}"),
    ("sign", "-v", "{place}/image.cfs", "--remove"),
    ("keygen", "-v", "{place}/k{name}", "--no-passphrase"),
    ("keygen", "-v", "{place}/none/{name}", "--no-passphrase", "--json"),
    ("keygen", "{place}/key", "--passphrase-file", "{place}/none"),
    ("keygen", "{place}/key", "--type", "{name}"),
    ("extract", "{place}/image.cfs", "{place}/out", "--store", "{place}/store"),
    ("extract", "{place}/image.cfs", "{place}/out", "--path", "/{name}/x", "-v", "--json"),
    ("extract", "{place}/image.cfs", "{place}/more", "--path", "/l{name}", "-v", "--user-xattrs"),
    ("extract", "{place}/image.cfs", "{place}/other", "--path", "/{name}/none"),
    ("extract", "{place}/image.cfs", "{place}/tree"),
    ("cat", "{place}/image.cfs", "/{name}/none"),
    ("cat", "{place}/image.cfs", "/{name}/{name}", "--store", "{place}/store"),
    ("cat", "{place}/image.cfs", "/l{name}"),
    ("cat", "{place}/image.cfs", "/{name}"),
    ("mount", "{place}/none", "{place}/tree"),
    ("mount", "{place}/image.cfs", "{place}/none", "--store", "{place}/store"),
    ("mount", "{place}/image.cfs", "{place}/none", "--store", "{place}/none"),
    ("mount", "{place}/image.cfs", "{place}/tree", "-o", "{name}"),
    ("mount", "{place}/image.cfs", "{place}/tree", "-o", "digest={name}"),
    ("mount", "{place}/image.cfs", "{place}/tree", "-o", "{name}=,"),
    ("mount", "{place}/image.cfs", "{place}/tree", "--verity", "{name}"),
    ("run", "{place}/none", "{place}/tree", "--", "true"),
    ("run", "{place}/image.cfs", "{place}/none", "--store", "{place}/store", "--", "true"),
    ("run", "{place}/image.cfs", "{place}/tree", "--store", "{place}/none", "--", "true"),
    ("run", "-v", "{place}/image.cfs", "{place}/tree", "--store", "{place}/store", "--", "{place}/{name}"),
    ("run", "{place}/image.cfs", "--chroot", "--store", "{place}/store", "--json", "--", "/{name}"),
    ("umount", "{place}/tree"),
    ("umount", "{place}/none"),
    ("store", "fsck", "--store", "{place}/store"),
    ("store", "fsck", "--store", "{place}/store", "--json"),
    ("store", "fsck", "--store", "{place}/store", "--repair", "--from", "{place}/tree", "-v"),
    ("store", "fsck", "--store", "{place}/store", "--repair", "--from", "{place}/none"),
    ("store", "fsck", "--store", "{place}/none"),
    ("store", "gc", "--store", "{place}/store", "--keep", "{place}/image.cfs", "--dry-run", "-v"),
    ("store", "gc", "--store", "{place}/store", "--keep-dir", "{place}", "--dry-run", "-v"),
    ("store", "gc", "--store", "{place}/store", "--keep-dir", "{place}/none", "--dry-run"),
    ("store", "gc", "--store", "{place}/store", "--keep", "{place}/none", "--dry-run", "--json"),
    ("store", "gc", "--store", "{place}/store", "--keep", "{place}/image.cfs", "--grace", "{name}"),
    ("store", "stat", "--store", "{place}/store", "{place}/image.cfs", "{place}/plain.cfs"),
    ("store", "stat", "--store", "{place}/store", "--json", "{place}/image.cfs"),
    ("store", "stat", "--store", "{place}/none"),
    ("store", "{name}"),
    ("build", "{place}/tree", "{place}/new.cfs", "-v", "--store", "{place}/objects"),
    ("build", "{place}/tree", "{place}/new.cfs", "--json"),
    ("build", "{place}/tree", "{place}/none/new.cfs"),
    ("build", "{place}/tree", "--print-digest-only", "--exclude", "{name}[", "--exclude", "[[:{name}:]]"),
    ("build", "{place}/tree", "--print-digest-only", "--format-version", "{name}"),
    ("build", "{place}/tree", "--print-digest-only", "--hash", "{name}"),
    ("build", "{place}/tree", "--print-digest-only", "--platform", "{name}"),
    ("build", "{place}/tree", "--print-digest-only", "--object-mode", "{name}"),
    ("build", "{place}/tree", "--print-digest-only", "--layer", "{place}/none"),
    ("build", "{place}/none", "--print-digest-only"),
    ("build", "{place}/store/ab/{name}", "--print-digest-only"),
    ("build", "--from-file", "{place}/image.cfs", "--print-digest-only"),
    ("build", "{place}/image.cfs", "{place}/new.cfs", "--store", "{place}/store/ab/{name}"),
    ("build", "{place}/image.cfs", "--print-digest-only", "--sign-key", "{place}/none"),
    ("build", "oci:{place}/none", "--print-digest-only"),
    ("build", "oci:{place}/tree", "--print-digest-only"),
    ("build", "oci:{place}/tree:{name}", "--print-digest-only"),
    ("build", "oci-archive:{place}/image.cfs:{name}", "--print-digest-only"),
    ("build", "{name}:{place}", "--print-digest-only"),
    ("push", "{place}/none", "--store", "{place}/store", "oci:{place}/layout:{name}"),
    ("push", "{place}/image.cfs", "--store", "{place}/store", "oci:{place}/layout:{name}"),
    ("push", "{place}/image.cfs", "--store", "{place}/store", "docker://localhost/{name}"),
    ("push", "{place}/image.cfs", "--store", "{place}/store", "{name}"),
    ("push", "{place}/image.cfs", "--store", "{place}/store", "oci:{place}/layout:a", "--base", "oci:{place}/{name}"),
    ("push", "{place}/image.cfs", "--store", "{place}/store", "oci:{place}/layout:a", "--config", "{place}/image.cfs"),
    ("push", "{place}/image.cfs", "--store", "{place}/none", "{place}/tree/"),
    ("pull", "{place}/none", "{place}/new.cfs", "--store", "{place}/objects"),
    ("pull", "{place}/image.cfs", "{place}/new.cfs", "--store", "{place}/objects", "--from", "{place}/tree"),
    ("pull", "{place}/image.cfs", "--store", "{place}/store", "--dry-run"),
    ("pull", "{place}/image.cfs", "--store", "{place}/none", "--dry-run", "--json"),
    ("pull", "oci:{place}/tree:{name}", "{place}/new.cfs", "--store", "{place}/objects"),
    ("pull", "docker://localhost/{name}", "{place}/new.cfs", "--store", "{place}/objects"),
    ("pull", "{place}/image.cfs", "{place}/new.cfs", "--store", "{place}/objects", "--digest", "{name}"),
    ("plan", "{place}/image.cfs", "{place}/plain.cfs"),
    ("plan", "{place}/plain.cfs", "{place}/image.cfs", "--json"),
    ("plan", "{place}/image.cfs", "{place}/none"),
    ("plan", "oci:{place}/tree:{name}", "{place}/image.cfs"),
    ("store", "push", "--store", "{place}/store", "{place}/elsewhere/", "{place}/image.cfs"),
    ("store", "push", "--store", "{place}/none", "{place}/elsewhere/"),
    ("completion", "{name}"),
    ("{name}",),
    ("--{name}",),
    ("ls", "--{name}"),
    ("ls", "--json-lines={name}", "{place}/image.cfs"),
    ("--debug", "inspect", "{place}/none"),
    ("--debug", "ls", "--filter", "/{name}", "{place}/image.cfs"),
    ("--debug", "build", "oci:{place}/tree:{name}", "--print-digest-only"),
    ("--debug", "build", "--from-file", "{place}/image.cfs", "--print-digest-only"),
]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words).replace("{", "").replace("}", ""))
def test_every_verb(words: tuple[str, ...], place: bytes, name: bytes) -> None:
    # The last two are those of commands that cannot be started.
    codes = (0, 1, 2, 3, *([126, 127] if words[0] == "run" else []))
    run(*(os.fsencode(word).replace(b"{place}", place).replace(b"{name}", name) for word in words), codes=codes)


def test_every_verb_is_tried() -> None:
    assert {words[0] for words in VERBS} >= set(app.VERBS)


def test_objects_are_escaped_as_ls_does(place: bytes, name: bytes) -> None:
    image = place + b"/image.cfs"
    listed = {line.split(b"\t@ ")[1] for line in run("ls", image).stdout.splitlines() if b"\t@ " in line}
    lines = run("objects", image).stdout.splitlines()
    assert set(lines) == listed
    assert {unescape(line) for line in lines} == {name, b"ab/" + name}
    raw = Ran(("objects", "-z", image)).stdout
    assert raw.endswith(b"\0")
    assert set(raw[:-1].split(b"\0")) == {name, b"ab/" + name}
    missing = Ran(("objects", "-z", "--missing", "--store", place + b"/tree/" + name, image)).stdout
    assert missing == raw
    told = [json.loads(line)["payload"] for line in run("objects", "--json-lines", image).stdout.splitlines()]
    assert {unescape(text.encode()) for text in told} == {name, b"ab/" + name}


def test_digests_name_their_files(place: bytes) -> None:
    image = place + b"/image.cfs"
    value, _, shown = run("digest", image).stdout.removesuffix(b"\n").partition(b" ")
    assert shown == shown_path(image).encode()
    assert unescape(shown) == image
    assert Ran(("digest", "-z", image)).stdout == value + b" " + image + b"\0"
    bare = value.partition(b":")[2]
    assert Ran(("digest", "-z", "--compact", image, image)).stdout == (bare + b"\0") * 2


@pytest.mark.parametrize("verb", ["objects", "digest"])
def test_two_forms_at_once(verb: str, place: bytes) -> None:
    assert run(verb, "-z", "--json-lines", place + b"/image.cfs").code == 2


def hostile_layout(place: Path, text: str, **fields: Any) -> Path:
    layout = making.Layout()
    config = {
        "author": text,
        "created": text,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {text: text, "plain": text}},
        "history": [{"created_by": text, "comment": text}],
    }
    entry = layout.manifest([making.hello()], config={**config, **fields.pop("config", {})}, annotations={text: text})
    layout.tag({**entry, **fields}, text)
    layout.tag(layout.manifest([making.hello()], config={"os": "other", "variant": text}), "second" + text)
    for path, data in layout.files().items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    return place


@pytest.mark.parametrize("text", [TEXT, ENDS, TERMINAL], ids=["all", "lines", "terminal"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mediaType": None},
        {"digest": None},
        {"config": {"architecture": None}},
        {"config": {"os": None}},
        {"config": {"rootfs": {"type": None, "diff_ids": [None]}}},
        {"platform": {"os": None, "architecture": None, "variant": None}},
        {"size": None},
    ],
    ids=str,
)
def test_container_images(text: str, fields: dict[str, Any], tmp_path: Path) -> None:
    filled = json.loads(json.dumps(fields).replace("null", json.dumps(text)))
    place = hostile_layout(tmp_path / "layout", text, **filled)
    (tmp_path / "app.tar").write_bytes(
        making.archive({str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    )
    for source in (f"oci:{place}", f"oci:{place}:{text}", f"oci:{place}:none{text}", f"oci-archive:{tmp_path}/app.tar"):
        run("inspect", source)
        run("inspect", source, "--json")
        run("inspect", source, "--platform", "linux/arm64")
        run("build", source, "--print-digest-only")
        run("--debug", "build", source, "--print-digest-only", "--platform", f"linux/{text}")


@pytest.mark.parametrize("text", [TEXT, ENDS], ids=["all", "lines"])
def test_docker_archives(text: str, tmp_path: Path) -> None:
    for number, files in enumerate(
        (
            making.docker([making.hello()], tags=[text]),
            making.docker([making.hello()], tags=[text, "b"]),
            {**making.docker([making.hello()]), "manifest.json": making.packed([{"Config": text, "Layers": [text]}])},
            {**making.docker([making.hello()]), "manifest.json": making.packed([{text: text}])},
            {
                **making.docker([making.hello()]),
                "manifest.json": making.packed({text: text}) + making.packed({text: 1}),
            },
        )
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(making.archive(files))
        for source in (f"docker-archive:{path}", f"docker-archive:{path}:{text}"):
            run("inspect", source)
            run("build", source, "--print-digest-only")


def hostile_layers(name: bytes) -> Iterator[bytes]:
    text = name.decode("utf-8", "surrogateescape")
    file = making.member(text, b"x")
    yield making.tar(file)
    yield making.tar(file, file)
    yield making.tar(making.member(f"{text}/../../up", b"x"))
    yield making.tar(making.member(f".wh.{text}", b"x"))
    yield making.tar(making.member(f"{text}/.wh..wh..opq", b"x"), making.member(f"{text}/.wh.{text[:100]}", b""))
    yield making.tar(making.link("link", text), making.member("link/below", b"x"))
    yield making.tar(making.link("link", text, hard=True))
    yield making.tar(making.member(text, None, type=b"Z"))
    yield making.tar(making.member(text, None, uname=text[:30], gname=text[:30], uid=-5))
    yield making.tar(making.member(text, b"x", pax_headers={f"SCHILY.xattr.user.{text}": text}), form=1)[:-1024]
    for keyword in ("SCHILY.xattr.bad", f"SCHILY.xattr.{text}", f"{text}", "size", "mtime", "uid", "SCHILY.realsize"):
        try:
            yield making.tar(making.member("x", b"x", pax_headers={keyword: text}), form=2)
        except ValueError:
            continue


@pytest.mark.parametrize("options", [(), ("--oci-strict",), ("--oci-mapping", "plain")], ids=str)
def test_layers(options: tuple[str, ...], name: bytes, tmp_path: Path) -> None:
    for number, layer in enumerate(hostile_layers(name)):
        path = os.fsencode(tmp_path) + b"/%d.tar" % number
        Path(os.fsdecode(path)).write_bytes(layer)
        run("build", path, tmp_path / "new.cfs", *options)
        run("--debug", "build", path, tmp_path / "new.cfs", "--layer", path, *options)
        if (tmp_path / "new.cfs").exists():
            run("ls", tmp_path / "new.cfs")
            (tmp_path / "new.cfs").unlink()


DUMPS = [
    b"%s",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/%s 0 100644 1 0 0 0 0.0 - - -",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/a %s 100644 1 0 0 0 0.0 - - -",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/a 0 %s 1 0 0 0 0.0 - - -",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 %s - - -",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 0.0 %s - %s",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 0.0 %s - -",
    b"/ 4096 40755 2 0 0 0 0.0 - - - %s",
    b"/ 4096 40755 2 0 0 0 0.0 - - - %s=\\",
    b"/ 4096 40755 2 0 0 0 0.0 - - -\n/a 0 @120777 1 0 0 0 0.0 /%s - -",
]


@pytest.mark.parametrize("text", DUMPS, ids=range(len(DUMPS)))
def test_dumps(text: bytes, name: bytes, tmp_path: Path) -> None:
    for replaced in (name, name.replace(b"\n", b"").replace(b" ", b"")):
        dump = tmp_path / "text.dump"
        dump.write_bytes(text.replace(b"%s", replaced) + b"\n")
        for options in ((), ("--strict",), ("--debug",)):
            run("build", "--from-file", dump, "--print-digest-only", *options)
        run("diff", dump, dump)


def envelopes() -> Iterator[bytes]:
    statement = make_statement(TEXT.encode(), ImageDigests(size=4096, sha256=bytes(32), fsverity=bytes(32)), "v1-x")
    good = json.loads(sign_envelope(statement, [Trusting()]))
    yield making.packed(
        {**good, "signatures": [{"keyid": TEXT, "sig": "AAAA"}, {"keyid": "\ud800" + ENDS, "sig": "AAAA"}]}
    )
    yield making.packed({**good, "payloadType": TEXT})
    yield making.packed({**good, "signatures": [{TEXT: "x", "sig": "AAAA"}]})
    yield making.packed({**good, TEXT: 1})[:-1] + b"," + making.packed({TEXT: 1})[1:]
    yield TEXT.encode()
    yield json.dumps({"a": TEXT}, ensure_ascii=False).encode()


@pytest.mark.parametrize("envelope", [*envelopes()], ids=range(6))
def test_signatures(envelope: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image.cfs"
    image.write_bytes(write_image(directory({b"a": regular(b"b")})))
    (tmp_path / "image.cfs.sig").write_bytes(envelope)
    run("keygen", tmp_path / "k", "--no-passphrase", codes=(0,))
    run("inspect", image)
    run("inspect", image, "--json")
    run("verify", image)
    run("verify", image, "--key", tmp_path / "k.pub", codes=(3,))
    run("verify", image, "--key", tmp_path / "k.pub", "--json", codes=(3,))
    run("--debug", "sign", image, "--key", tmp_path / "k.key")


@pytest.mark.parametrize(
    ("variables", "encoding"),
    [
        ({"LC_ALL": "C"}, "utf-8"),
        ({"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii"),
        ({"LC_ALL": "C.UTF-8"}, "utf-8"),
        ({"PYTHONIOENCODING": "ascii"}, "ascii"),
        ({"PYTHONIOENCODING": "ascii:strict"}, "ascii"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1"),
        ({"PYTHONIOENCODING": "latin-1:surrogateescape"}, "latin-1"),
        ({"PYTHONIOENCODING": "cp1252"}, "cp1252"),
    ],
    ids=str,
)
def test_encodings(variables: dict[str, str], encoding: str, place: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoding does not have is escaped as the rest, so names can be had back; nothing fails for it."""
    for variable in ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    image = place + b"/image.cfs"
    for words in (("inspect", image), ("inspect", image, "--tree"), ("diff", image, place + b"/tree")):
        done = mkcfs(*words, check=False)
        check_output(done.stdout, encoding)
        check_output(done.stderr, encoding)
        assert b"Traceback" not in done.stderr
    failed = mkcfs("inspect", place + b"/none", check=False)
    check_output(failed.stderr, encoding)
    assert failed.code == 1
    shown = mkcfs("digest", image).stdout.decode(encoding).removesuffix("\n").partition(" ")[2]
    assert unescape(shown.encode("utf-8")) == image


def test_warnings_and_progress_on_a_terminal(tmp_path: Path) -> None:
    """Standard error is a terminal: summaries and bars are escaped there as well."""
    source = os.fsencode(tmp_path) + b"/" + NAMES[1]
    os.mkdir(source)
    Path(os.fsdecode(source + b"/f")).write_bytes(b"x" * 100000)
    reader, terminal = os.openpty()
    command = [*map(os.fsencode, COMMAND), b"build", source, source + b".cfs"]
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE, env=environment) as process:
        os.close(terminal)
        said = b""
        while True:
            try:
                piece = os.read(reader, 4096)
            except OSError:
                break
            said += piece
            if not piece:
                break
    os.close(reader)
    assert process.returncode == 0
    assert b"inodes" in said
    check_output(said.replace(b"\r\n", b"\n"))


PRINTING = {
    "click.echo",
    "click.secho",
    "click.echo_via_pager",
    "sys.stdout.write",
    "sys.stdout.buffer",
    "sys.stderr.write",
    "sys.stderr.buffer",
    "traceback.print_exc",
    "traceback.print_exception",
    "traceback.print_tb",
}


def test_only_the_door_prints() -> None:
    """Nothing else in the package writes to the standard streams, but `cat`, whose contents are no text of ours."""
    found = set()
    last = {name.rpartition(".")[2] for name in PRINTING}
    for path in sorted((REPOSITORY / "cfstools").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            named = isinstance(node, ast.Attribute) and node.attr in last and ast.unparse(node) in PRINTING
            if printing or named:
                found.add(path.name)
    assert found == {"extract.py", "output.py"}


def test_a_defect_is_told_through_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_words: list[str]) -> int:
        raise RuntimeError(ENDS + TERMINAL)

    monkeypatch.setattr(app, "run", broken)
    done = run(codes=(98,))
    assert b"mkcfs: this is a defect of mkcfs: RuntimeError" in done.stderr
