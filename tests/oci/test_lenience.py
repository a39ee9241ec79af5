"""Good images with odd things in or beside them: what is accepted, what is passed over, and what is said of it."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from cfstools.errors import CfsError, CheckFailed, LimitExceeded, OciError
from cfstools.oci import select
from cfstools.oci.descriptor import Digest, parse_digest, parse_platform
from cfstools.oci.files import MemoryFiles
from cfstools.oci.images import DockerImages, ImageSource, layout_images
from cfstools.oci.select import Selector
from cfstools.sources.oci import OciTree, read_oci
from cfstools.streams import limits
from tests.oci import making
from tests.oci.making import CONFIG, LAYER, MANIFEST, Layout, descriptor, digest, hello, member, packed, tar

AMD, ARM = ({"os": "linux", "architecture": name} for name in ("amd64", "arm64"))


def image_of(layout: Layout, **choice: Any) -> ImageSource:
    return layout_images(MemoryFiles(layout.files())).image(Selector(**choice))


def picked(layout: Layout, **choice: Any) -> str:
    manifest = image_of(layout, **choice).manifest
    assert manifest is not None
    return str(manifest.digest)


def said(layout: Layout, **choice: Any) -> str:
    return "\n".join(f"{where}: {text}" for where, text in image_of(layout, **choice).warnings)


def another(layout: Layout, name: str, **fields: Any) -> dict[str, Any]:
    return layout.manifest([tar(member(name))], **fields)


def without(layout: Layout, entry: dict[str, Any]) -> None:
    """Take an image's manifest out of the layout."""
    del layout.blobs["blobs/" + entry["digest"].replace(":", "/")]


# Images whose blobs are not there


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("lost", ["manifest", "config", "layer"])
def test_one_platform_of_many(nested: bool, lost: str) -> None:
    layout = Layout()
    here = another(layout, "amd64", platform=AMD)
    mine = set(layout.blobs)
    away = another(layout, "arm64", platform=ARM, config=ARM)
    for path, data in list(layout.blobs.items()):
        kind = "manifest" if b'"layers"' in data and b'"config"' in data and b"rootfs" not in data else "layer"
        kind = "config" if b"rootfs" in data else kind
        if path not in mine and kind == lost:
            del layout.blobs[path]
    entries = [away, here]
    layout.entries = [layout.index(entries)] if nested else entries
    assert picked(layout) == picked(layout, platform=parse_platform("linux/amd64")) == here["digest"]
    assert f"blobs are missing: @{away['digest']} (linux/arm64)" in said(layout)
    for choice in ({"platform": parse_platform("linux/arm64")}, {"digest": parse_digest(away["digest"], "")}):
        with pytest.raises(OciError, match="missing from the image"):
            picked(layout, **choice)


def test_a_better_fit_that_is_not_there_is_not_replaced() -> None:
    layout = Layout()
    arm = {"os": "linux", "architecture": "arm"}
    best = another(layout, "v7", platform={**arm, "variant": "v7"}, config={**arm, "variant": "v7"})
    older = another(layout, "v6", platform={**arm, "variant": "v6"}, config={**arm, "variant": "v6"})
    layout.entries = [layout.index([best, older])]
    without(layout, best)
    with pytest.raises(OciError, match="missing from the image"):
        picked(layout, platform=parse_platform("linux/arm/v7"))
    assert picked(layout, platform=parse_platform("linux/arm/v6")) == older["digest"]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "changed", "no index"])
