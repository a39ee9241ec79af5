"""Which image is meant, and what is said when that is not clear."""

from __future__ import annotations

from typing import Any

import pytest

from cfstools.errors import LimitExceeded, OciError, Unsupported
from cfstools.oci import select
from cfstools.oci.descriptor import parse_digest, parse_platform, read_descriptor
from cfstools.oci.files import MemoryFiles
from cfstools.oci.images import layout_images
from cfstools.oci.jsontext import Fields
from cfstools.oci.manifest import Index
from cfstools.oci.select import Catalogue, Selector, is_named, platform_rank
from cfstools.streams import limits
from tests.oci.making import INDEX, Layout, descriptor, member, packed, tar


def platform(text: str) -> dict[str, Any]:
    os, architecture, *variant = text.split("/")
    return {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}


def add(layout: Layout, text: str | None, **fields: Any) -> dict[str, Any]:
    """An image of that platform, told apart by its layer."""
    config = platform(text) if text else {}
    stated: dict[str, Any] = {"platform": platform(text)} if text else {}
    return layout.manifest([tar(member(f"{text}"))], config=config, **stated, **fields)


def pick(layout: Layout, **choice: Any) -> str:
    image = layout_images(MemoryFiles(layout.files())).image(Selector(**choice))
    assert image.manifest is not None
    return str(image.manifest.digest)


def test_the_only_image() -> None:
    layout = Layout()
    entry = add(layout, "linux/amd64")
    layout.tag(entry, "v1")
    assert pick(layout) == pick(layout, name="v1") == entry["digest"]
    assert pick(layout, digest=parse_digest(entry["digest"], "")) == entry["digest"]
    with pytest.raises(OciError, match=r"no image 'v2'; there is v1 \(linux/amd64\)"):
        pick(layout, name="v2")
    with pytest.raises(OciError, match="no image for linux/arm64; there is v1"):
        pick(layout, platform=parse_platform("linux/arm64"))
    with pytest.raises(OciError, match=f"no image 'sha256:{'0' * 64}'"):
        pick(layout, digest=parse_digest("sha256:" + "0" * 64, ""))


def test_no_image_at_all() -> None:
    with pytest.raises(OciError, match=r"^no image$"):
        pick(Layout())


def test_several_tags() -> None:
    layout = Layout()
    one, two = add(layout, "linux/amd64"), add(layout, "linux/arm64")
    layout.tag(one, "v1").tag(two, "v2")
    assert pick(layout, name="v2") == two["digest"]
    with pytest.raises(OciError, match="2 images match") as caught:
        pick(layout)
    listed = f"v1 (linux/amd64) @{one['digest']}, v2 (linux/arm64) @{two['digest']}"
    assert str(caught.value) == f"2 images match: {listed}"
    assert caught.value.hint == "choose one with platform, or name one with :NAME, or give its @DIGEST"


def test_one_image_under_two_tags_is_no_question() -> None:
    layout = Layout()
    entry = add(layout, "linux/amd64")
    assert pick(layout.tag(entry, "v1").tag(entry, "v2")) == entry["digest"]


def test_platform_that_two_tags_have() -> None:
    layout = Layout()
    layout.tag(add(layout, "linux/amd64"), "v1").tag(
        layout.manifest([tar(member("other"))], platform=platform("linux/amd64")), "v2"
    )
    with pytest.raises(OciError, match="2 images match") as caught:
        pick(layout, platform=parse_platform("linux/amd64"))
    assert caught.value.hint == "name one with :NAME, or give its @DIGEST"


def test_images_without_names_are_listed_by_digest() -> None:
    layout = Layout()
    one, two = add(layout, "linux/amd64"), layout.manifest([tar(member("other"))])
    layout.tag(one).tag(two)
    with pytest.raises(OciError, match="2 images match") as caught:
        pick(layout)
    assert str(caught.value).endswith(f": @{one['digest']} (linux/amd64), @{two['digest']}")
    assert caught.value.hint == "choose one with platform, or give its @DIGEST"


def test_nested_indexes_and_attestations() -> None:
    layout = Layout()
    amd, arm = add(layout, "linux/amd64"), add(layout, "linux/arm64")
    proof = layout.manifest([tar()], platform=platform("unknown/unknown"))
    note = layout.manifest([tar(member("x"))], annotations={"vnd.docker.reference.type": "attestation-manifest"})
    artifact = layout.manifest([tar(member("y"))], artifactType="application/vnd.example")
    other = descriptor(b"?", "application/vnd.example+json")
    inner = layout.index([amd, proof, note, artifact, other])
    outer = layout.index([inner, arm])
    layout.tag(outer, "all")
    assert pick(layout, name="all", platform=parse_platform("linux/arm64")) == arm["digest"]
    assert pick(layout, digest=parse_digest(inner["digest"], "")) == amd["digest"]
    with pytest.raises(OciError, match=r"images match: all \(linux/amd64\) @.*, all \(linux/arm64\) @") as caught:
        pick(layout)
    assert "platform" in (caught.value.hint or "")


