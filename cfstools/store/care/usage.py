"""Count what a store holds, and how several images share its objects."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.store.care.scan import Listing, listings
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting, in_turn
from cfstools.verity import Algorithm

# Upper bounds of the size classes in bytes; the last class has none.
SIZE_BOUNDS = (0, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
_BLOCK = 512  # the unit of st_blocks


class SizeClass(Report):
    """Objects up to ``limit`` bytes, and larger than the class before; ``None``: no upper limit."""

    limit: int | None
    objects: int
    bytes: int


class ImageUse(Report):
    """The objects of one image in a store. Sizes are in bytes.

    ``exclusive`` objects exist and no other of the images needs them: removing the image would free them.
    """

    objects: int
    bytes: int
    missing: int
    bytes_missing: int
    exclusive: int
    bytes_exclusive: int


class StoreUsage(Report):
    """What a store holds. Sizes are in bytes; ``bytes_allocated`` is the disk space of the objects.

    ``algorithms`` counts objects by hash algorithm. ``images`` are in the order given. ``sharing`` maps a number of
    images to the number of objects that so many images need; ``unused`` objects are needed by none (0 if no image was
    given).
    """

    objects: int
    bytes: int
    bytes_allocated: int
    algorithms: dict[str, int]
    sizes: tuple[SizeClass, ...]
    temporaries: int
    foreign: int
    images: tuple[ImageUse, ...]
    sharing: dict[int, int]
    unused: int
    bytes_unused: int


def usage(
    store: DirectoryStore,
    images: Sequence[Mapping[bytes, int]] = (),
    *,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> StoreUsage:
    """Count the entries of the store. Each of *images* maps the digests it needs to their sizes.

    *waiting* says how long to wait for a process that removes objects. Raises ``StoreError``.
    """
    needed = Counter(digest for image in images for digest in image)
    count = _Count(needed, asked=bool(images))
    with (
        in_turn(store, exclusive=False, waiting=waiting),
        running_stage(progress, "count", None, "object") as stage,
    ):
        for listing in listings(store):
            count.take(listing)
            temporaries = sum(found.is_temporary for found in listing.others)
            count.temporaries += temporaries
            count.foreign += len(listing.others) - temporaries
            stage.advance(len(listing.digests))
    return count.report(images)


class _Count:
    def __init__(self, needed: Counter[bytes], *, asked: bool) -> None:
        self._needed = needed
        self._asked = asked
        self._there: dict[bytes, int] = {}  # sizes of the objects that some image needs
        self._allocated = 0
        self._algorithms: Counter[int] = Counter()
        self._classes = [[0, 0] for _ in range(len(SIZE_BOUNDS) + 1)]
        self._unused = [0, 0]
        self.temporaries = 0
        self.foreign = 0

    def take(self, listing: Listing) -> None:
        """Count the objects of one directory."""
        self._algorithms.update(map(len, listing.digests))
        self._allocated += sum(listing.blocks) * _BLOCK
        sizes = sorted(listing.sizes)
        start = 0
        for counted, bound in zip(self._classes, (*SIZE_BOUNDS, sizes[-1] if sizes else 0), strict=True):
            end = bisect_right(sizes, bound, start)
            counted[0] += end - start
            counted[1] += sum(sizes[start:end])
            start = end
        if self._asked:
            for digest, size in zip(listing.digests, listing.sizes, strict=True):
                if digest in self._needed:
                    self._there[digest] = size
                else:
                    self._unused[0] += 1
                    self._unused[1] += size

    def report(self, images: Sequence[Mapping[bytes, int]]) -> StoreUsage:
        """The totals."""
        sharing = Counter(self._needed[digest] for digest in self._there)
        return StoreUsage(
            objects=sum(count for count, _ in self._classes),
            bytes=sum(size for _, size in self._classes),
            bytes_allocated=self._allocated,
            algorithms={
                algorithm.value: self._algorithms[algorithm.digest_size]
                for algorithm in Algorithm
                if self._algorithms[algorithm.digest_size]
            },
            sizes=tuple(
                SizeClass(limit=limit, objects=count, bytes=size)
                for limit, (count, size) in zip((*SIZE_BOUNDS, None), self._classes, strict=True)
            ),
            temporaries=self.temporaries,
            foreign=self.foreign,
            images=tuple(map(self._image, images)),
            sharing=dict(sorted(sharing.items())),
            unused=self._unused[0],
            bytes_unused=self._unused[1],
        )

    def _image(self, image: Mapping[bytes, int]) -> ImageUse:
        there = [digest for digest in image if digest in self._there]
        missing = [size for digest, size in image.items() if digest not in self._there]
        own = [digest for digest in there if self._needed[digest] == 1]
        return ImageUse(
            objects=len(image),
            bytes=sum(map(self._there.__getitem__, there)) + sum(missing),
            missing=len(missing),
            bytes_missing=sum(missing),
            exclusive=len(own),
            bytes_exclusive=sum(map(self._there.__getitem__, own)),
        )
