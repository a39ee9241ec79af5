"""Images end to end: layers to tree, store and image, with the digests known from elsewhere."""

from __future__ import annotations

import os
import tarfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import (
    CfsError,
    CheckFailed,
    CompressionError,
    InputError,
    LimitExceeded,
    OciError,
    TarError,
    UsageError,
)
from cfstools.oci.descriptor import parse_digest
from cfstools.oci.files import BlobFiles, MemoryFiles
from cfstools.oci.images import DockerImages, LayerSource, LayerTars, layout_images
from cfstools.oci.mapping import KeptXattrs, OciMapping
from cfstools.sources.oci import OciTree, read_oci
from cfstools.sources.oci_containers import open_images
from cfstools.sources.oci_describe import describe
from cfstools.sources.oci_request import Form, OciOptions, parse_reference
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading, SourceKind, SourceTree
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.streams.limits import DecompressionLimits
from cfstools.tree.layer_rules import LayerRules
from cfstools.tree.layers import MAX_WARNINGS
from cfstools.tree.model import Device, External, HardLink
from cfstools.tree.objects import object_digests
from cfstools.verity import Algorithm, Params, digest_bytes
from tests.formats.images import write_image
from tests.oci import making
from tests.oci.making import COMPRESSORS, Layout, hello, link, member, tar
from tests.sources.kinds import kind_of

PLAIN = OciOptions(mapping=OciMapping.PLAIN)


def image_digest(tree: OciTree | SourceTree, version: int, algorithm: Algorithm = Algorithm.SHA256) -> str:
    image = write_image(tree.root, min_version=version, max_version=version, algorithm=algorithm)
    return digest_bytes(image, Params(algorithm=algorithm)).hex()


def read(files: dict[str, bytes], **options: Any) -> OciTree:
    return read_oci(layout_images(MemoryFiles(files)), **options)


