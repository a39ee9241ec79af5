"""Each option of mkcomposefs and composefs-info on one real directory: same bytes, same digest, same store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.disk import make_every_kind
from tests.compat.stores import store_of
from tests.mkcfs import mkcfs
from tests.reference import Reference

pytestmark = pytest.mark.reference

OPTIONS = [
    [],
    ["--use-epoch"],
    ["--skip-devices"],
    ["--skip-xattrs"],
    ["--user-xattrs"],
    ["--min-version=0"],
    ["--min-version=1"],
    ["--max-version=0"],
    ["--max-version=1"],
    ["--min-version=0", "--max-version=1"],
    ["--min-version=1", "--max-version=0"],
    ["--threads=1"],
    ["--threads=3"],
    ["--print-digest"],
    ["--use-epoch", "--skip-devices", "--user-xattrs", "--max-version=0", "--print-digest"],
]
REFUSED = [
    ["--skip-xattrs", "--user-xattrs"],
    ["--min-version=2"],
    ["--max-version=2"],
    ["--min-version=-1"],
    ["--max-version=x"],
    ["--threads=0"],
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Path:
    """One of everything an option decides about."""
    return make_every_kind(tmp_path_factory.mktemp("options") / "source")


@pytest.fixture(scope="module")
def dump(source: Path, tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Path:
    """The dump text of the source, as the reference prints it."""
    place = tmp_path_factory.mktemp("dump")
    reference.mkcomposefs(source, place / "image")
    (place / "dump").write_bytes(reference.info("dump", place / "image"))
    return place / "dump"


def words(options: list[str]) -> str:
    return " ".join(options) or "none"


@pytest.mark.parametrize("options", OPTIONS, ids=words)
def test_directory(reference: Reference, source: Path, tmp_path: Path, options: list[str]) -> None:
    said = reference.mkcomposefs(source, tmp_path / "theirs.cfs", *options, store=tmp_path / "theirs")
    done = mkcfs("build", source, tmp_path / "ours.cfs", "--store", tmp_path / "ours", "--no-hardlinks", *options)
    assert (tmp_path / "ours.cfs").read_bytes() == (tmp_path / "theirs.cfs").read_bytes()
    assert store_of(tmp_path / "ours") == store_of(tmp_path / "theirs")
    assert done.stdout == said


@pytest.mark.parametrize("options", OPTIONS, ids=words)
def test_dump(reference: Reference, dump: Path, tmp_path: Path, options: list[str]) -> None:
    reading = {"--min", "--max", "--print"}
    options = [option for option in options if option[: option.find("-", 2)] in reading]
    said = reference.mkcomposefs(dump, tmp_path / "theirs.cfs", "--from-file", *options)
    done = mkcfs("build", "--from-file", dump, tmp_path / "ours.cfs", *options)
    assert (tmp_path / "ours.cfs").read_bytes() == (tmp_path / "theirs.cfs").read_bytes()
    assert done.stdout == said


def test_print_digest_only(reference: Reference, source: Path) -> None:
    said = reference.run("mkcomposefs", "--print-digest-only", source).stdout
    assert mkcfs("build", "--print-digest-only", "--no-hardlinks", source).stdout == said


def test_dump_on_stdin_and_image_on_stdout(reference: Reference, dump: Path) -> None:
    text = dump.read_bytes()
    assert mkcfs("build", "--from-file", "-", "-", stdin=text).stdout == reference.image_of_dump(text)
    # The reference would print the digest behind the image; a stream is either one or the other here.
    assert mkcfs("build", "--from-file", "--print-digest", "-", "-", stdin=text, check=False).code == 2


@pytest.mark.parametrize("options", REFUSED, ids=words)
def test_what_the_reference_refuses(reference: Reference, source: Path, tmp_path: Path, options: list[str]) -> None:
    refused = reference.run("mkcomposefs", *options, source, tmp_path / "theirs.cfs", check=False)
    done = mkcfs("build", *options, source, tmp_path / "ours.cfs", check=False)
    assert refused.code == 1
    assert done.code == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "ours.cfs").exists()


@pytest.mark.parametrize(
    "filters", [[], ["--filter=sub"], ["--filter=sub", "--filter=link", "--filter=none"]], ids=words
)
@pytest.mark.parametrize("verb", ["dump", "ls", "objects"])
def test_texts_of_an_image(reference: Reference, source: Path, tmp_path: Path, verb: str, filters: list[str]) -> None:
    reference.mkcomposefs(source, tmp_path / "image.cfs")
    theirs = reference.info(*filters, verb, tmp_path / "image.cfs")
    assert mkcfs(verb, *filters, tmp_path / "image.cfs").stdout == theirs
    assert theirs


def test_objects_of_two_images(reference: Reference, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "more").write_bytes(b"m" * 1000)
    (other / "same").write_bytes(b"e" * 65)
    first, second, store = tmp_path / "1.cfs", tmp_path / "2.cfs", tmp_path / "store"
    reference.mkcomposefs(source, first, store=store)
    reference.mkcomposefs(other, second)
    assert mkcfs("objects", first, second).stdout == reference.info("objects", first, second)
    basedir = b"--basedir=" + reference.seen(store)
    missing = reference.info(basedir, "missing-objects", first, second)
    assert mkcfs("objects", "--missing", "--store", store, first, second).stdout == missing
    assert missing.count(b"\n") == 1


def test_digests_of_files(reference: Reference, source: Path) -> None:
    files = [source / name for name in ("inline", "external", "large")]
    assert mkcfs("digest", "--compact", *files).stdout == reference.info("measure-file", *files)
    theirs = reference.run("fsverity", "digest", *files).stdout.replace(b" /mnt/", b" /")
    assert mkcfs("digest", *files).stdout == theirs
