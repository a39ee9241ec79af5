"""Image archives told from layers by all of their members: from files and pipes, plain and compressed, alike."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.errors import FormatError, OciError, TarError, UsageError
from cfstools.sources.oci import read_oci
from cfstools.sources.oci_containers import open_images
from cfstools.sources.oci_request import Form, OciRequest
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading, SourceKind
from cfstools.streams.decompress import Decompressed
from tests.oci import making
from tests.oci.making import COMPRESSORS, Layout, archive, digest, hello, link, member, packed, tar

Members = list[tuple[tarfile.TarInfo, bytes]]
PACKERS: dict[str, Callable[[bytes], bytes]] = {**COMPRESSORS, "+xz": lzma.compress, "+bzip2": bz2.compress}
HEX = "a" * 64


class Found:
    """What an archive was taken for, and the names at the top of the tree that it became."""

    def __init__(self, kind: str, names: set[str], layers: list[str]) -> None:
        self.kind = kind
        self.names = names
        self.layers = layers


def opened(form: Form | None, path: str, stdin: int | None = None) -> Found:
    with open_images(form, [os.fsencode(path)], stdin=stdin) as container:
        tree = read_oci(container)
    return Found(container.kind, set(map(os.fsdecode, tree.root.entries)), [one.diff_id for one in tree.report.layers])


def from_file(data: bytes, place: Path, form: Form | None = None) -> Found:
    (place / "it").write_bytes(data)
    if form is None:
        with recognise(bytes(place / "it")) as source:
            assert source.kind is SourceKind.CONTAINER
    return opened(form, str(place / "it"))


def from_pipe(data: bytes, place: Path, form: Form | None = None) -> Found:
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return opened(form, "-", reading)
    finally:
        os.close(reading)
        thread.join()


ways = pytest.mark.parametrize("way", [from_file, from_pipe])
packings = pytest.mark.parametrize("packing", PACKERS)


def docker_members(files: dict[str, bytes]) -> Members:
    return [member(path, data) for path, data in files.items()]


def crane(layers: list[bytes]) -> Members:
    """As go-containerregistry writes it, and with it crane, ko and kaniko."""
    config = packed({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids(layers)}})
    stored = {digest(COMPRESSORS["+gzip"](one))[7:] + ".tar.gz": COMPRESSORS["+gzip"](one) for one in layers}
    manifest = packed([{"Config": digest(config), "RepoTags": ["app:1"], "Layers": list(stored)}])
    return docker_members({digest(config): config, **stored, "manifest.json": manifest})


def jib(layers: list[bytes]) -> Members:
    config = packed({"rootfs": {"type": "layers", "diff_ids": ids(layers)}})
    stored = {digest(COMPRESSORS["+gzip"](one))[7:] + ".tar.gz": COMPRESSORS["+gzip"](one) for one in layers}
    manifest = packed([{"Config": "config.json", "RepoTags": ["app"], "Layers": list(stored)}])
    return docker_members({**stored, "config.json": config, "manifest.json": manifest})


def odd_names(layers: list[bytes]) -> Members:
    """With names that only the manifest, which comes last, tells for parts."""
    config = packed({"rootfs": {"type": "layers", "diff_ids": ids(layers)}})
    names = [f"layers/{number}/layer" for number in range(len(layers))]
    manifest = packed([{"Config": "./meta/config", "RepoTags": None, "Layers": ["./" + name for name in names]}])
    stored = [member(name, data) for name, data in zip(names, layers, strict=True)]
    return [
        member("layers/"),
        member("layers/0/"),
        *stored,
        member("meta/config", config),
        member("manifest.json", manifest),
    ]


def legacy(layers: list[bytes]) -> Members:
    """As `docker save` up to 24 writes it, each layer in a directory."""
    config = packed({"rootfs": {"type": "layers", "diff_ids": ids(layers)}})
    members: Members = []
    for number, layer in enumerate(layers):
        here = f"{number:064x}"
        members += [member(here + "/"), member(here + "/VERSION", b"1.0"), member(here + "/json", b"{}")]
        members.append(member(here + "/layer.tar", layer))
    name = digest(config)[7:] + ".json"
    names = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    manifest = packed([{"Config": name, "RepoTags": ["app:1"], "Layers": names}])
    return [*members, member(name, config), member("manifest.json", manifest), member("repositories", b"{}")]


def skopeo(layers: list[bytes]) -> Members:
    """As skopeo, podman and buildah write a docker archive."""
    files = making.docker(layers)
    name = next(path for path in files if path.endswith(".tar"))
    old = [link(f"{HEX}/layer.tar", "../" + name), member(f"{HEX}/VERSION", b"1.0"), member(f"{HEX}/json", b"{}")]
    return [*docker_members(files), *old, member("repositories", b"{}")]


def both(layers: list[bytes]) -> Members:
    """As docker from 25, containerd and nerdctl write it: a layout, and a manifest.json that names its blobs."""
    layout = Layout()
    files = layout.tag(layout.manifest(layers), "1").files()
    blobs = {data: path for path, data in files.items()}
    config = next(path for path, data in files.items() if b'"rootfs"' in data)
    manifest = packed([{"Config": config, "RepoTags": ["app:1"], "Layers": [blobs[one] for one in layers]}])
    return [member("blobs/"), member("blobs/sha256/"), *docker_members({**files, "manifest.json": manifest})]


def oci(layers: list[bytes]) -> Members:
    return docker_members(making.image(layers, "+gzip"))


def ids(layers: list[bytes]) -> list[str]:
    return [*map(digest, layers)]


WRITERS: dict[str, tuple[Callable[[list[bytes]], Members], str]] = {
    "crane": (crane, "docker-archive"),
    "jib": (jib, "docker-archive"),
    "odd names": (odd_names, "docker-archive"),
    "legacy": (legacy, "docker-archive"),
    "skopeo": (skopeo, "docker-archive"),
    "both": (both, "oci-archive"),
    "oci": (oci, "oci-archive"),
}
LAYERS = [hello(), tar(member("opt/"), member("opt/big", os.urandom(300_000)))]


@ways
@packings
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("turned", [False, True])
def test_image_archives(way: Callable[..., Found], packing: str, writer: str, turned: bool, tmp_path: Path) -> None:
    make, kind = WRITERS[writer]
    members = make(LAYERS)
    data = PACKERS[packing](tar(*(reversed(members) if turned else members)))
    found = way(data, tmp_path)
    assert (found.kind, found.layers) == (kind, ids(LAYERS))
    form = Form.DOCKER_ARCHIVE if kind == "docker-archive" else Form.OCI_ARCHIVE
    assert way(data, tmp_path, form).layers == ids(LAYERS)


@pytest.mark.parametrize("prefix", ["./", "/", ".//"])
@pytest.mark.parametrize("writer", WRITERS)
def test_prefixed_members(prefix: str, writer: str, tmp_path: Path) -> None:
    members = [member("./")]
    for info, data in WRITERS[writer][0](LAYERS):
        info.name = prefix + info.name
        members.append((info, data))
    assert from_file(tar(*members), tmp_path).layers == ids(LAYERS)


OWN: dict[str, Members] = {
    "package.json": [member("package.json", b"{}"), member("index.js", b"1")],
    "VERSION": [member("VERSION", b"1.0")],
    "manifest": [member("manifest.json", b'{"name": "extension"}')],
    "index": [member("index.json", b"{}")],
    "blob of its own": [
        member("blobs/"),
        member("blobs/picture", b"\x89PNG"),
        member("app/"),
        member("app/run", b"#!"),
    ],
    "names of all": [
        member("oci-layout", b"hello"),
        member("index.json", b"[]"),
        member("manifest.json", b"[]"),
        member("repositories", b"http://example.org/alpine"),
        member("VERSION", b"1"),
        member("etc/passwd", b"root:x:0:0"),
    ],
    "a layout of its own": [*oci([hello()]), member("usr/"), member("usr/app", b"x")],
    "a layout and links": [link("bin", "usr/bin"), *oci([hello()])],
    "a docker archive of its own": [*skopeo([hello()]), member("etc/"), member("etc/passwd", b"x")],
    "a layout and a program": [*oci([hello()]), member("app/main.py", b"import os")],
    "a layout and a whiteout": [*oci([hello()]), member("blobs/.wh.y", b"")],
    "a layout and a device": [*oci([hello()]), member("null", None, type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a manifest of images that are not there": [
        member("manifest.json", packed([{"Config": HEX + ".json", "Layers": [HEX + ".tar"]}])),
        member("app.conf", b"x = 1"),
    ],
    "directories": [member("blobs/"), member("blobs/sha256/"), member(HEX + "/")],
    "one program": [member("app", b"\x7fELF" + bytes(2000))],
    "archives": [
        member("data/"),
        member("data/a.tar", hello()),
        member("data/b.json", b"{}"),
        member("data/empty", b""),
    ],
    "a root entry": [member("./"), member("./usr/"), member("./usr/x", b"x")],
    "nothing": [],
}


@ways
@packings
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_layers(way: Callable[..., Found], packing: str, turned: bool, name: str, tmp_path: Path) -> None:
    members = list(reversed(OWN[name])) if turned else OWN[name]
    layer = tar(*members)
    found = way(PACKERS[packing](layer), tmp_path)
    assert (found.kind, found.layers) == ("layers", [digest(layer)])
    tops = {info.name.strip("./").partition("/")[0] or info.name.strip("/") for info, _ in members} - {"."}
    assert found.names == tops


@ways
@packings
@pytest.mark.parametrize("size", [1024, 10240, 20480])
def test_an_empty_tar_is_a_layer(way: Callable[..., Found], packing: str, size: int, tmp_path: Path) -> None:
    found = way(PACKERS[packing](bytes(size)), tmp_path)
    assert (found.kind, found.names, found.layers) == ("layers", set(), [digest(bytes(size))])


AMBIGUOUS: dict[str, Members] = {
    "a readme": [member("README", b"hello"), *oci([hello()])],
    "a checksum": [*skopeo([hello()]), member("SHA256SUMS", b"...")],
    "an empty directory": [*skopeo([hello()]), member("extra/")],
    "one part is missing": [*skopeo(LAYERS)[:2], member("NOTES", b"...")],
}


@ways
@packings
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_both_is_refused(way: Callable[..., Found], packing: str, name: str, tmp_path: Path) -> None:
    data = PACKERS[packing](tar(*AMBIGUOUS[name]))
    with pytest.raises(OciError, match="could be an image archive or a layer") as caught:
        way(data, tmp_path)
    assert all(form in (caught.value.hint or "") for form in ("docker-archive:", "oci-archive:", "layers:"))
    assert way(data, tmp_path, Form.LAYERS).kind == "layers"


@ways
@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([member("blobs/sha256/" + HEX, b"{}")], "neither index.json nor manifest.json"),
        ([member(HEX + ".tar", hello()), member(HEX + ".json", b"{}")], "neither index.json nor manifest.json"),
        ([member(f"{HEX}/layer.tar", hello()), member(f"{HEX}/json", b"{}")], "as docker wrote before 1.10"),
        ([member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')], "index.json: missing"),
        ([member("index.json", b'{"schemaVersion": 2, "manifests": []}')], "oci-layout: missing"),
        ([member("manifest.json", b"{]"), member(HEX + ".tar", b"")], "manifest.json: not JSON"),
        ([member("manifest.json", b'[{"Config": "c", "Layers": []}]')], "c: missing from the image"),
        ([*oci([hello()]), *oci([hello()])], "two members of one name"),
    ],
)
def test_archives_that_are_not_whole(way: Callable[..., Found], members: Members, what: str, tmp_path: Path) -> None:
    with pytest.raises(OciError, match=what):
        way(tar(*members), tmp_path)


@ways
@packings
def test_a_damaged_archive_is_said_to_be_one(way: Callable[..., Found], packing: str, tmp_path: Path) -> None:
    data = bytearray(tar(*legacy(LAYERS)))
    data[len(hello()) + 512 * 8 : len(hello()) + 512 * 11] = b"x" * 1536
    with pytest.raises(FormatError, match=r"checksum does not hold|missing|two members"):
        way(PACKERS[packing](bytes(data)), tmp_path)


@ways
@pytest.mark.parametrize("name", ["V", "PAX", "damaged"])
def test_an_odd_first_header_is_named(way: Callable[..., Found], name: str, tmp_path: Path) -> None:
    data = bytearray(tar(member("a", b"x")))
    what = "unknown member type 'V'"
    if name == "PAX":
        data = bytearray(tar(member("a", b"x", pax_headers={"mtime": "never"}), form=tarfile.PAX_FORMAT))
        what = "mtime"
    elif name == "V":
        data[156:157] = b"V"
        data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    else:
        data[:1] = b"b"
        what = "checksum does not hold"
    with pytest.raises(TarError, match=what):
        way(bytes(data), tmp_path)


def test_orders_are_no_wishes(tmp_path: Path) -> None:
    data = tar(*skopeo([hello()]))
    assert from_file(data, tmp_path, Form.LAYERS).kind == "layers"
    with pytest.raises(OciError, match=r"has a manifest\.json and no index\.json: use docker-archive:"):
        from_file(data, tmp_path, Form.OCI_ARCHIVE)
    data = tar(*oci([hello()]))
    assert "index.json" in from_file(data, tmp_path, Form.LAYERS).names
    with pytest.raises(OciError, match=r"has an index\.json and no manifest\.json: use oci-archive:"):
        from_file(data, tmp_path, Form.DOCKER_ARCHIVE)
    with pytest.raises(OciError, match="oci-layout: missing"):
        from_file(hello(), tmp_path, Form.OCI_ARCHIVE)
    (tmp_path / "it").write_bytes(data)
    with pytest.raises(UsageError, match="the source is an image"), open_images(None, [bytes(tmp_path / "it"), b"top"]):
        pass


def test_a_layer_stops_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a root file system is called is looked at once, and neither kept nor read twice."""
    layer = tar(member("usr/"), member("usr/big", os.urandom(20_000_000)))
    out = 0

    def counted(self: Decompressed, count: int) -> bytes:
        nonlocal out
        part = read(self, count)
        out += len(part)
        return part

    read = Decompressed.read
    monkeypatch.setattr(Decompressed, "read", counted)
    assert from_file(COMPRESSORS["+zstd"](layer), tmp_path).kind == "layers"
    assert out < len(layer) + 3_000_000