SHA512_DIGEST = (
    "d06f1f6a73f62ed48e05ce9442ff045cdf2a9f5ba1ec623795de3d6177a253d9"
    "1076459795d94f55d8c3d71dab458bb3fc0071255a50c0a4896d86ffdc870b9a"
)
KNOWN = [
    (False, 0, "sha256", "3ca8774fe5b7293770fa5b5c43ec8e4b213fc3e3d3cd42094d1d821101854f36"),
    (False, 1, "sha256", "b032cbc10e2e251424fdf57d1c0f884ac93fa28ecc48f9074886bf5d7d6080c5"),
    (True, 0, "sha256", "18d2ce8761526481c7d444575cb60c0d62bc2b4d999141575cbb2124fcc812bf"),
    (True, 1, "sha256", "ca4c0cedfe7cf4e19090b65126e5b2ccc2e7fb4eef2af2a1bcdebe7488d5790b"),
    (
        True,
        1,
        "sha512",
        SHA512_DIGEST,
    ),
]


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("compression", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive", "layers"])
def test_known_digests(tmp_path: Path, known: tuple[bool, int, str, str], compression: str, form: str) -> None:
    hard_link, version, algorithm, expected = known
    layer = hello(hard_link=hard_link)
    family = Algorithm(algorithm)
    path = tmp_path / "image"
    if form == "oci":
        for name, data in making.image([layer], compression).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif form == "oci-archive":
        path.write_bytes(making.archive(making.image([layer], compression)))
    elif form == "docker-archive":
        path.write_bytes(making.COMPRESSORS[compression](making.archive(making.docker([layer]))))
    else:
        path.write_bytes(making.COMPRESSORS[compression](layer))
    with recognise(os.fsencode(path)) as source, source.open(Reading(algorithm=family)) as tree:
        assert tree.name == form
    assert image_digest(tree, version, family) == expected


BASE = tar(
    member("usr/", mtime=77, mode=0o711, uid=5, gid=6, pax_headers={"SCHILY.xattr.user.on": "usr"}),
    member("usr/big", b"B" * 700_000),
    member("usr/same", b"S" * 5000),
    member("usr/gone", b"G" * 5000),
    member("usr/tiny", b"T" * 64),
    member("usr/empty", b""),
    member("usr/plus", b"P" * 65),
    member("run/", mtime=5),
    member("run/secrets", b"x" * 100),
    link("usr/link", "tiny"),
    link("usr/hard", "usr/same", hard=True),
    member("usr/fifo", None, type=tarfile.FIFOTYPE, mode=0o600),
    member("usr/dev", None, type=tarfile.CHRTYPE, mode=0o620, devmajor=300, devminor=70000),
    member("usr/block", None, type=tarfile.BLKTYPE, mode=0o660, devmajor=8, devminor=1),
    form=tarfile.PAX_FORMAT,
)
TOP = tar(member("usr/.wh.gone", b""), member("usr/.wh.hard", b""), member("usr/new", b"N" * 3000))


def writer_to(path: Path, **options: Any) -> StoreWriter:
    return StoreWriter(DirectoryStore(os.fsencode(path), create=True), deferred=True, **options)


def objects(path: Path) -> list[bytes]:
    return list(DirectoryStore(os.fsencode(path)).objects())


def entry(tree: OciTree, path: str) -> Any:
    found: Any = tree.root
    for name in path.split("/"):
        found = found.entries[name.encode()]
    return found.inode if isinstance(found, HardLink) else found


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_contents_go_to_the_store(tmp_path: Path, compression: str) -> None:
    with writer_to(tmp_path) as writer:
        tree = read(making.image([BASE, TOP], compression), writer=writer)
        assert objects(tmp_path) == []
        writer.commit(object_digests(tree.root))
    expected = {digest_bytes(data) for data in (b"B" * 700_000, b"S" * 5000, b"P" * 65, b"N" * 3000)}
    assert set(objects(tmp_path)) == expected
    assert object_digests(tree.root) == expected
    big = entry(tree, "usr/big")
    assert isinstance(big.content, External)
    assert big.content.digest == digest_bytes(b"B" * 700_000)
    assert entry(tree, "usr/tiny").content == b"T" * 64
    assert entry(tree, "usr/empty").content == b""
    # Without a store the same digests come out.
    assert image_digest(read(making.image([BASE, TOP])), 1) == image_digest(tree, 1)


def test_inodes_are_what_members_say() -> None:
    tree = read(making.image([BASE]), options=PLAIN)
    device = entry(tree, "usr/dev")
    assert isinstance(device, Device)
    assert (device.mode, device.rdev) == (0o20620, os.makedev(300, 70000))
    assert entry(tree, "usr/block").mode == 0o60660
    assert entry(tree, "usr/fifo").mode == 0o10600
    assert entry(tree, "usr/link").target == b"tiny"
    assert entry(tree, "usr/same").nlink == 2
    usr = entry(tree, "usr")
    assert (usr.mode, usr.uid, usr.gid, usr.mtime_sec, usr.xattrs) == (0o40711, 5, 6, 77, {b"user.on": b"usr"})


def test_the_report() -> None:
    files = making.image([BASE, TOP], "+gzip")
    report = read(files).report
    assert report.kind == "oci"
    assert report.platform == "linux/amd64"
    assert report.mapping == "composefs"
    assert report.xattrs == "capability"
    assert report.created == "2020-01-01T00:00:00Z"
    stored = COMPRESSORS["+gzip"](BASE)
    first = report.layers[0]
    assert (first.digest, first.size) == (making.digest(stored), len(stored))
    assert (first.diff_id, first.uncompressed_size) == (making.digest(BASE), len(BASE))
    assert (first.compression, first.members, first.media_type) == ("gzip", 14, making.LAYER + "+gzip")
    assert report.manifest is not None
    assert "blobs/" + report.manifest.replace(":", "/") in files
    assert report.to_dict()["schema"] == 1
    assert any(str(warning).startswith("layer 2: /usr: the layer has no entry") for warning in report.warnings)


def test_progress_counts_stored_bytes() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls: list[object] = []
            self.total = 0

        def stage(self, name: str, total: int | None, unit: str) -> Self:
            self.calls.append((name, total, unit))
            return self

        def advance(self, amount: int) -> None:
            self.total += amount

        def finish(self) -> None:
            self.calls.append("finish")

    progress = Counting()
    read(making.image([BASE, TOP], "+zstd"), progress=progress)
    size = len(COMPRESSORS["+zstd"](BASE)) + len(COMPRESSORS["+zstd"](TOP))
    assert progress.calls == [("layers", size, "B"), "finish"]
    assert progress.total == size


# The mappings


def test_canonical_mapping() -> None:
    tree = read(making.image([BASE]))
    root, run = tree.root, entry(tree, "run")
    assert (root.mode, root.uid, root.gid, root.mtime_sec, root.xattrs) == (0o40711, 5, 6, 77, {})
    assert (run.entries, run.mode, run.mtime_sec) == ({}, 0o40755, 77)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (None, {b"security.capability"}),
        (KeptXattrs.CAPABILITY, {b"security.capability"}),
        (KeptXattrs.USER, {b"security.capability", b"user.a"}),
        (KeptXattrs.ALL, {b"security.capability", b"user.a", b"trusted.overlay.redirect"}),
    ],
)
def test_xattrs_kept(kept: KeptXattrs | None, expected: set[bytes]) -> None:
    names = ("security.capability", "user.a", "trusted.overlay.redirect")
    headers = {f"SCHILY.xattr.{name}": "1" for name in names}
    layer = tar(member("usr/", pax_headers=headers), member("f", b"", pax_headers=headers), form=tarfile.PAX_FORMAT)
    tree = read(making.image([layer]), options=OciOptions(xattrs=kept))
    assert entry(tree, "f").xattrs.keys() == expected
    assert tree.root.xattrs is entry(tree, "f").xattrs
    plain = read(making.image([layer]), options=OciOptions(mapping=OciMapping.PLAIN, xattrs=kept))
    assert entry(plain, "f").xattrs.keys() == (expected if kept else set(map(str.encode, names)))