def test_first_of_equal_platforms_wins() -> None:
    layout = Layout()
    first = add(layout, "linux/amd64")
    second = layout.manifest([tar(member("second"))], platform=platform("linux/amd64"))
    layout.tag(layout.index([first, second]))
    assert pick(layout, platform=parse_platform("linux/amd64")) == first["digest"]


def test_depth_and_number_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout()
    entry = add(layout, "linux/amd64")
    for _ in range(limits.MAX_INDEX_DEPTH):
        entry = layout.index([entry])
    assert pick(layout.tag(entry))
    layout.entries = [layout.index([entry])]
    with pytest.raises(LimitExceeded, match="nested deeper than 8"):
        pick(layout)
    monkeypatch.setattr(select, "MAX_CANDIDATES", 1)
    layout.entries = [add(layout, "linux/amd64"), add(layout, "linux/arm64")]
    with pytest.raises(LimitExceeded, match="more than 1 images"):
        pick(layout)


def test_an_index_cannot_lead_back_to_itself() -> None:
    # Digests make this impossible in a layout; whoever loads without checking them is stopped all the same.
    entry = read_descriptor(Fields(descriptor(b"x", INDEX), ""))
    with pytest.raises(OciError, match="contains itself"):
        Catalogue(Index(manifests=(entry,)), lambda _: Index(manifests=(entry,)))


def test_many_candidates_are_cut() -> None:
    layout = Layout()
    for number in range(20):
        layout.tag(layout.manifest([tar(member(str(number)))]), f"v{number}")
    with pytest.raises(OciError, match=r"20 images match: v0 @sha256:.*, v11 @.*, 8 more$"):
        pick(layout)


@pytest.mark.parametrize(
    ("offered", "wanted", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64/v3", "linux/amd64", 1),
        ("linux/amd64", "linux/amd64/v3", 4),
        ("linux/amd64/v2", "linux/amd64/v3", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v8", "linux/arm64", 0),
        ("linux/arm/v7", "linux/arm/v7", 0),
        ("linux/arm/v6", "linux/arm/v7", 1),
        ("linux/arm/v5", "linux/arm/v8", 3),
        ("linux/arm", "linux/arm/v7", 4),
        ("linux/arm/v8", "linux/arm/v7", None),
        ("linux/arm/odd", "linux/arm/v7", None),
        ("windows/amd64", "linux/amd64", None),
        ("linux/s390x", "linux/amd64", None),
    ],
)
def test_platform_rank(offered: str, wanted: str, rank: int | None) -> None:
    assert platform_rank(parse_platform(offered), parse_platform(wanted)) == rank


def test_images_without_a_platform_go_last_and_are_looked_into() -> None:
    layout = Layout()
    silent, loud = layout.manifest([tar()]), add(layout, "linux/arm64")
    layout.entries = [silent, loud]
    assert pick(layout, platform=parse_platform("linux/arm64")) == loud["digest"]
    assert pick(layout, platform=parse_platform("linux/amd64")) == silent["digest"]
    with pytest.raises(OciError, match="the image is for linux/amd64, not for linux/s390x"):
        pick(layout, platform=parse_platform("linux/s390x"))


@pytest.mark.parametrize(
    ("name", "wanted", "same"),
    [
        ("v1", "v1", True),
        ("docker.io/library/app:latest", "app", True),
        ("docker.io/library/app:latest", "library/app:latest", True),
        ("app:latest", "app", True),
        ("app:1", "app", False),
        ("myapp:1", "app:1", False),
        ("localhost:5000/app:latest", "localhost:5000/app", True),
    ],
)
def test_names(name: str, wanted: str, same: bool) -> None:
    assert is_named(name, wanted) is same


def test_docker_names_of_an_index() -> None:
    layout = Layout()
    one = add(layout, "linux/amd64", annotations={"io.containerd.image.name": "docker.io/library/app:1"})
    two = add(layout, "linux/arm64", annotations={"io.containerd.image.name": "docker.io/library/app:2"})
    layout.entries = [one, two]
    assert pick(layout, name="app:2") == two["digest"]


def test_schema1_is_named() -> None:
    layout = Layout()
    body = {"schemaVersion": 1, "fsLayers": []}
    entry = layout.blob(packed(body), "application/vnd.docker.distribution.manifest.v1+prettyjws")
    with pytest.raises(Unsupported, match="schema 1"):
        pick(layout.tag(entry))
