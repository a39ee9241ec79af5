"""``mkcfs verify`` of an image with all its objects, against ``fsverity digest`` and ``sha256sum`` of the same files.

Ours also checks the structure of the image and looks each object up; the others get the names from ``find`` and use
one CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.runner import MKCFS, Job, Target, build_image

_EACH = 'find "$0" -type f -print0 | xargs -0 {}'
_TOOLS = {"fsverity": "fsverity digest", "sha256sum": "sha256sum"}


def jobs(label: str, source: Path | str, scratch: Path) -> Iterator[Job]:
    """Yield the jobs for one source, whose objects are put into a store first."""
    name = Path(source).name
    image, store = scratch / f"verify-{name}.cfs", scratch / f"verify-{name}"

    def make() -> None:
        if not image.exists():
            build_image(source, image, "--store", str(store))

    for tool, command in _TOOLS.items():
        if shutil.which(tool) is None:
            continue
        for threads in (1, 2):
            yield Job(
                name=f"{label}, verify -j{threads} / {tool}",
                ours=[*MKCFS, "verify", str(image), f"-j{threads}", "--store", str(store)],
                make=make,
                theirs=["sh", "-c", _EACH.format(command), str(store)],
                target=Target(3, 4) if tool == "fsverity" and threads == 2 else None,
                pure=threads == 2,
            )