def test_empty_xattrs_are_kept() -> None:
    # Go's reader, and with it umoci, drops them.
    layer = tar(member("f", b"", pax_headers={"SCHILY.xattr.user.mark": ""}), form=tarfile.PAX_FORMAT)
    assert entry(read(making.image([layer]), options=PLAIN), "f").xattrs == {b"user.mark": b""}


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (tar(member("bin", b"x")), "mapping: /usr: missing"),
        (tar(link("usr", "somewhere")), "mapping: /usr: no directory"),
        (tar(member("usr/"), link("run", "var/run")), "mapping: /run: no directory"),
    ],
)
def test_images_that_the_peer_refuses(layer: bytes, said: str) -> None:
    tree = read(making.image([layer]))
    assert any(str(warning).startswith(said) for warning in tree.report.warnings)


def test_no_run_is_not_made() -> None:
    assert b"run" not in read(making.image([hello()])).root.entries


def test_emptying_run_settles_hard_links() -> None:
    layer = tar(member("usr/"), member("run/"), member("run/a", b"x"), link("usr/b", "run/a", hard=True))
    kept = entry(read(making.image([layer])), "usr/b")
    assert (kept.content, kept.nlink) == (b"x", 1)


def test_root_of_the_plain_mapping() -> None:
    silent = read(making.image([hello()]), options=PLAIN)
    assert (silent.root.mode, silent.root.mtime_sec) == (0o40755, 0)
    assert not silent.report.warnings
    loud = read(making.image([tar(member("./", mode=0o700), member("x", b""))]), options=PLAIN)
    assert (loud.root.mode, loud.root.mtime_sec) == (0o40700, making.TIME)
    assert not loud.report.warnings


def test_symbolic_links_have_all_permissions_on_disk() -> None:
    files = making.image([tar(member("l", None, type=tarfile.SYMTYPE, linkname="x", mode=0o755))])
    assert entry(read(files), "l").mode == 0o120755
    assert entry(read(files, options=PLAIN), "l").mode == 0o120777


