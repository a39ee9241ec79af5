"""Which image of several: by name, by digest, by platform (docs/oci.md, "Choosing an image")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from cfstools.errors import CfsError, LimitExceeded, OciError, Phrase, Remedy
from cfstools.oci.descriptor import Descriptor, Digest, Kind, Platform, is_lost, kind_of
from cfstools.oci.manifest import Index, OddEntry
from cfstools.streams.limits import (
    MAX_CANDIDATES,
    MAX_ENTRIES,
    MAX_INDEX_BYTES,
    MAX_INDEX_DEPTH,
    MAX_INDEXES,
    MAX_LOOKS,
)
from cfstools.text import quoted
from cfstools.values import Value

_LISTED = 12

_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"
_WITHOUT_PLATFORM = 1000
_ARM = ("v8", "v7", "v6", "v5")


class Selector(Value):
    """Which image is wanted: by tag or name, by digest of a manifest or index, by platform; any may be left open."""

    name: str | None = None
    digest: Digest | None = None
    platform: Platform | None = None


ANY = Selector()


class Candidate(Value):
    """One image that the selector may mean: its manifest, its names, and the indexes that lead to it.

    *entry* is the number of the entry of the outermost index that leads to it.
    """

    manifest: Descriptor
    names: tuple[str, ...]
    trail: tuple[Digest, ...] = ()
    entry: int = 0

    def __str__(self) -> str:
        name = quoted(self.names[0])[1:-1] if self.names else f"@{self.manifest.digest}"
        return f"{name} ({self.manifest.platform})" if self.manifest.platform else name


class State(Enum):
    """What a candidate turns out to be: an image, something else, or an image with missing blobs."""

    IMAGE = "image"
    ARTIFACT = "artifact"
    ABSENT = "absent"


class Selection(Value):
    """The image that was selected, and warnings about what was skipped on the way to it."""

    candidate: Candidate
    notes: tuple[str, ...] = ()


class Catalogue:
    """Every image below *index*, in order; *load* reads a nested index, each of them once.

    Attestations, artifacts and entries of unknown media types are skipped; entries whose media type was lost are not.
    *odd* holds the entries that are not descriptors, and the nested indexes that cannot be read. Raises
    :class:`LimitExceeded` for indexes nested deeper than 8, and for too many indexes, entries or images.
    """

    def __init__(self, index: Index, load: Callable[[Descriptor], Index]) -> None:
        self._load = load
        self._indexes: dict[Digest, Index] = {}
        self._bytes_left = MAX_INDEX_BYTES
        self._entries_left = MAX_ENTRIES
        self._images_left = MAX_CANDIDATES
        self.odd: list[OddEntry] = list(index.odd)
        self.images: list[Candidate] = []
        for number, entry in enumerate(index.manifests):
            self.images += self._below(entry, _names(entry.annotations), number, (), set())

    def below(self, digest: Digest) -> list[Candidate]:
        """The images with *digest*: one manifest, or all below the index of that digest."""
        index = self._indexes.get(digest)
        if index is None:
            return [one for one in self.images if one.manifest.digest == digest]
        # Walk it again: images that another index led to first are not listed under this one.
        seen: set[Digest] = set()
        return [one for each in index.manifests for one in self._below(each, (), 0, (digest,), seen)]

    def _below(
        self, entry: Descriptor, names: tuple[str, ...], number: int, trail: tuple[Digest, ...], seen: set[Digest]
    ) -> list[Candidate]:
        """The images that an entry leads to, without those in *seen*, which grows."""
        self._spend_entries(1)
        if entry.digest in trail:
            raise OciError("the index contains itself", where=str(entry.digest))
        if entry.digest in seen:
            return []
        kind = entry.kind
        if kind is Kind.INDEX:
            seen.add(entry.digest)
            if len(trail) == MAX_INDEX_DEPTH:
                raise LimitExceeded(f"indexes nested deeper than {MAX_INDEX_DEPTH}", where=str(entry.digest))
            further = (*trail, entry.digest)
            index = self._index(entry, outermost=not trail)
            return [one for each in index.manifests for one in self._below(each, names, number, further, seen)]
        if not _may_be_image(entry):
            return []
        seen.add(entry.digest)
        self._count_image()
        return [Candidate(manifest=entry, names=names, trail=trail, entry=number)]

    def _index(self, entry: Descriptor, *, outermost: bool) -> Index:
        """A nested index, read once. A missing or damaged one counts as empty and is reported in *odd*."""
        found = self._indexes.get(entry.digest)
        if found is None:
            self._bytes_left -= entry.size
            if len(self._indexes) == MAX_INDEXES or self._bytes_left < 0:
                what = f"more than {MAX_INDEXES} nested indexes, or more than {MAX_INDEX_BYTES} bytes of them"
                raise LimitExceeded(what, where=str(entry.digest))
            try:
                found = self._load(entry)
            except CfsError as error:
                found = Index(manifests=())
                annotations = entry.annotations if outermost else {}
                self.odd.append(OddEntry(error=error, digest=str(entry.digest), annotations=annotations))
            self._spend_entries(len(found.odd))
            self.odd += found.odd
            self._indexes[entry.digest] = found
        return found

    def _spend_entries(self, count: int) -> None:
        self._entries_left -= count
        if self._entries_left < 0:
            raise LimitExceeded(f"more than {MAX_ENTRIES} entries in the indexes", where="index")

    def _count_image(self) -> None:
        self._images_left -= 1
        if self._images_left < 0:
            raise LimitExceeded(f"more than {MAX_CANDIDATES} images", where="index")


def _may_be_image(entry: Descriptor) -> bool:
    is_typed = entry.kind in {Kind.MANIFEST, Kind.SCHEMA1}
    return (is_typed or is_lost(entry.media_type)) and not entry.is_attestation and not _is_artifact(entry)


def _is_artifact(entry: Descriptor) -> bool:
    return entry.artifact_type is not None and kind_of(entry.artifact_type) is not Kind.CONFIG


def _names(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The names in the annotations of an entry of the outermost index: its tag, and docker's full image name."""
    names = (annotations.get(key) for key in (_REF_NAME, _CONTAINERD_NAME))
    return tuple(name for name in names if name)


