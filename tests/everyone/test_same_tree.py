"""All ways to show an image show the same tree, but for differences that are known, and counted in the report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.everyone.ways import ALL, KERNEL, LAZY, Image, Way, allowed_for, count_inodes, shown, unexpected
from tests.fidelity import Tree, compare, subtract
from tests.users import Account, Place, User, at_home

pytestmark = [pytest.mark.root, pytest.mark.kernel]

OTHERS = [way for way in ALL if way is not KERNEL]


@pytest.fixture(scope="module")
def observer(accounts: tuple[Account, Account], tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user for what is looked at once."""
    top = tmp_path_factory.mktemp("observer")
    top.chmod(0o711)
    place = Place(top)
    with at_home(accounts[0], place) as made:
        yield made
    place.close()


@pytest.fixture(scope="module")
def odd_tree(observer: User, odd_image: Image) -> Tree:
    """What root sees of the odd tree in a kernel mount."""
    with shown(observer, KERNEL, odd_image) as view:
        return view.look()


@pytest.fixture(scope="module")
def debian(observer: User, debian_image: Image) -> Tree:
    """What root sees of Debian in a kernel mount."""
    with shown(observer, KERNEL, debian_image) as view:
        return view.look()


def assert_same(way: Way, user: User, image: Image, expected: Tree) -> dict[str, int]:
    """What is shown is *expected* but for what may differ; how many differences of each kind there are."""
    allowed = allowed_for(way, user)
    with shown(user, way, image) as view:
        found = view.look()
    differences = compare(expected, found)
    left, _ = subtract(differences, expected, allowed)
    assert left == [], unexpected(left)
    counts = count_inodes(differences, expected, allowed)
    for said in view.report.get("left_out", ()):  # type: ignore[attr-defined]
        counted = said["what"] in ("devices", "owners", "access control lists") and said["what"] in allowed
        if counted and "link" not in way.options:
            assert said["count"] == counts[said["what"]], (said, counts)
    return counts


@pytest.mark.parametrize("way", OTHERS, ids=lambda way: way.name)
def test_the_odd_tree(user: User, odd_image: Image, odd_tree: Tree, way: Way) -> None:
    counts = assert_same(way, user, odd_image, odd_tree)
    assert counts["trusted attributes"] > 0
    if "fuse" not in way.options:
        assert counts["devices"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHERS, ids=lambda way: way.name)
def test_debian(user: User, debian_image: Image, debian: Tree, way: Way) -> None:
    assert_same(way, user, debian_image, debian)


@pytest.mark.parametrize("way", LAZY, ids=lambda way: way.name)
def test_the_odd_tree_lazily(user: User, odd_image: Image, odd_tree: Tree, way: Way) -> None:
    assert_same(way, user, odd_image, odd_tree)