def test_an_image_without_layers() -> None:
    tree = read(making.image([]))
    assert tree.root.entries == {}
    assert tree.report.layers == ()


# What is wrong stops with nothing published


def refused(tmp_path: Path, files: dict[str, bytes], error: type[CfsError], what: str, code: int) -> None:
    with pytest.raises(error, match=what) as caught, writer_to(tmp_path / "store") as writer:
        writer.commit(object_digests(read(files, writer=writer).root))
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert objects(tmp_path / "store") == []


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("layers", [[BASE], [hello(), BASE]])
def test_wrong_diff_id(tmp_path: Path, compression: str, layers: list[bytes]) -> None:
    layout = Layout()
    wrong = [*map(making.digest, layers[:-1]), making.digest(b"other")]
    layout.tag(layout.manifest(layers, compression=compression, diff_ids=wrong))
    what = rf"layer {len(layers)}: uncompressed layer .*: the contents have digest sha256:"
    refused(tmp_path, layout.files(), CheckFailed, what, 3)


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("where", [0, 0.3, 0.7, 1])
def test_a_flipped_byte_in_a_layer(tmp_path: Path, compression: str, where: float) -> None:
    layer = tar(member("usr/"), *(member(f"usr/{number}", os.urandom(9000)) for number in range(30)))
    stored = bytearray(COMPRESSORS[compression](layer))
    files = making.image([layer], compression)
    path = "blobs/" + making.digest(bytes(stored)).replace(":", "/")
    stored[int(where * (len(stored) - 1))] ^= 0x10
    files[path] = bytes(stored)
    # Whatever the damage looks like to a reader of tar or gzip, it is the digest that is wrong.
    refused(tmp_path, files, CheckFailed, "layer 1: layer blobs/.* the contents have digest", 3)


def test_bytes_behind_the_end_are_in_the_diff_id() -> None:
    layer = hello() + bytes(10_240) + b"x" * 100
    tree = read(making.image([layer], "+gzip"))
    assert tree.report.layers[0].diff_id == making.digest(layer)
    assert "after the end" in str(tree.report.warnings[0])


@pytest.mark.parametrize(
    ("layer", "error", "what"),
    [
        (hello()[:600], TarError, "layer 1: offset"),
        (tar(member("usr/"))[:512] + bytes(512) + hello(), TarError, "single zero block"),
        (tar(member("a", b"1"), member("a", b"2")), OciError, "layer 1: /a: two entries"),
        (tar(link("h", "nothing", hard=True)), OciError, "layer 1: /h: hard link to /nothing"),
        (tar(member(".wh.", b"")), OciError, "names nothing"),
        (b"no tar archive at all", TarError, "layer 1: offset"),
    ],
)
def test_bad_layers(tmp_path: Path, layer: bytes, error: type[CfsError], what: str) -> None:
    refused(tmp_path, making.image([layer]), error, what, 1)


def test_trailing_garbage_behind_gzip(tmp_path: Path) -> None:
    layout = Layout()
    entry = layout.manifest([hello()])
    stored = COMPRESSORS["+gzip"](hello()) + b"garbage"
    layer = layout.blob(stored, making.LAYER + "+gzip")
    config = next(data for data in layout.blobs.values() if b"rootfs" in data)
    body = {"schemaVersion": 2, "config": making.descriptor(config, making.CONFIG), "layers": [layer]}
    assert entry
    layout.tag(layout.blob(making.packed(body), making.MANIFEST))
    refused(tmp_path, layout.files(), CompressionError, "layer 1: compressed offset", 1)


