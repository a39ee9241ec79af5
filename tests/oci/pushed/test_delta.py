"""The tree of a delta layer makes the new tree of the old one."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings

from cfstools.errors import OciError
from cfstools.oci.pushed.delta import delta_tree, layered
from cfstools.tree import Directory, HardLink, RegularFile
from cfstools.tree.walk import iter_entries
from tests.oci.pushed.trees import external, layer_trees, read, tree_pairs, write
from tests.strategies import describe


def _file(data: bytes = b"x", **fields: Any) -> RegularFile:
    content = external(data) if len(data) > 64 else data
    return RegularFile(mode=0o100644, size=len(data), content=content, **fields)


def _dir(**entries: object) -> Directory:
    return Directory(mode=0o40755, entries={name.encode(): entry for name, entry in entries.items()})  # type: ignore[misc]


def _names(root: Directory | None) -> list[bytes]:
    assert root is not None
    return [path for path, _, _ in iter_entries(root)]


@settings(max_examples=150)
@given(pair=tree_pairs)
def test_a_delta_makes_the_one_of_the_other(pair: tuple[Directory, Directory]) -> None:
    old, new = pair
    expected = describe(new)
    try:
        delta = delta_tree(old, new)
    except OciError:
        assert any(len(name) > 251 for _, name, _ in iter_entries(old))
        return
    if delta is None:
        assert describe(old) == expected
        return
    assert describe(layered(old, delta)) == expected
    base, _ = write(old)
    blob, _ = write(delta, whiteouts=True)
    assert describe(read(base, blob)) == expected


@settings(max_examples=20)
@given(root=layer_trees)
def test_nothing_changed_is_no_delta(root: Directory) -> None:
    base, _ = write(root)
    assert delta_tree(read(base), root) is None


def test_a_removed_directory_is_one_marker() -> None:
    old, new = _dir(a=_dir(b=_dir(c=_file()), d=_file())), _dir(z=_file())
    assert _names(delta_tree(old, new)) == [b"/", b"/.wh.a", b"/z"]


def test_only_what_changed_and_its_parents() -> None:
    old = _dir(a=_dir(b=_file(b"1"), c=_file(b"2")), d=_dir(e=_file(b"3")))
    new = _dir(a=_dir(b=_file(b"1"), c=_file(b"4")), d=_dir(e=_file(b"3")))
    assert _names(delta_tree(old, new)) == [b"/", b"/a", b"/a/c"]


def test_a_directory_becomes_a_file_and_back() -> None:
    one, other = _dir(a=_dir(b=_file())), _dir(a=_file())
    for old, new in ((one, other), (other, one)):
        delta = delta_tree(old, new)
        assert delta is not None
        assert not [name for name in _names(delta) if b".wh." in name]
        assert describe(layered(old, delta)) == describe(new)


def test_all_names_of_a_changed_inode_stand_together() -> None:
    def tree(data: bytes, *, linked: bool = True) -> Directory:
        inode = _file(data)
        return _dir(a=_dir(one=inode), b=_dir(two=HardLink(inode) if linked else _file(data), other=_file(b"o")))

    assert _names(delta_tree(tree(b"1"), tree(b"2"))) == [b"/", b"/a", b"/a/one", b"/b", b"/b/two"]
    for pair in ((tree(b"1"), tree(b"1", linked=False)), (tree(b"1", linked=False), tree(b"1"))):
        delta = delta_tree(*pair)
        assert delta is not None
        assert describe(layered(pair[0], delta)) == describe(pair[1])


def test_one_name_of_a_linked_inode_goes() -> None:
    def tree(*names: str) -> Directory:
        inode = _file(b"1")
        return _dir(**{name: HardLink(inode) if number else inode for number, name in enumerate(names)})

    for old, new in ((tree("a", "b", "c"), tree("b", "c")), (tree("a", "b"), tree("a")), (tree("b"), tree("a", "b"))):
        delta = delta_tree(old, new)
        assert delta is not None
        assert describe(layered(old, delta)) == describe(new)


def test_only_the_mode_of_a_directory() -> None:
    old, new = _dir(a=_dir(b=_file())), _dir(a=_dir(b=_file()))
    new.entries[b"a"].mode = 0o40700  # type: ignore[union-attr]
    assert _names(delta_tree(old, new)) == [b"/", b"/a"]