def choose(catalogue: Catalogue, selector: Selector, look: Callable[[Candidate], State]) -> Selection:
    """Select the one image that *selector* means; *look* inspects candidates, only where there are several.

    Raises :class:`OciError` that lists the candidates if none or several match, and the error of an odd entry if that
    is the one meant.
    """
    meant = _meant(catalogue, selector)
    notes = [f"skipped: {error}" for error in map(_odd_text, catalogue.odd[:_LISTED])]
    if selector.platform is not None:
        several = len({one.manifest.digest for one in meant}) > 1
        notes += _several_of_one_name(meant) if several else []
        meant = _of_platform(meant, selector.platform)
    if len({one.manifest.digest for one in meant}) > 1:
        meant = _images(meant, look, notes)
    if selector.platform is not None:
        meant = _first_of_each_entry(meant)
    if len({one.manifest.digest for one in meant}) > 1:
        raise OciError(f"{len(meant)} images match: {_told_apart(meant)}", hint=_hint(meant))
    media_type = meant[0].manifest.media_type
    if is_lost(media_type):
        notes.append(f"the index does not say what the image is: its type there is {quoted(media_type)}")
    return Selection(candidate=meant[0], notes=tuple(notes))


def _meant(catalogue: Catalogue, selector: Selector) -> list[Candidate]:
    """The images with the wanted name or digest; all images if neither is given."""
    odd = catalogue.odd
    if selector.digest is not None:
        meant = catalogue.below(selector.digest)
        odd = [one for one in odd if one.digest == str(selector.digest)]
    elif selector.name is not None:
        wanted = selector.name
        meant = [one for one in catalogue.images if any(is_named(name, wanted) for name in one.names)]
        odd = [one for one in odd if any(is_named(name, wanted) for name in _names(one.annotations))]
    else:
        meant = list(catalogue.images)
        odd = [] if meant else odd
    if odd:
        raise odd[0].error
    if not meant:
        wanted = str(selector.digest) if selector.digest else selector.name or ""
        what = f"no image {quoted(wanted)}" if wanted else "no image"
        raise OciError(f"{what}; there is {listed(catalogue.images)}" if catalogue.images else what)
    # An entry whose media type was lost may be anything: use it only if nothing else matches.
    return [one for one in meant if not is_lost(one.manifest.media_type)] or meant


