"""JSON, digests, descriptors, manifests and configs: what is taken, what is refused, and in which words."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import CfsError, CheckFailed, LimitExceeded, OciError, Unsupported
from cfstools.oci.descriptor import (
    Digest,
    Kind,
    kind_of,
    layer_compression,
    parse_digest,
    parse_platform,
    read_descriptor,
)
from cfstools.oci.jsontext import Fields, parse_json, within
from cfstools.oci.manifest import parse_config, parse_index, parse_manifest
from cfstools.streams.limits import MAX_JSON, MAX_LAYERS, MAX_MANIFESTS
from tests.oci.making import CONFIG, INDEX, LAYER, MANIFEST, descriptor, digest, packed

SHA256 = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"x": {"a": 1, "b": 2, "a": 1}}', "'a' occurs twice"),
        (b"[" * 65 + b"]" * 65, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON"),
        (b"NaN", "NaN"),
        (b"-Infinity", "Infinity"),
        (b"9" * 5000, "number of more than 256"),
        (b'"' + b"x" * 1_048_577 + b'"', "string of more than 1048576"),
        (b"[" + b"0," * 200_000 + b"0]", "more than 200000 values"),
        (b"1e400", "too large"),
        (b" " * (MAX_JSON + 1), "larger than"),
    ],
)
def test_bad_json(text: bytes, what: str) -> None:
    with pytest.raises((OciError, LimitExceeded), match=what):
        parse_json(text)


def test_brackets_in_strings_are_no_nesting() -> None:
    assert parse_json(packed(["[" * 1000 + '"' + "{" * 1000])) == ["[" * 1000 + '"' + "{" * 1000]


def test_a_string_that_never_ends_takes_no_time() -> None:
    with pytest.raises(OciError, match="not JSON"):
        parse_json(b'"' + b'\\"' * 500_000)


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda fields: fields.text("number"), "x.number"),
        (lambda fields: fields.required_text("none"), "x.none"),
        (lambda fields: fields.text("half"), "x.half"),
        (lambda fields: fields.number("text"), "x.text"),
        (lambda fields: fields.number("none"), "x.none"),
        (lambda fields: fields.number("true"), "x.true"),
        (lambda fields: fields.number("negative"), "x.negative"),
        (lambda fields: fields.number("big"), "x.big"),
        (lambda fields: fields.array("text"), "x.text"),
        (lambda fields: fields.texts("list"), "x.list[0]"),
        (lambda fields: fields.texts("map"), "x.map"),
        (lambda fields: fields.member("text"), "x.text"),
        (lambda fields: fields.text_map("map"), "x.map.a"),
        (lambda fields: fields.text_map("halves"), "x.halves"),
    ],
)
def test_members_of_the_wrong_type(call: Any, where: str) -> None:
    text = (
        rb'{"number": 1, "text": "a", "list": [1], "map": {"a": 1}, "true": true, "none": null, "negative": -1,'
        rb' "big": 9223372036854775808, "half": "\ud800", "halves": {"\ud800": "a"}}'
    )
    with pytest.raises(OciError) as caught:
        call(Fields(parse_json(text), "x"))
    assert caught.value.where == where


def test_absent_members() -> None:
    fields = Fields({"nothing": None}, "")
    assert fields.text("no") is None
    assert fields.member("no") is None
    assert fields.texts("no") == []
    assert fields.array("nothing") == []
    assert fields.text_map("nothing") == {}
    with pytest.raises(OciError, match="not a JSON object"):
        Fields([], "")


def test_within_adds_the_place() -> None:
    with pytest.raises(OciError) as caught, within("outer"), within("inner"):
        raise OciError("what")
    assert str(caught.value) == "outer: inner: what"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digests(algorithm: str) -> None:
    text = digest(b"x", algorithm)
    found = parse_digest(text, "here")
    assert str(found) == text
    hasher = found.hasher()
    hasher.update(b"x")
    found.matches(hasher.hexdigest(), None)
    with pytest.raises(CheckFailed, match="not " + text) as caught:
        found.matches("00", "blob")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "SHA256:" + "0" * 64,
        "sha512:" + "0" * 64,
        "md5:" + "0" * 32,
        "sha256:../../../../etc/passwd",
        "sha256:" + "0" * 64 + "\n",
        "../x:" + "0" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "x" * 1_000_000,
    ],
)
def test_digests_outside_the_grammar(text: str) -> None:
    with pytest.raises(OciError) as caught:
        parse_digest(text, "digest")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_blake3_is_known_but_cannot_be_checked() -> None:
    found = parse_digest("blake3:" + "0" * 64, "digest")
    with pytest.raises(Unsupported, match="blake3"):
        found.hasher()


@pytest.mark.parametrize(
    ("media_type", "kind", "compression"),
    [
        (MANIFEST, Kind.MANIFEST, None),
        (INDEX, Kind.INDEX, None),
        (CONFIG, Kind.CONFIG, None),
        ("application/vnd.docker.distribution.manifest.v2+json", Kind.MANIFEST, None),
        ("application/vnd.docker.distribution.manifest.list.v2+json", Kind.INDEX, None),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", Kind.SCHEMA1, None),
        ("application/vnd.docker.container.image.v1+json", Kind.CONFIG, None),
        (LAYER, Kind.LAYER, "none"),
        (LAYER + "+gzip", Kind.LAYER, "gzip"),
        (LAYER + "+zstd", Kind.LAYER, "zstd"),
        (LAYER + "+gzip+encrypted", Kind.ENCRYPTED, None),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Kind.LAYER, "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Kind.LAYER, "gzip"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Kind.LAYER, "gzip"),
        ("text/plain", Kind.UNKNOWN, None),
    ],
)
def test_media_types(media_type: str, kind: Kind, compression: str | None) -> None:
    assert kind_of(media_type) is kind
    assert layer_compression(media_type) == compression


def test_platforms() -> None:
    assert str(parse_platform("linux/arm/v7")) == "linux/arm/v7"
    assert str(parse_platform("linux/amd64")) == "linux/amd64"
    for text in ("linux", "linux/", "a/b/c/d", ""):
        with pytest.raises(ValueError, match="os/architecture"):
            parse_platform(text)


def test_embedded_data() -> None:
    entry = {**descriptor(b"hello", LAYER), "data": base64.b64encode(b"hello").decode()}
    assert read_descriptor(Fields(entry, "")).data == b"hello"
    for data, error in [("aGVsbG8h", OciError), ("!", OciError), ("aGVsbGg=", CheckFailed)]:
        with pytest.raises(error):
            read_descriptor(Fields({**entry, "data": data}, ""))


def manifest(**changes: Any) -> bytes:
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(b"{}", CONFIG),
        "layers": [descriptor(b"1", LAYER), descriptor(b"2", LAYER + "+gzip")],
    }
    return packed({key: value for key, value in {**body, **changes}.items() if value is not ...})


def test_manifest() -> None:
    found = parse_manifest(manifest())
    assert [layer.size for layer in found.layers] == [1, 1]
    assert found.config.digest == Digest("sha256", digest(b"{}")[7:])
    # docker's type inside where the descriptor says OCI's means the same.
    parse_manifest(manifest(mediaType="application/vnd.docker.distribution.manifest.v2+json"))
    parse_manifest(manifest(mediaType=...))


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"schemaVersion": 1}, OciError, "schemaVersion: not 2"),
        ({"schemaVersion": ...}, OciError, "schemaVersion: missing"),
        ({"schemaVersion": 1, "fsLayers": []}, Unsupported, "schema 1"),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}, Unsupported, "schema 1"),
        ({"mediaType": INDEX}, OciError, "not the type of an image manifest"),
        ({"mediaType": "x" * 100_000}, OciError, "not the type of an image manifest"),
        ({"manifests": []}, OciError, "at once"),
        ({"config": ..., "layers": ...}, OciError, "without layers"),
        ({"config": ...}, OciError, "config: missing"),
        ({"config": descriptor(b"{}", "application/vnd.oci.empty.v1+json")}, OciError, "an artifact of type"),
        ({"layers": [descriptor(b"1", LAYER + "+encrypted")]}, Unsupported, r"layers\[0\].mediaType: .*encrypted"),
        ({"layers": [descriptor(b"1", "text/spdx")]}, OciError, r"layers\[0\].mediaType: unknown layer type"),
        ({"layers": [{"mediaType": LAYER, "digest": "sha256:../..", "size": 1}]}, OciError, r"layers\[0\].digest"),
        ({"layers": [{"mediaType": LAYER, "digest": SHA256, "size": -1}]}, OciError, r"layers\[0\].size"),
        ({"layers": [{"mediaType": 1, "digest": SHA256, "size": 1}]}, OciError, r"layers\[0\].mediaType: not a string"),
        ({"layers": [descriptor(b"1", LAYER)] * (MAX_LAYERS + 1)}, LimitExceeded, "more than"),
        ({"layers": {}}, OciError, "layers: not an array"),
    ],
)
def test_bad_manifests(changes: dict[str, Any], error: type[CfsError], what: str) -> None:
    with pytest.raises(error, match=what) as caught:
        parse_manifest(manifest(**changes))
    assert caught.value.exit_code == 1
    assert len(str(caught.value)) < 300


def test_index() -> None:
    entry = descriptor(
        b"x", MANIFEST, platform={"os": "linux", "architecture": "arm", "variant": "v7"}, artifactType="a"
    )
    found = parse_index(packed({"schemaVersion": 2, "manifests": [entry]}))
    assert str(found.manifests[0].platform) == "linux/arm/v7"
    assert found.manifests[0].artifact_type == "a"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"schemaVersion": 2}, "without manifests"),
        ({"schemaVersion": 2, "manifests": [], "layers": []}, "at once"),
        ({"schemaVersion": 2, "manifests": [], "config": {}}, "at once"),
        ({"schemaVersion": 2, "manifests": [], "mediaType": MANIFEST}, "not the type"),
        ({"schemaVersion": 2, "manifests": [{}] * (MAX_MANIFESTS + 1)}, "more than"),
        ([], "not a JSON object"),
    ],
)
def test_bad_indexes(body: object, what: str) -> None:
    with pytest.raises((OciError, LimitExceeded), match=what):
        parse_index(packed(body))


def test_config() -> None:
    body = {
        "os": "linux",
        "architecture": "arm64",
        "created": "2020-01-01T00:00:00Z",
        "author": "someone",
        "config": {"Labels": {"a": "b"}, "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [SHA256]},
    }
    found = parse_config(packed(body), 1)
    assert str(found.platform) == "linux/arm64"
    assert [str(diff_id) for diff_id in found.diff_ids] == [SHA256]
    assert found.labels == {"a": "b"}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"rootfs": None}, "rootfs.type"),
        ({"rootfs": {"type": "other", "diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": []}}, "0 entries for 1 layers"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, r"rootfs.diff_ids\[0\]"),
    ]
    for changed, what in changes:
        with pytest.raises(OciError, match=what):
            parse_config(packed({**body, **changed}), 1)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([SHA256, LAYER, CONFIG, MANIFEST]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "data", "platform", "annotations", "os", "a"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
_documents = st.dictionaries(
    st.sampled_from(["schemaVersion", "mediaType", "manifests", "layers", "config", "rootfs", "annotations", "os"]),
    _json | st.just(2),
    max_size=6,
).map(lambda body: json.dumps(body).encode())


@given(st.binary(max_size=200) | _documents)
def test_any_bytes_give_a_value_or_one_error(data: bytes) -> None:
    for parse in (parse_index, parse_manifest, lambda text: parse_config(text, 1)):
        try:
            parse(data)
        except CfsError as error:
            assert "\n" not in str(error), error  # noqa: PT017
