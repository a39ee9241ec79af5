"""Which image of several: by name, by digest, by platform (OCI reading, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci.descriptor import Descriptor, Digest, Kind, Platform, kind_of
from cfstools.oci.manifest import Index
from cfstools.text import quoted
from cfstools.values import Value

MAX_INDEX_DEPTH = 8
MAX_CANDIDATES = 4096
_LISTED = 12

_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"
_WITHOUT_PLATFORM = 1000
_ARM = ("v8", "v7", "v6", "v5")


class Choice(Value):
    """What the user asked for: a tag or name, a digest of a manifest or index, a platform; all may be open."""

    name: str | None = None
    digest: Digest | None = None
    platform: Platform | None = None


ANY = Choice()


class Candidate(Value):
    """One image that could be meant: its manifest, the names it goes by, and the indexes that lead to it."""

    manifest: Descriptor
    names: tuple[str, ...]
    trail: tuple[Digest, ...] = ()

    def __str__(self) -> str:
        name = quoted(self.names[0])[1:-1] if self.names else f"@{self.manifest.digest}"
        return f"{name} ({self.manifest.platform})" if self.manifest.platform else name


def candidates(index: Index, load: Callable[[Descriptor], Index]) -> list[Candidate]:
    """Every image below *index*, in order; *load* reads a nested index.

    Attestations, artifacts and unknown types are passed over. Raises :class:`LimitExceeded` for indexes nested
    deeper than 8 and for more than 4096 images.
    """
    found: list[Candidate] = []
    for candidate in _descend(index, load, (), ()):
        found.append(candidate)
        if len(found) > MAX_CANDIDATES:
            raise LimitExceeded(f"more than {MAX_CANDIDATES} images", where="index")
    return found


def _descend(
    index: Index, load: Callable[[Descriptor], Index], names: tuple[str, ...], trail: tuple[Digest, ...]
) -> Iterator[Candidate]:
    for entry in index.manifests:
        kind = entry.kind
        own = names if trail else _names(entry)
        if kind is Kind.INDEX:
            if entry.digest in trail:
                raise OciError("the index contains itself", where=str(entry.digest))
            if len(trail) == MAX_INDEX_DEPTH:
                raise LimitExceeded(f"indexes nested deeper than {MAX_INDEX_DEPTH}", where=str(entry.digest))
            yield from _descend(load(entry), load, own, (*trail, entry.digest))
        elif kind in {Kind.MANIFEST, Kind.SCHEMA1} and not (entry.is_attestation or _is_artifact(entry)):
            yield Candidate(manifest=entry, names=own, trail=trail)


def _is_artifact(entry: Descriptor) -> bool:
    return entry.artifact_type is not None and kind_of(entry.artifact_type) is not Kind.CONFIG


def _names(entry: Descriptor) -> tuple[str, ...]:
    """The names a descriptor of the outermost index goes by: its tag, and docker's full name of the image."""
    names = (entry.annotations.get(key) for key in (_REF_NAME, _CONTAINERD_NAME))
    return tuple(name for name in names if name)


def choose(found: Sequence[Candidate], choice: Choice) -> Candidate:
    """The one image meant; raises :class:`OciError` that lists the candidates when it is none or not clear which."""
    if choice.digest is not None:
        meant = [one for one in found if choice.digest == one.manifest.digest or choice.digest in one.trail]
    elif choice.name is not None:
        meant = [one for one in found if any(is_named(name, choice.name) for name in one.names)]
    else:
        meant = list(found)
    wanted = str(choice.digest) if choice.digest else choice.name
    if not meant:
        what = f"no image {quoted(wanted)}" if wanted else "no image"
        raise OciError(f"{what}; there is {listed(found)}" if found else what)
    if choice.platform is not None:
        meant = _of_platform(meant, choice.platform)
    if len({one.manifest.digest for one in meant}) > 1:
        raise OciError(f"{len(meant)} images could be meant: {_told_apart(meant)}", hint=_hint(meant))
    return meant[0]


def _of_platform(found: list[Candidate], platform: Platform) -> list[Candidate]:
    """The first image that fits best; those of several names that fit equally."""
    ranked = [(rank, one) for one in found if (rank := platform_rank(one.manifest.platform, platform)) is not None]
    if not ranked:
        raise OciError(f"no image for {platform}; there is {listed(found)}")
    best = min(rank for rank, _ in ranked)
    fitting = [one for rank, one in ranked if rank == best]
    return fitting if len({one.names for one in fitting}) > 1 else fitting[:1]


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


def _hint(found: list[Candidate]) -> str:
    """How to choose: by platform where that helps, by name where there is one, by digest always."""
    ways = []
    if len({one.manifest.platform for one in found}) > 1:
        ways.append("choose one with --platform os/arch")
    if len({one.names for one in found}) > 1:
        ways.append("name one with :NAME")
    return ", or ".join([*ways, "give its @DIGEST"])


def is_named(name: str, wanted: str) -> bool:
    """Whether *wanted* may mean the image called *name*: the whole name or its end, ``:latest`` being understood."""
    tagged = wanted if ":" in wanted.rpartition("/")[2] else f"{wanted}:latest"
    return name in {wanted, tagged} or name.endswith(("/" + wanted, "/" + tagged))


def listed(found: Sequence[Candidate]) -> str:
    """The candidates in one line."""
    return _joined([str(one) for one in found])


def _told_apart(found: Sequence[Candidate]) -> str:
    """The candidates in one line, each with the digest that tells it from all others."""
    return _joined([f"{one} @{one.manifest.digest}" if one.names else str(one) for one in found])


def _joined(texts: list[str]) -> str:
    more = [f"{len(texts) - _LISTED} more"] if len(texts) > _LISTED else []
    return ", ".join(texts[:_LISTED] + more)