def test_an_index_that_is_not_there_or_damaged(damage: str, depth: int) -> None:
    layout = Layout()
    here = another(layout, "here", platform=AMD)
    away = layout.index([another(layout, "away", platform=ARM, config=ARM)])
    path = "blobs/" + away["digest"].replace(":", "/")
    what = {"missing": "missing from the image", "changed": "the contents have digest", "no index": "without manifests"}
    if damage == "missing":
        del layout.blobs[path]
    elif damage == "changed":
        layout.blobs[path] = layout.blobs[path].replace(b"linux", b"lynux")
    else:
        away = layout.blob(packed({"schemaVersion": 2}), making.INDEX)
    layout.tag(here, "here").tag(layout.index([away]) if depth else away, "away")
    assert picked(layout) == picked(layout, name="here") == here["digest"]
    assert "skipped: an entry of the index: index sha256:" in said(layout)
    meant: list[dict[str, Any]] = [{"digest": parse_digest(away["digest"], "")}, {"name": "away"}]
    for choice in meant[: 1 if depth else 2]:
        with pytest.raises(CfsError, match=what[damage]):
            picked(layout, **choice)
    layout.entries = layout.entries[1:]
    with pytest.raises(CfsError, match=what[damage]):
        picked(layout)


# Layers of no bytes


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("media_type", [LAYER, LAYER + "+gzip", LAYER + "+zstd"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize("padding", [0, 512])
def test_a_layer_of_no_bytes(media_type: str, pack: Callable[[bytes], bytes], padding: int) -> None:
    if pack is bytes and padding:
        return
    layout = Layout()
    stored = pack(b"") + bytes(padding)
    layer = hello()
    config = layout.blob(packed({"rootfs": {"type": "layers", "diff_ids": [digest(layer), digest(b"")]}}), CONFIG)
    body = {
        "schemaVersion": 2,
        "config": config,
        "layers": [layout.blob(layer, LAYER), layout.blob(stored, media_type)],
    }
    tree = read_oci(layout_images(MemoryFiles(layout.tag(layout.blob(packed(body), MANIFEST)).files())))
    assert set(tree.root.entries) == {b"usr", b"hello.txt"}
    assert [one.members for one in tree.report.layers] == [2, 0]
    assert any("the layer is empty" in str(warning) for warning in tree.report.warnings)


def test_a_layer_that_should_have_bytes() -> None:
    layout = Layout()
    layout.tag(layout.manifest([b""], diff_ids=[digest(hello())]))
    with pytest.raises(CheckFailed, match="uncompressed layer"):
        read_oci(layout_images(MemoryFiles(layout.files())))


# Media types


def typed(config_type: object, layer_type: object = LAYER, **fields: Any) -> Layout:
    """An image whose descriptors have these media types; ``...`` leaves one out."""
    layout = Layout()
    config = layout.blob(packed({"rootfs": {"type": "layers", "diff_ids": [digest(hello())]}}), CONFIG)
    layer = layout.blob(hello(), LAYER)
    for entry, media_type in ((config, config_type), (layer, layer_type)):
        entry["mediaType"] = media_type
        if media_type is ...:
            del entry["mediaType"]
    body = {"schemaVersion": 2, "config": config, "layers": [layer], **fields}
    return layout.tag(layout.blob(packed(body), MANIFEST))


LOST = ["application/octet-stream", "application/json", "text/html", "text/html; charset=utf-8", "", ..., None]


@pytest.mark.parametrize("media_type", LOST)
def test_media_types_that_a_server_lost(media_type: object) -> None:
    assert "config.mediaType: " in said(typed(media_type))
    assert "layers[0].mediaType: " in said(typed(CONFIG, media_type))
    assert said(typed(CONFIG)) == ""
    assert read_oci(layout_images(MemoryFiles(typed(media_type, media_type).files()))).root.entries


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/json", "text/html; charset=utf-8"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_index_entry_whose_type_was_lost(media_type: str, nested: bool) -> None:
    layout = Layout()
    lost = {**another(layout, "lost"), "mediaType": media_type}
    layout.tag(layout.index([lost]) if nested else lost, "v1")
    assert picked(layout) == picked(layout, name="v1") == picked(layout, digest=parse_digest(lost["digest"], ""))
    assert "the index does not say what the image is" in said(layout)
    # Beside an image that is one by its type it is not meant, unless by name.
    typed = another(layout, "typed")
    layout.tag(typed, "v2")
    assert picked(layout) == picked(layout, name="v2") == typed["digest"]
    assert picked(layout, name="v1") == lost["digest"]
    assert "does not say" not in said(layout)


@pytest.mark.parametrize("data", [b"{}", b"<html>", b'{"schemaVersion":2,"manifests":[]}'])
def test_an_index_entry_that_is_anything(data: bytes) -> None:
    layout = Layout()
    layout.entries = [layout.blob(data, "application/json")]
    with pytest.raises(OciError):
        picked(layout)
    here = another(layout, "here")
    layout.entries.append(here)
    assert picked(layout) == here["digest"]


@pytest.mark.parametrize(
    "media_type", ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json"]
)
def test_artifacts_are_no_images(media_type: str) -> None:
    with pytest.raises(OciError, match="an artifact of type"):
        image_of(typed(media_type))
    with pytest.raises(OciError, match="an artifact of type 'application/x-sbom'"):
        image_of(typed("application/octet-stream", artifactType="application/x-sbom"))


# Odd entries of an index

ODD: dict[str, tuple[object, str]] = {
    "algorithm": ({"digest": "md5:" + "0" * 32}, "unknown digest algorithm"),
    "upper case": ({"digest": "sha256:" + "A" * 64}, "lower-case hex"),
    "no digest": ({"digest": None}, "digest: missing"),
    "way out": ({"digest": "sha256:../../../etc/passwd"}, "is not a digest"),
    "no type": ({"mediaType": None}, "mediaType: missing"),
    "number type": ({"mediaType": 7}, "mediaType: not a string"),
    "negative": ({"size": -1}, "size: not a size"),
    "huge": ({"size": 1 << 70}, "size: not a size"),
    "text size": ({"size": "12"}, "size: not a size"),
    "fraction": ({"size": 1.5}, "size: not a size"),
    "truth": ({"size": True}, "size: not a size"),
    "no size": ({"size": None}, "size: missing"),
    "annotations": ({"annotations": {"a": 1}}, "annotations.a: not a string"),
    "annotation list": ({"annotations": []}, "annotations: not a JSON object"),
    "platform": ({"platform": "linux"}, "platform: not a JSON object"),
    "embedded": ({"data": "aGVsbG8="}, "bytes long|digest"),
    "no object": (5, "not a JSON object"),
    "null": (None, "not a JSON object"),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_one_odd_entry_does_not_spoil_the_index(name: str, nested: bool) -> None:
    change, what = ODD[name]
    layout = Layout()
    good = another(layout, "good", platform=AMD)
    base = descriptor(b"other", MANIFEST)
    odd: Any = {**base, **change} if isinstance(change, dict) else change
    layout.entries = [layout.index([odd, good])] if nested else [odd, good]
    assert picked(layout) == picked(layout, platform=parse_platform("linux/amd64")) == good["digest"]
    assert "skipped: an entry of the index: manifests[0]" in said(layout)
    layout.entries = [odd]
    with pytest.raises(CfsError, match=what):
        picked(layout)


def test_an_odd_entry_that_is_meant() -> None:
    layout = Layout()
    good = another(layout, "good")
    odd = {**descriptor(b"other", MANIFEST), "size": -1, "annotations": {"org.opencontainers.image.ref.name": "v2"}}
    layout.tag(good, "v1").entries.append(odd)
    assert picked(layout, name="v1") == good["digest"]
    for choice in ({"name": "v2"}, {"digest": parse_digest(odd["digest"], "")}):
        with pytest.raises(OciError, match="size: not a size"):
            picked(layout, **choice)


def test_harmless_oddities() -> None:
    layout = Layout()
    entry = another(layout, "x", platform={}, urls=["https://example.org/x"], artifactType="")
    layout.entries = [{**entry, "annotations": None}]
    assert picked(layout) == picked(layout, platform=parse_platform("linux/amd64")) == entry["digest"]
    assert said(layout) == ""
    windows = {"os": "windows", "architecture": "amd64", "os.version": "10.0.1", "os.features": ["win32k"]}
    layout = Layout()
    layout.tag(another(layout, "x", platform=windows, config={"os": "windows"}))
    assert picked(layout, platform=parse_platform("windows/amd64"))


@pytest.mark.parametrize("around", [b"%b\n", b"\n\t %b \r\n", b"\xef\xbb\xbf%b"])
def test_white_space_and_marks_around_json(around: bytes) -> None:
    layout = Layout()
    body = around % packed({"rootfs": {"type": "layers", "diff_ids": [digest(hello())]}, "history": [{}, {}, {}]})
    manifest = {"schemaVersion": 2, "config": layout.blob(body, CONFIG), "layers": [layout.blob(hello(), LAYER)]}
    files = layout.tag(layout.blob(around % packed(manifest), MANIFEST)).files()
    files["index.json"] = around % files["index.json"]
    files["oci-layout"] = around % files["oci-layout"]
    assert read_oci(layout_images(MemoryFiles(files))).root.entries


@pytest.mark.parametrize("kind", [None, "", ...])
def test_a_rootfs_without_a_type(kind: object) -> None:
    layout = Layout()
    rootfs = {"type": kind, "diff_ids": [digest(hello())]}
    if kind is ...:
        del rootfs["type"]
    layout.tag(layout.manifest([hello()], config={"rootfs": rootfs}))
    assert "config: rootfs.type: missing" in said(layout)
    files = making.docker([hello()])
    path = next(name for name in files if len(name) == 69 and name.endswith(".json"))
    body = {**json.loads(files.pop(path)), "rootfs": rootfs}
    files["manifest.json"] = files["manifest.json"].replace(path.encode(), b"config.json")
    files["config.json"] = packed(body)
    assert ("config: rootfs.type", 'missing; it should be "layers"') in DockerImages(
        MemoryFiles(files)
    ).image().warnings


# Signatures and other artifacts among images


@pytest.mark.parametrize("platform", [None, "linux/amd64"])
@pytest.mark.parametrize(
    ("config_type", "layer_type", "fields"),
    [
        (CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json", {}),
        (CONFIG, "application/vnd.dsse.envelope.v1+json", {}),
        (CONFIG, "application/vnd.in-toto+json", {}),
        ("application/vnd.oci.empty.v1+json", "text/spdx", {"artifactType": "application/spdx"}),
        ("application/vnd.cncf.notary.signature", "application/jose+json", {"subject": descriptor(b"x", MANIFEST)}),
    ],
)
def test_signatures_among_images(
    config_type: str, layer_type: str, fields: dict[str, Any], platform: str | None
) -> None:
    layout = typed(config_type, layer_type, **fields)
    named = {"org.opencontainers.image.ref.name": f"sha256-{'0' * 64}.sig"}
    layout.entries = [{**layout.entries[0], "annotations": named}]
    image = another(layout, "image")
    layout.tag(image, "latest")
    choice = {} if platform is None else {"platform": parse_platform(platform)}
    assert picked(layout, **choice) == image["digest"]
    with pytest.raises(OciError, match=r"an artifact of type|unknown layer type"):
        picked(layout, name=named["org.opencontainers.image.ref.name"])


# One name on several images


def test_one_tag_on_two_manifests() -> None:
    layout = Layout()
    one, two = another(layout, "one", platform=AMD), another(layout, "two", platform=AMD)
    amd = parse_platform("linux/amd64")
    layout.tag(one, "app:1").tag(one, "app:1")
    assert picked(layout, name="app:1") == picked(layout, name="app:1", platform=amd) == one["digest"]
    assert said(layout, name="app:1", platform=amd) == ""
    layout.tag(two, "app:1")
    for choice in ({}, {"name": "app:1"}, {"platform": amd}, {"name": "app:1", "platform": amd}):
        with pytest.raises(OciError, match=r"images match: .*@sha256:.*@sha256:"):
            picked(layout, **choice)
    layout.entries = []
    layout.tag(layout.index([one]), "app:1").tag(layout.index([two]), "app:1")
    with pytest.raises(OciError, match="images match"):
        picked(layout, name="app:1", platform=amd)


def test_one_tag_on_images_of_several_platforms() -> None:
    layout = Layout()
    one, two = another(layout, "one", platform=AMD), another(layout, "two", platform=ARM, config=ARM)
    layout.tag(one, "app:1").tag(two, "app:1")
    assert picked(layout, name="app:1", platform=parse_platform("linux/arm64")) == two["digest"]
    assert "the name 'app:1' is on 2 entries" in said(layout, name="app:1", platform=parse_platform("linux/arm64"))


def test_images_without_a_name_of_one_platform() -> None:
    layout = Layout()
    layout.tag(another(layout, "one", platform=AMD)).tag(another(layout, "two", platform=AMD))
    with pytest.raises(OciError, match="2 images match"):
        picked(layout, platform=parse_platform("linux/amd64"))


def test_one_tag_on_two_images_of_a_docker_archive() -> None:
    one, two = making.docker([hello()], ["app:1"]), making.docker([tar(member("x"))], ["app:1"])
    entries = [*json.loads(one["manifest.json"]), *json.loads(two["manifest.json"])]
    container = DockerImages(MemoryFiles({**one, **two, "manifest.json": packed(entries)}))
    with pytest.raises(OciError, match="2 images match"):
        container.image(Selector(name="app:1"))
    same = DockerImages(MemoryFiles({**one, "manifest.json": packed([entries[0], entries[0]])}))
    assert same.image(Selector(name="app:1")).layers


# Docker archives


def docker_with(**changes: Any) -> DockerImages:
    files = making.docker([hello()])
    (entry,) = json.loads(files["manifest.json"])
    return DockerImages(MemoryFiles({**files, "manifest.json": packed([{**entry, **changes}])}))


def test_paths_in_a_docker_manifest() -> None:
    (entry,) = json.loads(making.docker([hello()])["manifest.json"])
    for prefix in ("./", "/", ".//./"):
        container = docker_with(Config=prefix + entry["Config"], Layers=[prefix + one for one in entry["Layers"]])
        assert container.image().layers[0].path == entry["Layers"][0]
    for path in ("../x", "", ".", "a/../../x"):
        with pytest.raises(
            OciError, match=r"manifest\.json: \[0\]\.(Config|Layers\[0\]): .* is no path in the archive"
        ):
            docker_with(Config=path)
        with pytest.raises(OciError, match="is no path in the archive"):
            docker_with(Layers=[path])


@pytest.mark.parametrize("name", ["{}.json", "{}", "sha256:{}", "a\nb/{}.json", "blobs/sha256/{}"])
def test_a_config_named_by_a_digest_has_it(name: str) -> None:
    files = making.docker([hello()])
    (entry,) = json.loads(files["manifest.json"])
    config = files[entry["Config"]]
    right = name.format(digest(config)[7:])
    files = {**files, right: config, "manifest.json": packed([{**entry, "Config": right}])}
    assert DockerImages(MemoryFiles(files)).image().layers
    wrong = name.format("0" * 64)
    files = {**files, wrong: config, "manifest.json": packed([{**entry, "Config": wrong}])}
    with pytest.raises(CheckFailed, match="not the one in the name") as caught:
        DockerImages(MemoryFiles(files)).image()
    assert "\n" not in str(caught.value)


def test_layers_that_are_null_or_twice() -> None:
    files = making.docker([])
    (entry,) = json.loads(files["manifest.json"])
    entry["Layers"] = entry["RepoTags"] = None
    assert DockerImages(MemoryFiles({**files, "manifest.json": packed([entry])})).image().layers == ()
    tree: OciTree = read_oci(DockerImages(MemoryFiles(making.docker([hello(), hello()]))))
    assert len(tree.report.layers) == 2
    assert len(read_oci(layout_images(MemoryFiles(making.image([hello(), hello()], "+gzip")))).report.layers) == 2


def test_sha512_throughout() -> None:
    assert read_oci(layout_images(MemoryFiles(making.image([hello()], "+gzip", "sha512")))).root.entries


# Nested indexes


def ladder(layout: Layout, depth: int, width: int) -> dict[str, Any]:
    """Indexes of which each names the next *width* times: as a tree, *width* to the power of *depth* images."""
    entry = another(layout, "leaf", platform=AMD)
    for number in range(depth):
        entry = layout.index([{**entry, "annotations": {"n": f"{number}.{one}"}} for one in range(width)])
    return entry


def test_each_index_is_walked_once() -> None:
    layout = Layout()
    layout.tag(ladder(layout, limits.MAX_INDEX_DEPTH, 40), "all")
    started = time.process_time()
    assert picked(layout, name="all")
    assert time.process_time() - started < 1
    assert len(layout_images(MemoryFiles(layout.files())).names()) == 1


def test_an_index_chosen_by_digest_has_all_of_its_images() -> None:
    layout = Layout()
    amd, arm = another(layout, "a", platform=AMD), another(layout, "b", platform=ARM, config=ARM)
    first, second = layout.index([amd]), layout.index([amd, arm])
    layout.tag(first, "one").tag(layout.index([first, second]), "all")
    chosen = parse_digest(second["digest"], "")
    assert picked(layout, digest=chosen, platform=parse_platform("linux/amd64")) == amd["digest"]
    assert picked(layout, digest=chosen, platform=parse_platform("linux/arm64")) == arm["digest"]
    assert picked(layout, digest=parse_digest(first["digest"], "")) == amd["digest"]


def test_many_tags_on_one_index() -> None:
    layout = Layout()
    inner = layout.index([another(layout, str(number)) for number in range(4)])
    for number in range(900):
        layout.tag(inner, f"v{number}")
    images = layout_images(MemoryFiles(layout.files()))
    assert len(images.names()) == 3600
    with pytest.raises(OciError, match="4 images match"):
        images.image(Selector(name="v77"))


@pytest.mark.parametrize(
    ("limit", "at"),
    [("MAX_INDEXES", 3), ("MAX_ENTRIES", 12), ("MAX_CANDIDATES", 6), ("MAX_INDEX_BYTES", None)],
)
def test_budgets_at_the_limit_and_beyond(limit: str, at: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout()
    amd, arm = another(layout, "a", platform=AMD), another(layout, "b", platform=ARM, config=ARM)
    indexes = [layout.index([amd, arm, {**descriptor(b"n", "a/b"), "size": number}]) for number in range(3)]
    layout.entries = indexes
    at = sum(one["size"] for one in indexes) if at is None else at
    monkeypatch.setattr(select, limit, at)
    assert picked(layout, platform=parse_platform("linux/amd64")) == amd["digest"]
    monkeypatch.setattr(select, limit, at - 1)
    with pytest.raises(LimitExceeded):
        picked(layout, platform=parse_platform("linux/amd64"))


def test_a_hostile_index_needs_little_time() -> None:
    """All budgets used up by one archive of many indexes, each of which names a thousand others."""
    layout = Layout()
    leaves = [descriptor(str(number).encode(), MANIFEST) for number in range(1000)]
    level = [layout.index([*leaves[number:], *leaves[:number]]) for number in range(100)]
    layout.entries = [layout.index(level[number:] + level[:number]) for number in range(100)]
    files = MemoryFiles(layout.files())
    started = time.process_time()
    with pytest.raises(LimitExceeded):
        layout_images(files).image()
    assert time.process_time() - started < 10


def test_manifests_looked_into_are_few() -> None:
    layout = Layout()
    for number in range(limits.MAX_LOOKS + 1):
        layout.tag(another(layout, str(number)), f"v{number}")
    with pytest.raises(OciError, match=f"{limits.MAX_LOOKS + 1} images match"):
        picked(layout)


def test_a_digest_that_nothing_has() -> None:
    layout = Layout()
    layout.tag(another(layout, "x"))
    with pytest.raises(OciError, match="no image 'sha512:"):
        picked(layout, digest=Digest("sha512", "0" * 128))


def test_odd_entries_of_nested_indexes_have_the_budget_of_all_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout()
    good = another(layout, "a")
    layout.entries = [layout.index([{"odd": number}] * 10) for number in range(2)] + [good]
    monkeypatch.setattr(select, "MAX_ENTRIES", 23)
    assert picked(layout) == good["digest"]
    monkeypatch.setattr(select, "MAX_ENTRIES", 22)
    with pytest.raises(LimitExceeded, match="more than 22 entries"):
        picked(layout)