def test_decompression_bombs(tmp_path: Path) -> None:
    layer = tar(member("zeros", bytes(20_000_000)))
    files = making.image([layer], "+gzip")
    for limits, what in [
        (DecompressionLimits(total=1_000_000), "more than 1000000 bytes"),
        (DecompressionLimits(ratio=100, ratio_from=1_000_000), "more than 100 times"),
    ]:
        with pytest.raises(LimitExceeded, match=what), writer_to(tmp_path) as writer:
            read(files, writer=writer, options=OciOptions(decompression_limits=limits))
    assert objects(tmp_path) == []
    with pytest.raises(LimitExceeded, match="more than 2 entries"):
        read(making.image([BASE]), options=OciOptions(rules=LayerRules(max_entries=2)))


def test_media_type_that_lies_is_told() -> None:
    layout = Layout()
    layout.manifest([hello()])
    config = next(data for data in layout.blobs.values() if b"rootfs" in data)
    layer = layout.blob(COMPRESSORS["+zstd"](hello()), making.LAYER + "+gzip")
    body = {"schemaVersion": 2, "config": making.descriptor(config, making.CONFIG), "layers": [layer]}
    layout.tag(layout.blob(making.packed(body), making.MANIFEST))
    assert "says compression gzip, the bytes say zstd" in str(read(layout.files()).report.warnings[0])


def test_sha512_layers() -> None:
    tree = read(making.image([BASE], "+gzip", "sha512"))
    assert tree.report.layers[0].digest.startswith("sha512:")
    assert tree.report.layers[0].diff_id == making.digest(BASE, "sha512")


def test_warnings_are_bounded() -> None:
    steps = [member(f"x/../{number}", b"") for number in range(MAX_WARNINGS + 5)]
    report = read(making.image([tar(*steps)])).report
    assert len(report.warnings) + report.warnings_dropped >= MAX_WARNINGS + 5
    assert len(report.warnings) == MAX_WARNINGS


