"""Whether an image has exactly the bytes that its tree would be written as."""

from __future__ import annotations

from cfstools.errors import FormatError
from cfstools.formats.composefs import first_difference, plan_image
from cfstools.formats.erofs.regions import regions
from cfstools.tree import Directory
from cfstools.verity import Algorithm


def canonical_difference(image: memoryview, root: Directory, version: int, algorithm: Algorithm) -> str | None:
    """Where *image*, whose tree is *root*, differs from what we would write in the same format version.

    ``None`` if it does not. The place is named by what is at it in the image.
    """
    try:
        plan = plan_image(root, min_version=version, max_version=version, algorithm=algorithm)
    except FormatError as error:
        return f"its tree cannot be written: {error}"
    position = first_difference(plan, image)
    if position is None:
        return None
    if position == plan.size:
        return f"a canonical writer would have stopped after {position} bytes, there are {len(image)}"
    return _describe(image, position)


def _describe(image: memoryview, offset: int) -> str:
    what = "a canonical writer would have made other bytes"
    try:
        for region in regions(image):
            if region.start <= offset < region.end:
                return f"{what}, first at offset {offset:#x}: {region.kind.value} {region.label}".rstrip()
    except FormatError:
        pass
    return f"{what}, first at offset {offset:#x}"
