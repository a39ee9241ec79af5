"""Targets for what registries, their token servers, configuration files and memories of layers hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cfstools.errors import CfsError
from cfstools.oci.descriptor import Digest
from cfstools.oci.layer_record import unpack
from cfstools.oci.pushed.layout import IMAGE_PART, MAX_SIGNATURE
from cfstools.oci.pushed.map import parse_map
from cfstools.oci.pushed.metadata import MetadataLayer, part_places
from cfstools.oci.pushed.ranges import parse_ranges
from cfstools.oci.pushed.referrers import BUNDLE, envelope_in, envelope_layer
from cfstools.oci.registry.challenges import MAX_CHALLENGES, parse_challenges, parse_token
from cfstools.oci.registry.credentials import Credential, HelperAnswer, find_credential, parse_auth_file
from cfstools.oci.registry.reference import parse_image_reference
from cfstools.oci.registry.registriesconf import endpoints, parse_registries

_SOME = parse_image_reference("docker://reg.example/team/app:1")


def access(data: bytes) -> None:
    """A text is a reference, an auth file, a token or a configuration, or refused as each; challenges never are."""
    assert len(parse_challenges(data.decode("latin-1").split("\n"))) <= MAX_CHALLENGES
    first: CfsError | None = None
    taken = 0
    for parse in (_reference, _auth_file, _configuration, parse_token):
        try:
            parse(data)
            taken += 1
        except CfsError as error:
            first = first or error
    if not taken and first is not None:
        raise first


def _reference(data: bytes) -> None:
    found = parse_image_reference(data.decode("utf-8", "surrogateescape"))
    assert parse_image_reference(str(found)) == found


def _auth_file(data: bytes) -> None:
    file = parse_auth_file(data, "auth.json")
    for host in ("reg.example", "docker.io"):
        found = find_credential([file], host, "team/app", lambda _name, _host: HelperAnswer(0, data))
        assert found is None or isinstance(found, Credential)


def _configuration(data: bytes) -> None:
    endpoints(parse_registries([("registries.conf", data)]), _SOME)


def remembered(data: bytes) -> None:
    """A record of a layer is read and packed as it was read, or refused."""
    found = unpack(data)
    packed = found.pack()
    assert packed is not None
    again = unpack(packed)
    assert (repr(again.entries), again.report, again.notes) == (repr(found.entries), found.report, found.notes)


def pushed(data: bytes) -> None:
    """A map or table is packed as it was read; parts of a metadata layer have their size; envelopes are no larger."""
    with suppress(CfsError):
        found = parse_map(data)
        assert found.pack() == data
    with suppress(CfsError):
        table = parse_ranges(data, 100)
        assert table.pack() == data
    first: CfsError | None = None
    taken = False
    for use in (_parts, _artifact):
        try:
            use(data)
        except CfsError as error:
            first = first or error
        else:
            taken = True
    if not taken and first is not None:
        raise first


def _parts(data: bytes) -> None:
    place, _, blob = data.partition(b"\n")
    places = part_places({IMAGE_PART: place.decode("latin-1")})
    part = MetadataLayer(blob, places).part(IMAGE_PART, 1 << 20)
    assert part is not None
    assert len(part) == places[IMAGE_PART].size


def _artifact(data: bytes) -> None:
    layer = envelope_layer(data, Digest("sha256", "0" * 64))
    assert layer is None or layer.size <= MAX_SIGNATURE
    assert len(envelope_in(data, BUNDLE)) <= 2 * len(data) + 100


REGISTRY_TARGETS: dict[str, Callable[[bytes], None]] = {"access": access, "remembered": remembered, "pushed": pushed}