@ways
def test_both_forms_must_name_one_image(way: Callable[..., Found], tmp_path: Path) -> None:
    other = {info.name: data for info, data in skopeo([tar(member("other", b"x"))])}
    for files in (
        {**making.image([hello()]), **{name: data for name, data in other.items() if "/" not in name}},
        {**{info.name: data for info, data in both(LAYERS)}, "manifest.json": other["manifest.json"], **other},
    ):
        data = archive({name: body for name, body in files.items() if not name.endswith("/")})
        with pytest.raises(OciError, match=r"index\.json does not have the image sha256:\w+ that manifest\.json names"):
            way(data, tmp_path)
        assert way(data, tmp_path, Form.DOCKER_ARCHIVE).names == {"other"}
        assert way(data, tmp_path, Form.OCI_ARCHIVE).kind == "oci-archive"


def test_both_forms_with_their_tags_exchanged(tmp_path: Path) -> None:
    layout = Layout()
    one, two = layout.manifest([hello()]), layout.manifest([tar(member("x", b""))])
    layout.tag(one, "app:1").tag(two, "app:2")
    configs = {data: path for path, data in layout.blobs.items() if b'"rootfs"' in data}
    first, second = configs.values()
    layers = {digest(data): path for path, data in layout.blobs.items()}
    entries = [
        {"Config": first, "RepoTags": ["app:1"], "Layers": [layers[digest(hello())]]},
        {"Config": second, "RepoTags": ["app:2"], "Layers": [layers[digest(tar(member("x", b"")))]]},
    ]
    (tmp_path / "a").write_bytes(archive({**layout.files(), "manifest.json": packed(entries)}))
    with open_images(None, [bytes(tmp_path / "a")]) as container:
        assert container.kind == "oci-archive"
    entries[0]["RepoTags"], entries[1]["RepoTags"] = entries[1]["RepoTags"], entries[0]["RepoTags"]
    (tmp_path / "a").write_bytes(archive({**layout.files(), "manifest.json": packed(entries)}))
    with pytest.raises(OciError, match="does not have the image"), open_images(None, [bytes(tmp_path / "a")]):
        pass