# Where images come from


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:d", (Form.OCI, "d", None)),
        ("oci:d:v1", (Form.OCI, "d", "v1")),
        ("oci:no:v1:x", (Form.OCI, "no", "v1:x")),
        ("oci-archive:f.tar:v1", (Form.OCI_ARCHIVE, "f.tar", "v1")),
        ("docker-archive:f.tar:app:1", (Form.DOCKER_ARCHIVE, "f.tar", "app:1")),
        ("docker-archive:f.tar:@1", (Form.DOCKER_ARCHIVE, "f.tar", "@1")),
        ("oci:with:colon", (Form.OCI, "with:colon", None)),
        ("oci:with:colon:v1", (Form.OCI, "with:colon", "v1")),
        ("layers:with:colon", (Form.LAYERS, "with:colon", None)),
        ("oci-archive:-", (Form.OCI_ARCHIVE, "-", None)),
    ],
)
def test_references(
    text: str, expected: tuple[Form, str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for existing in ("d", "f.tar", "with:colon"):
        Path(existing).touch()
    found = parse_reference(text.encode())
    assert found is not None
    assert (found.form, os.fsdecode(found.path), found.name) == expected
    assert found.digest is None


def test_other_references(tmp_path: Path) -> None:
    digest = making.digest(b"x")
    found = parse_reference(b"oci:" + os.fsencode(tmp_path) + b"@" + digest.encode())
    assert found is not None
    assert (str(found.digest), found.path) == (digest, os.fsencode(tmp_path))
    assert parse_reference(b"plain/path") is None
    assert parse_reference(b"other:path") is None
    assert parse_reference(b"oci") is None
    for text in (b"oci:", b"oci:x@sha256:short"):
        with pytest.raises(UsageError):
            parse_reference(text)


def test_what_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").touch()
    assert kind_of(os.fsencode(tmp_path)) is SourceKind.DIRECTORY
    cases: dict[bytes, bool] = {
        b"nothing of the kind": False,
        b"": False,
        COMPRESSORS["+gzip"](b"nothing of the kind"): False,
        hello(): True,
        bytes(1024): True,
        bytes(10240): True,
        bytes(1 << 20): True,
        bytes((1 << 20) + 512): False,
        bytes(1024) + b"a disk image": False,
        tar(member("./")): True,
        COMPRESSORS["+zstd"](hello()): True,
        COMPRESSORS["+zstd"](bytes(1024)): True,
        COMPRESSORS["+gzip"](b""): True,
    }
    for data, is_tar in cases.items():
        (tmp_path / "file").write_bytes(data)
        kind = kind_of(os.fsencode(tmp_path / "file"))
        assert kind is (SourceKind.CONTAINER if is_tar else SourceKind.UNKNOWN), data[:20]
    (tmp_path / "file").write_bytes(COMPRESSORS["+gzip"](hello())[:20])
    with pytest.raises(CompressionError, match="is truncated"):
        kind_of(os.fsencode(tmp_path / "file"))
    os.mkfifo(tmp_path / "pipe")
    assert kind_of(os.fsencode(tmp_path / "pipe")) is SourceKind.UNKNOWN  # nobody has it open for writing
    with pytest.raises(InputError, match="cannot open") as caught:
        kind_of(b"/no/such/file")
    assert caught.value.subject == "/no/such/file"


def test_layers_in_order_and_from_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(COMPRESSORS["+gzip"](BASE))
    reading, writing = os.pipe()
    os.write(writing, TOP)
    os.close(writing)
    with open_images(Form.LAYERS, [os.fsencode(tmp_path / "base"), b"-"], stdin=reading) as container:
        tree = read_oci(container)
    os.close(reading)
    assert image_digest(tree, 1) == image_digest(read(making.image([BASE, TOP])), 1)
    assert tree.report.layers[1].path == "-"
    assert tree.report.manifest is None


def test_named_pipes(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(TarError, match="is empty"), open_images(Form.LAYERS, [os.fsencode(path)]) as container:
        read_oci(container)
    keep = os.open(path, os.O_RDWR)
    source = LayerSource(path=str(path))
    with open_images(Form.LAYERS, [os.fsencode(path)]) as container, container.open_layer(source) as read_layer:
        timer = threading.Timer(0.05, os.write, (keep, b"late"))
        timer.start()
        assert read_layer(10) == b"late"
        timer.join()
    os.close(keep)


def test_directories_in_the_place_of_files(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path)
    for form in (Form.OCI_ARCHIVE, Form.DOCKER_ARCHIVE):
        with pytest.raises(InputError, match=r"is a directory, .*: use oci:") as caught, open_images(form, [path]):
            pass
        assert caught.value.subject == str(tmp_path)
    refused = pytest.raises(UsageError, match="goes over a layer tar, and the source is a directory")
    with refused, open_images(Form.LAYERS, [path, b"top"]):
        pass


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with (
        pytest.raises(TarError, match=r"standard input: .* empty"),
        open_images(Form.OCI_ARCHIVE, [b"-"], stdin=reading),
    ):
        pass
    os.close(reading)
    with pytest.raises(UsageError, match="cannot be used here"), open_images(Form.OCI_ARCHIVE, [b"-"]):
        pass
    with pytest.raises(UsageError, match="one layer only"), open_images(Form.LAYERS, [b"-", b"-"], stdin=0):
        pass
    with pytest.raises(UsageError, match="the source is an image"), open_images(Form.OCI, [b"a", b"b"]):
        pass
    path = os.fsencode(tmp_path / "x")
    with pytest.raises(InputError, match="/x: cannot open"), open_images(Form.LAYERS, [path]) as container:
        read_oci(container)
    (tmp_path / "x").write_bytes(tar(member("some", b"thing")))
    for form, what in [(Form.OCI_ARCHIVE, "oci-layout: missing"), (Form.DOCKER_ARCHIVE, "manifest.json: missing")]:
        with pytest.raises(OciError, match=what) as caught, open_images(form, [path]):
            pass
        assert caught.value.subject == str(tmp_path / "x")
    with pytest.raises(InputError, match="cannot open"), open_images(Form.OCI, [path]):
        pass


def test_an_archive_from_standard_input_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(making.archive(making.image([hello()])))
    with open(tmp_path / "a", "rb") as file, open_images(Form.OCI_ARCHIVE, [b"-"], stdin=file.fileno()) as container:
        assert read_oci(container).report.kind == "oci-archive"


def test_a_form_that_is_asked_for_is_the_one_that_is_read(tmp_path: Path) -> None:
    both = {**making.docker([BASE]), **making.image([hello()])}
    (tmp_path / "a").write_bytes(making.archive(both))
    for form, layer in ((Form.OCI_ARCHIVE, hello()), (Form.DOCKER_ARCHIVE, BASE)):
        with open_images(form, [os.fsencode(tmp_path / "a")]) as container:
            assert container.image().layers[0].diff_id == parse_digest(making.digest(layer), "")
            assert container.kind == form.value


# Describing


def test_describe() -> None:
    files = making.image([BASE, TOP], "+gzip")
    found = describe(layout_images(MemoryFiles(files)))
    stored = COMPRESSORS["+gzip"](BASE)
    assert found.layers[0].digest == making.digest(stored)
    assert found.layers[0].size == len(stored)
    assert found.layers[0].diff_id == making.digest(BASE)
    assert found.labels == {"a": "b"}
    assert found.images == (f"@{found.manifest}",)
    assert found.to_dict()["platform"] == "linux/amd64"
    docker = describe(DockerImages(MemoryFiles(making.docker([BASE]))))
    assert (docker.names, docker.manifest) == (("app:latest",), None)


def test_describe_layers(tmp_path: Path) -> None:
    stored = COMPRESSORS["+zstd"](BASE)
    (tmp_path / "l").write_bytes(stored)
    with open_images(Form.LAYERS, [os.fsencode(tmp_path / "l")]) as container:
        layer = describe(container).layers[0]
    assert (layer.digest, layer.size, layer.diff_id) == (making.digest(stored), len(stored), making.digest(BASE))


def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    layer = tar(*(member(f"usr/{number}", os.urandom(8 << 20)) for number in range(6)))
    with writer_to(tmp_path) as writer:
        files = making.image([layer])
        tracemalloc.start()
        read(files, writer=writer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


@given(
    st.lists(st.binary(max_size=600) | st.sampled_from([hello(), bytes(1024)]), max_size=3),
    st.integers(0, 3000),
    st.binary(max_size=4),
)
def test_any_layer_gives_a_tree_or_one_error(parts: list[bytes], at: int, patch: bytes) -> None:
    data = bytearray(b"".join(parts))
    data[at : at + len(patch)] = patch
    files: BlobFiles = MemoryFiles({"l": bytes(data)})
    try:
        read_oci(LayerTars([("l", lambda: files.open("l"))]))
    except CfsError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_layers_that_repeat_or_grow_share_what_they_may_grow() -> None:
    """A small layer of zeros named many times, or many of them, cannot be unpacked each time anew without an end."""
    zeros = [tar(member(f"f{number}", bytes(200_000))) for number in range(4)]
    plain, packed = len(zeros[0]), len(COMPRESSORS["+gzip"](zeros[0]))

    def fits(layers: list[bytes], ratio: int, ratio_from: int) -> bool:
        limits = DecompressionLimits(ratio=ratio, ratio_from=ratio_from)
        container = layout_images(MemoryFiles(making.image(layers, "+gzip")))
        try:
            read_oci(container, options=OciOptions(decompression_limits=limits))
        except LimitExceeded:
            return False
        return True

    for layers in (zeros[:3], zeros[:1] * 3):
        assert fits(layers, 2, 3 * plain)
        assert not fits(layers, 2, 3 * plain - 1)
    # One that may grow as it does may come again as long as all bytes that came allow it.
    ratio = plain // packed + 1
    assert fits(zeros, ratio, 0)
    assert fits([*zeros[:1], *[bytes(1024)] * 3], ratio, 10_000)
    assert not fits(zeros[:1] * 3, ratio, 0)
    assert fits(zeros[:1] * 3, 4 * ratio, 0)
