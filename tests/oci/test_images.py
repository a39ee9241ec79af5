"""Layouts, archives and docker archives: the same image wherever its files lie, and every way one can be wrong."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import (
    CfsError,
    CheckFailed,
    CompressionError,
    InputError,
    LimitExceeded,
    OciError,
    TarError,
    Unsupported,
)
from cfstools.oci import archive as archive_module
from cfstools.oci.archive import ArchiveFiles, index_archive, member_path
from cfstools.oci.descriptor import parse_digest, parse_platform
from cfstools.oci.files import BlobFiles, DirectoryFiles, MemoryFiles, read_all
from cfstools.oci.images import DockerImages, ImageContainer, LayerTars, OciImages, layout_images
from cfstools.oci.select import Selector
from cfstools.streams import spool as spool_module
from cfstools.streams.limits import MAX_JSON
from cfstools.streams.spool import Replayable
from tests.oci import making
from tests.oci.making import COMPRESSORS, CONFIG, LAYER, MANIFEST, Layout, descriptor, hello, link, member, packed, tar

BIG = os.urandom(700_000)


def on_disk(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def archive_files(path: Path, data: bytes) -> ArchiveFiles:
    path.write_bytes(data)
    files = index_archive(Replayable(os.open(path, os.O_RDONLY), no_file), no_file)
    assert files is not None
    return files


def no_file() -> int:
    raise AssertionError("what is small needs no file")


def layers_of(container: ImageContainer, choice: Selector = Selector()) -> list[bytes]:  # noqa: B008
    found = []
    for layer in container.image(choice).layers:
        with container.open_layer(layer) as read:
            parts = []
            while part := read(1 << 16):
                parts.append(part)
        found.append(b"".join(parts))
    return found


LAYERS = [hello(), tar(member("big", BIG)), tar(member("c", b"c"))]


def test_memory_and_directory_are_alike(tmp_path: Path) -> None:
    files = making.image(LAYERS)
    directory = DirectoryFiles(str(on_disk(tmp_path, files)))
    for here in (MemoryFiles(files), directory):
        container = layout_images(here)
        assert layers_of(container) == LAYERS
        assert here.size("nothing") is None
        assert here.size("index.json") == len(files["index.json"])
        with pytest.raises(OciError, match="missing from the image"), here.open("no/thing"):
            pass
        container.close()
    directory.close()


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("prefix", ["", "./", "/"])
@pytest.mark.parametrize("turned", [False, True])
def test_archives(tmp_path: Path, compression: str, prefix: str, turned: bool) -> None:
    files = making.image(LAYERS)
    if turned:
        files = dict(reversed(files.items()))
    here = archive_files(tmp_path / "a", COMPRESSORS[compression](making.archive(files, prefix)))
    container = layout_images(here)
    assert layers_of(container) == LAYERS
    # In the other order, and again: a compressed archive is decompressed anew.
    image = container.image()
    with container.open_layer(image.layers[2]) as read:
        assert read(10) == LAYERS[2][:10]
    with container.open_layer(image.layers[1]) as read:
        assert read(10) == LAYERS[1][:10]
    container.close()
    here.close()


def test_an_uncompressed_archive_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = making.archive({"big": bytes(50_000_000), "oci-layout": b"{}"})
    taken = 0

    def counted(self: spool_module.FileAccess, count: int, offset: int) -> bytes:
        nonlocal taken
        part = pread(self, count, offset)
        taken += len(part)
        return part

    pread = spool_module.FileAccess.pread
    monkeypatch.setattr(spool_module.FileAccess, "pread", counted)
    assert archive_files(tmp_path / "a", data).size("big") == 50_000_000
    assert taken < 2_000_000


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_cut_archives(tmp_path: Path, compression: str) -> None:
    data = COMPRESSORS[compression](making.archive({"big": BIG, "x": b""}))
    with pytest.raises((TarError, CompressionError)):
        archive_files(tmp_path / "a", data[:500_000])


def test_archive_that_shrinks_while_read(tmp_path: Path) -> None:
    here = archive_files(tmp_path / "a", making.archive({"big": BIG}))
    os.truncate(tmp_path / "a", 2000)
    with pytest.raises(InputError, match="became shorter"):
        read_all(here, "big", 1 << 20)


def test_links_in_archives_are_followed_once(tmp_path: Path) -> None:
    members = [
        member("b/layer.tar", b"b"),
        link("a/layer.tar", "../b/layer.tar"),
        link("root", "/b/layer.tar"),
        link("hard", "b/layer.tar", hard=True),
        link("again", "a/layer.tar"),
        link("out", "../b/layer.tar"),
        link("dangling", "nothing"),
        member("dir/"),
        member("../outside", b"x"),
    ]
    here = archive_files(tmp_path / "a", tar(*members))
    for name in ("a/layer.tar", "root", "hard", "b/layer.tar"):
        assert read_all(here, name, 10) == b"b"
    for name in ("again", "out", "dangling"):
        with pytest.raises(OciError, match="target is not a file"):
            here.size(name)
    for name in ("dir", "outside", "../outside"):
        assert here.size(name) is None


def test_archive_with_a_name_twice(tmp_path: Path) -> None:
    with pytest.raises(OciError, match=r"index\.json: two members of one name"):
        archive_files(tmp_path / "a", tar(member("index.json", b"1"), member("./index.json", b"2")))


def test_archive_with_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_MEMBERS", 2)
    with pytest.raises(LimitExceeded, match="more than 2 files"):
        archive_files(tmp_path / "a", tar(*(member(str(number), b"") for number in range(3))))


def test_member_paths() -> None:
    assert member_path(b"./a//b/./c") == "a/b/c"
    assert member_path(b"./") is None
    assert member_path(b"a/../b") is None
    assert member_path(b"\xff") == "\udcff"


def test_directory_follows_links_inside_it_only(tmp_path: Path) -> None:
    files = making.image([hello()])
    blob = next(name for name in files if name.startswith("blobs"))
    root = on_disk(tmp_path / "image", files)
    (tmp_path / "elsewhere").write_bytes(files[blob])
    (root / "real").write_bytes(files[blob])
    (root / "pool").symlink_to("blobs")
    (root / "loop").symlink_to("loop")
    (root / "blobs" / "up").symlink_to("..")
    here = DirectoryFiles(os.fsencode(root))
    (root / blob).unlink()
    for target in ("../../real", "../up/real", "../../pool/../real", "./..//.././real"):
        (root / blob).symlink_to(target)
        assert read_all(here, blob, 1 << 20) == files[blob]
        (root / blob).unlink()
    assert here.size("pool/up/index.json") == len(files["index.json"])
    for target in (str(tmp_path / "elsewhere"), "../../../elsewhere", "../up/../elsewhere", str(root / "real")):
        (root / blob).symlink_to(target)
        with pytest.raises(OciError, match="leads out of the image") as caught:
            here.size(blob)
        assert caught.value.hint
        (root / blob).unlink()
    (root / blob).symlink_to("nothing")
    for path in (blob, "index.json/below", "real/below"):
        assert here.size(path) is None
    with pytest.raises(OciError, match="more than 40 symbolic links"):
        here.size("loop")
    for path in ("../elsewhere", "/etc/passwd", "blobs/../index.json", ""):
        with pytest.raises(OciError, match="leaves the image"):
            here.size(path)
    for path in ("blobs", "pool"):
        with pytest.raises(OciError, match="not a regular file"):
            here.size(path)
    os.mkfifo(root / "pipe")
    with pytest.raises(OciError, match="not a regular file"):
        here.size("pipe")
    with pytest.raises(InputError, match="cannot open"):
        here.size("x" * 300)
    here.close()
    with pytest.raises(InputError, match="cannot open") as caught_too:
        DirectoryFiles(str(tmp_path / "nothing"))
    assert caught_too.value.subject == str(tmp_path / "nothing")


def test_files_have_a_limit() -> None:
    with pytest.raises(OciError, match="longer than 3 bytes"):
        read_all(MemoryFiles({"a": b"1234"}), "a", 3)


def replaced(files: dict[str, bytes], path: str, data: bytes | None) -> dict[str, bytes]:
    return {name: data if name == path else old for name, old in files.items() if name != path or data is not None}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "data", "what"),
    [
        ("oci-layout", None, "oci-layout: missing from the image"),
        ("oci-layout", b"{}", "oci-layout.imageLayoutVersion: missing"),
        ("oci-layout", b"[]", "oci-layout: not a JSON object"),
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "layout version"),
        ("index.json", None, "index.json: missing from the image"),
        ("index.json", b"{}", "index.json: schemaVersion: missing"),
        ("index.json", b"nonsense", "index.json: not JSON"),
    ],
)
def test_bad_layouts(path: str, data: bytes | None, what: str) -> None:
    files = replaced(making.image([hello()]), path, data)
    with pytest.raises(OciError, match=what) as caught:
        layout_images(MemoryFiles(files)).image()
    assert caught.value.exit_code == 1


def with_blobs(change: Callable[[Layout, dict[str, Any]], None]) -> OciImages:
    layout = Layout()
    entry = layout.manifest([hello()])
    change(layout, entry)
    return layout_images(MemoryFiles(layout.tag(entry).files()))


def test_blobs_that_are_not_what_the_descriptor_says() -> None:
    layout = Layout()
    entry = layout.manifest([hello()])
    for path, data in list(layout.blobs.items()):
        is_layer = data == hello()
        files = layout.tag(entry).files()
        with pytest.raises(OciError, match=f"{path}: missing from the image"):
            layout_images(MemoryFiles(replaced(files, path, None))).image()
        with pytest.raises(OciError, match=f"{len(data) + 1} bytes long, its descriptor says {len(data)}") as caught:
            layout_images(MemoryFiles(replaced(files, path, data + b" "))).image()
        assert caught.value.exit_code == 1
        if not is_layer:
            with pytest.raises(CheckFailed, match="the contents have digest"):
                layout_images(MemoryFiles(replaced(files, path, data[:-1] + b" "))).image()
        layout.entries.clear()


def test_manifest_larger_than_the_limit() -> None:
    def change(layout: Layout, entry: dict[str, Any]) -> None:
        entry["size"] = MAX_JSON + 1

    with pytest.raises(LimitExceeded, match="more than 4194304"):
        with_blobs(change).image()


def test_layer_that_cannot_be_checked() -> None:
    layout = Layout()
    config = layout.blob(packed({"rootfs": {"type": "layers", "diff_ids": [making.digest(b"")]}}), CONFIG)
    layer = {"mediaType": LAYER, "digest": "blake3:" + "0" * 64, "size": 1}
    body = {"schemaVersion": 2, "config": config, "layers": [layer]}
    layout.tag(layout.blob(packed(body), MANIFEST))
    with pytest.raises(Unsupported, match="blake3"):
        layout_images(MemoryFiles(layout.files())).image()


def test_embedded_blobs_need_no_files() -> None:
    import base64

    def inline(data: bytes, media_type: str) -> dict[str, Any]:
        return {**descriptor(data, media_type), "data": base64.b64encode(data).decode()}

    config = inline(packed({"rootfs": {"type": "layers", "diff_ids": [making.digest(hello())]}}), CONFIG)
    manifest = inline(packed({"schemaVersion": 2, "config": config, "layers": [inline(hello(), LAYER)]}), MANIFEST)
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": packed({"schemaVersion": 2, "manifests": [manifest]}),
    }
    assert layers_of(layout_images(MemoryFiles(files))) == [hello()]


def test_what_an_image_tells() -> None:
    image = layout_images(MemoryFiles(making.image([hello()], "+gzip"))).image()
    assert str(image.platform) == "linux/amd64"
    assert image.config is not None
    assert image.config.created == "2020-01-01T00:00:00Z"
    assert image.layers[0].media_type == LAYER + "+gzip"
    assert str(image.layers[0].diff_id) == making.digest(hello())


# Docker archives


def old_docker(layers: list[bytes]) -> bytes:
    """As docker before 25: a directory for each layer, links where two images share one."""
    config = packed(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [*map(making.digest, layers)]},
        }
    )
    name = making.digest(config)[7:] + ".json"
    members = [member(name, config)]
    names = []
    for number, layer in enumerate(layers):
        here = f"{number:064x}"
        members += [member(here + "/"), member(here + "/VERSION", b"1.0"), member(here + "/json", b"{}")]
        same = layers.index(layer)
        if same < number:
            members.append(link(here + "/layer.tar", f"../{same:064x}/layer.tar"))
        else:
            members.append(member(here + "/layer.tar", layer))
        names.append(here + "/layer.tar")
    members.append(member("repositories", b"{}"))
    members.append(member("manifest.json", packed([{"Config": name, "RepoTags": ["app:1"], "Layers": names}])))
    return tar(*members)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_docker_archives(tmp_path: Path, compression: str) -> None:
    twice = [LAYERS[0], LAYERS[1], LAYERS[0]]
    pack = COMPRESSORS[compression]
    for data, expected in [(making.archive(making.docker(LAYERS)), LAYERS), (old_docker(twice), twice)]:
        container = DockerImages(archive_files(tmp_path / "a", pack(data)))
        assert layers_of(container) == expected
        image = container.image()
        assert image.manifest is None
        assert str(image.platform) == "linux/amd64"
        assert str(image.layers[0].diff_id) == making.digest(expected[0])
        container.close()


def test_docker_choice() -> None:
    one, two = making.docker([hello()], ["app:1", "app:one"]), making.docker([tar(member("x"))], [])
    entries = [*__import__("json").loads(one["manifest.json"]), *__import__("json").loads(two["manifest.json"])]
    container = DockerImages(MemoryFiles({**one, **two, "manifest.json": packed(entries)}))
    assert container.names() == ["app:1", "@1"]
    assert layers_of(container, Selector(name="app:one")) == [hello()]
    assert layers_of(container, Selector(name="@1")) == [tar(member("x"))]
    with pytest.raises(OciError, match="2 images match; there is app:1, @1"):
        container.image()
    for name in ("app", "@2", "other"):
        with pytest.raises(OciError, match=r"no image .*; there is app:1, @1"):
            container.image(Selector(name=name))
    with pytest.raises(OciError, match="no manifest digests"):
        container.image(Selector(digest=parse_digest("sha256:" + "0" * 64, "")))
    with pytest.raises(OciError, match="the image is for linux/amd64, not for linux/arm64"):
        container.image(Selector(name="@0", platform=parse_platform("linux/arm64")))


def test_docker_blobs_named_by_digest_are_checked() -> None:
    files = making.docker([hello()])
    layer = next(name for name in files if name.endswith(".tar"))
    path = "blobs/sha256/" + making.digest(hello())[7:]
    files[path] = files.pop(layer)
    files["manifest.json"] = files["manifest.json"].replace(layer.encode(), path.encode())
    assert str(DockerImages(MemoryFiles(files)).image().layers[0].digest) == making.digest(hello())


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (lambda files: files.pop("manifest.json"), OciError, "manifest.json: missing"),
        (lambda files: files.update({"manifest.json": b"{}"}), OciError, "manifest.json: not an array"),
        (lambda files: files.update({"manifest.json": b"[1]"}), OciError, r"manifest.json: \[0\]: not a JSON object"),
        (
            lambda files: files.update({"manifest.json": b'[{"Layers": []}]'}),
            OciError,
            r"manifest.json: \[0\].Config: missing",
        ),
        (
            lambda files: files.update({"manifest.json": packed([{"Config": "c", "Layers": ["l"] * 1001}])}),
            LimitExceeded,
            "1001 layers",
        ),
        (
            lambda files: files.pop(next(name for name in files if name.endswith(".tar"))),
            OciError,
            "missing from the image",
        ),
        (
            lambda files: files.update({next(name for name in files if len(name) == 69): b"{}"}),
            CheckFailed,
            "not the one in the name",
        ),
    ],
)
def test_bad_docker_archives(change: Callable[[dict[str, bytes]], None], error: type[CfsError], what: str) -> None:
    files = making.docker([hello()])
    change(files)
    with pytest.raises(error, match=what):
        DockerImages(MemoryFiles(files)).image()


def test_layer_tars() -> None:
    files: BlobFiles = MemoryFiles({"a": b"1", "b": b"2"})
    container = LayerTars([("a", lambda: files.open("a")), ("b", lambda: files.open("b"))])
    assert layers_of(container) == [b"1", b"2"]
    assert container.names() == []
    assert container.image().platform is None
    with pytest.raises(OciError, match="have no names"):
        container.image(Selector(name="x"))
    container.close()


def test_members_that_are_no_files_are_no_blobs(tmp_path: Path) -> None:
    here = archive_files(tmp_path / "a", tar(member("fifo", None, type=tarfile.FIFOTYPE), member("f", b"")))
    assert here.size("fifo") is None
    assert here.size("f") == 0
    assert read_all(here, "f", 10) == b""
