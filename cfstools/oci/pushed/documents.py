"""Config and manifest of a pushed image, in canonical JSON (docs/distribution.md, "Manifest")."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cfstools.errors import LimitExceeded
from cfstools.oci.descriptor import Descriptor, Digest, Platform
from cfstools.oci.jsontext import Fields, parse_json
from cfstools.oci.pushed.layout import EMPTY_TAR_DIFF_ID, MANIFEST
from cfstools.streams.limits import MAX_JSON


def canonical_json(value: object) -> bytes:
    """*value* with sorted keys and no spaces, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def describe(media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
    """The descriptor of a blob at hand."""
    digest = Digest("sha256", hashlib.sha256(data).hexdigest())
    return Descriptor(media_type=media_type, digest=digest, size=len(data), annotations=annotations or {})


def make_config(platform: Platform, diff_ids: Sequence[str], given: bytes | None = None) -> bytes:
    """The image's config: its platform, the DiffIDs of its data layers and that of the metadata layer behind them.

    *given* is a config whose ``config`` member (command, environment, user, labels) is taken over, or that member
    alone. Raises :class:`OciError` if it is no JSON object.
    """
    config: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        config["variant"] = platform.variant
    if given is not None:
        value = parse_json(given)
        Fields(value, "")
        assert isinstance(value, dict)
        inner = value.get("config", value if "rootfs" not in value else None)
        if inner is not None:
            Fields(inner, "config")
            config["config"] = inner
    config["rootfs"] = {"type": "layers", "diff_ids": [*diff_ids, EMPTY_TAR_DIFF_ID]}
    return canonical_json(config)


def make_manifest(config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """The image's manifest. Raises :class:`LimitExceeded` where registries would refuse its size."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _written(config),
        "layers": [_written(layer) for layer in layers],
        "annotations": dict(annotations),
    }
    data = canonical_json(manifest)
    if len(data) > MAX_JSON:
        raise LimitExceeded(f"a manifest of {len(data)} bytes, registries take {MAX_JSON}")
    return data


def _written(descriptor: Descriptor) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        fields["annotations"] = dict(descriptor.annotations)
    return fields
