"""What a store holds, and how the objects of several images share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import in_turn
from cfstools.store.survey import Kind, survey
from cfstools.store.waiting import PATIENT, Waiting
from cfstools.verity import Algorithm

# Upper bounds of the classes of sizes; the last class has none.
SIZE_BOUNDS = (0, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
_BLOCK = 512  # the unit of st_blocks


class SizeClass(Report):
    """Objects of up to ``limit`` bytes and more than the class before; ``None`` for all larger ones."""

    limit: int | None
    objects: int
    bytes: int


class ImageUse(Report):
    """What one image takes of a store.

    ``exclusive`` objects are there and not needed by any other of the images: what removing the image would free.
    """

    objects: int
    bytes: int
    missing: int
    bytes_missing: int
    exclusive: int
    bytes_exclusive: int


class StoreUsage(Report):
    """What a store holds. Sizes are in bytes; ``bytes_allocated`` is what the file system spends on the objects.

    ``algorithms`` counts objects by that of their digests. ``images`` are in the order given. ``sharing`` says how
    many of the objects are needed by how many of the images; ``unused`` ones by none (0 when no image was given).
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
    """Count what is in the store. Each of *images* says which digests it needs, with their sizes.

    Waits while someone removes objects, as *waiting* says. Raises ``StoreError``.
    """
    needed = Counter(digest for image in images for digest in image)
    count = _Count(needed, asked=bool(images))
    with (
        in_turn(store, exclusive=False, waiting=waiting),
        running_stage(progress, "count", None, "object") as stage,
    ):
        for found in survey(store):
            if found.kind is Kind.OBJECT:
                assert found.digest is not None
                count.take(found.digest, found.status.st_size, found.status.st_blocks * _BLOCK)
            elif found.is_temporary:
                count.temporaries += 1
            else:
                count.foreign += 1
            stage.advance(1)
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

    def take(self, digest: bytes, size: int, allocated: int) -> None:
        """Count one object."""
        self._algorithms[len(digest)] += 1
        self._allocated += allocated
        counted = self._classes[sum(size > limit for limit in SIZE_BOUNDS)]
        counted[0] += 1
        counted[1] += size
        if digest in self._needed:
            self._there[digest] = size
        elif self._asked:
            self._unused[0] += 1
            self._unused[1] += size

    def report(self, images: Sequence[Mapping[bytes, int]]) -> StoreUsage:
        """The sums."""
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