def _odd_text(odd: OddEntry) -> str:
    return f"an entry of the index: {odd.error}"


def _images(found: list[Candidate], look: Callable[[Candidate], State], notes: list[str]) -> list[Candidate]:
    """Of several candidates the complete images; else the incomplete ones; else all."""
    if len({one.manifest.digest for one in found}) > MAX_LOOKS:
        return found
    states = [(one, look(one)) for one in found]
    images = [one for one, state in states if state is State.IMAGE]
    absent = [one for one, state in states if state is State.ABSENT]
    if images and absent:
        notes.append(f"skipped, because blobs are missing: {listed(absent)}")
    return images or absent or found


def _several_of_one_name(found: list[Candidate]) -> list[str]:
    """A warning for each name that several entries of the outermost index share: the platform picks one of them."""
    entries: dict[str, set[Digest]] = {}
    for one in found:
        for name in one.names:
            entries.setdefault(name, set()).add(one.trail[0] if one.trail else one.manifest.digest)
    twice = [name for name, digests in entries.items() if len(digests) > 1]
    return [f"the name {quoted(name)} is on {len(entries[name])} entries of the index" for name in twice[:_LISTED]]


def _of_platform(found: list[Candidate], platform: Platform) -> list[Candidate]:
    """The images whose platform fits best."""
    ranked = [(rank, one) for one in found if (rank := platform_rank(one.manifest.platform, platform)) is not None]
    if not ranked:
        raise OciError(f"no image for {platform}; there is {listed(found)}")
    best = min(rank for rank, _ in ranked)
    return [one for rank, one in ranked if rank == best]


def _first_of_each_entry(found: list[Candidate]) -> list[Candidate]:
    """Of images that fit equally well, the first that each entry of the outermost index leads to."""
    first: dict[int, Candidate] = {}
    for one in found:
        first.setdefault(one.entry, one)
    return list(first.values())


def platform_rank(offered: Platform | None, wanted: Platform) -> int | None:
    """How well an image's platform fits: 0 is best, ``None`` not at all.

    An ``arm`` variant takes older ones, newest first, then none at all; ``arm64`` means ``v8``; where no variant is
    wanted, images without one go first. Images that state no platform go last.
    """
    if offered is None:
        return _WITHOUT_PLATFORM
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    has, wants = _variant(offered), _variant(wanted)
    if has == wants or wants is None:
        return 0 if has == wants else 1
    if has is None:
        return len(_ARM)
    older = wanted.architecture == "arm" and has in _ARM and wants in _ARM and has < wants
    return _ARM.index(has) - _ARM.index(wants) if older else None


def _variant(platform: Platform) -> str | None:
    return platform.variant or ("v8" if platform.architecture == "arm64" else None)


def _hint(found: list[Candidate]) -> Phrase:
    """A hint how to select one: by platform or name where they differ, and always by digest."""
    ways, remedies = [], []
    if len({one.manifest.platform for one in found}) > 1:
        ways.append("choose one with {}")
        remedies.append(Remedy.PLATFORM)
    if len({one.names for one in found}) > 1:
        ways.append("name one with :NAME")
    return Phrase(", or ".join([*ways, "give its @DIGEST"]), *remedies)


def is_named(name: str, wanted: str) -> bool:
    """Whether *wanted* matches the image *name*: the whole name or its last parts; no tag means ``:latest``."""
    tagged = wanted if ":" in wanted.rpartition("/")[2] else f"{wanted}:latest"
    return name in {wanted, tagged} or name.endswith(("/" + wanted, "/" + tagged))


def listed(found: Sequence[Candidate]) -> str:
    """The candidates in one line."""
    return _joined([str(one) for one in found])


def _told_apart(found: Sequence[Candidate]) -> str:
    """The candidates in one line, each with its digest, so that they can be told apart."""
    return _joined([f"{one} @{one.manifest.digest}" if one.names else str(one) for one in found])


def _joined(texts: list[str]) -> str:
    more = [f"{len(texts) - _LISTED} more"] if len(texts) > _LISTED else []
    return ", ".join(texts[:_LISTED] + more)