@ways
def test_an_index_of_images_that_are_elsewhere(way: Callable[..., Found], tmp_path: Path) -> None:
    files = {info.name: data for info, data in skopeo(LAYERS) if not info.issym()}
    away = making.descriptor(b"elsewhere", making.MANIFEST)
    for entries in ([], [away]):
        index = packed({"schemaVersion": 2, "manifests": entries})
        whole = {**files, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index}
        found = way(archive(whole), tmp_path)
        assert (found.kind, found.layers) == ("docker-archive", ids(LAYERS))


def test_further_layers_are_no_image_archives(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(hello())
    for packing in PACKERS.values():
        top.write_bytes(packing(tar(*skopeo([hello()]))))
        refused = pytest.raises(UsageError, match="top: a further layer goes over a layer tar, and this is an image")
        with refused, open_images(None, [bytes(base), bytes(top)]) as container:
            read_oci(container)
        with open_images(None, [bytes(base), b"layers:" + bytes(top)]) as container:
            assert b"manifest.json" in read_oci(container).root.entries
    reading, writing = os.pipe()
    os.write(writing, tar(*crane([hello()])))
    os.close(writing)
    with (
        open(reading, "rb") as stdin,
        pytest.raises(UsageError, match="the source is an image"),
        recognise(b"-", layered=True) as source,
        source.open(Reading(oci=OciRequest(layers=(b"x",)), stdin=stdin)),
    ):
        pass


@ways
@packings
def test_a_layout_in_a_directory_of_the_archive(way: Callable[..., Found], packing: str, tmp_path: Path) -> None:
    members: Members = [member("layout/"), member("layout/blobs/")]
    members += [member("layout/" + path, data) for path, data in making.image(LAYERS).items()]
    with pytest.raises(OciError, match="the image layout lies in the directory 'layout' of the archive"):
        way(PACKERS[packing](tar(*members)), tmp_path)
    assert way(PACKERS[packing](tar(*members, member("layout/readme", b"x"))), tmp_path).kind == "layers"
