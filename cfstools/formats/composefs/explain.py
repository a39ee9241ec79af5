"""Why a composefs image is not what a writer makes of its tree (composefs format, sections 1 to 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cfstools.formats.erofs.byte_roles import first_difference, role_of
from cfstools.formats.erofs.reader import Image, Xattr
from cfstools.formats.erofs.regions import RegionKind
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.escape import escape_text
from cfstools.formats.explain import Reason, Rule
from cfstools.text import counted


def explain_bytes(name: str, image: memoryview, canonical: memoryview) -> Iterator[Reason]:
    """Reasons why *image*, called *name*, has other bytes than *canonical*, what a writer makes of the same tree."""
    yield from _xattr_storage(name, image, canonical)
    offset = first_difference(image, canonical)
    if offset is not None and role_of(image, offset).kind is RegionKind.UNKNOWN:
        what = f"{name} has bytes that belong to nothing and are not zero, the first at {offset:#x}"
        yield Reason(rule=Rule.PADDING, what=what)


def _xattr_storage(name: str, stored: memoryview, canonical: memoryview) -> Iterator[Reason]:
    """Inodes that store the right xattrs in another order, or at another place, than a canonical writer."""
    orders: list[str] = []
    places: list[str] = []
    image, model = Image(stored), Image(canonical)
    walk, model_walk = Walk(image), Walk(model)
    for step, expected in zip(walk, model_walk, strict=False):
        if step.name != expected.name:
            return
        have, want = image.xattrs(step.inode), model.xattrs(expected.inode)
        if have == want or not step.first:
            continue
        if sorted(have) == sorted(want):
            orders.append(f"{walk.path()} has {_keys(have)} instead of {_keys(want)}")
        elif sorted(pair[:2] for pair in have) == sorted(pair[:2] for pair in want):
            places.append(walk.path())
    if orders:
        what = f"{counted(len(orders), 'inode')} of {name} in another order than a canonical writer's: {orders[0]}"
        yield Reason(rule=Rule.XATTR_ORDER, what=what)
    if places:
        what = f"{counted(len(places), 'inode')} of {name} with other xattrs in the shared table: {places[0]}"
        yield Reason(rule=Rule.XATTR_SHARING, what=what)


def _keys(xattrs: Sequence[Xattr]) -> str:
    return ", ".join(escape_text(key) for key, _, _ in xattrs)
