"""Layer application: each rule of the OCI layer specification, and each case where engines differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import LimitExceeded, OciError
from cfstools.tree import layers
from cfstools.tree.copying import settle_links
from cfstools.tree.layer_rules import LayerRules
from cfstools.tree.layers import MAX_WARNINGS, Layer, LayeredTree
from cfstools.tree.model import (
    Blob,
    Content,
    Device,
    Directory,
    External,
    HardLink,
    Leaf,
    Located,
    Piece,
    RegularFile,
    Stamp,
    Symlink,
    Unread,
)
from cfstools.tree.resolve import normal_parts
from cfstools.tree.walk import iter_entries
from tests.bounds import bounded


class To(bytes):
    """The target of a symbolic link."""


class Hard(bytes):
    """The target of a hard link."""


class Dir(int):
    """Permissions of a directory."""


Step = tuple[bytes, bytes | Dir | None]


def stage(layer: Layer, steps: Iterable[Step]) -> Layer:
    """Stage ``(path, value)``: a :class:`Dir`, a link, or the contents of a file (``None``: a bare marker)."""
    for path, value in steps:
        if isinstance(value, Dir):
            layer.add(path, Directory(mode=0o40000 | value, mtime_sec=5))
        elif isinstance(value, To):
            layer.add(path, Symlink(mode=0o120777, target=bytes(value)))
        elif isinstance(value, Hard):
            layer.add_link(path, bytes(value))
        else:
            content = value or b""
            layer.add(path, RegularFile(mode=0o100644, size=len(content), content=content))
    return layer


def merge(*layers: Sequence[Step], **rules: bool) -> LayeredTree:
    tree = LayeredTree(LayerRules(**rules))
    for number, steps in enumerate(layers, 1):
        stage(tree.layer(f"layer {number}"), steps).apply()
    tree.finish()
    return tree


def look(tree: LayeredTree) -> dict[bytes, object]:
    """Every path but the root: permissions of directories, contents, ``-> target`` of symbolic links."""
    seen: dict[bytes, object] = {}
    for path, _, entry in iter_entries(tree.root):
        inode = entry.inode if isinstance(entry, HardLink) else entry
        match inode:
            case Directory():
                seen[path[1:]] = Dir(inode.mode & 0o7777)
            case Symlink():
                seen[path[1:]] = To(inode.target)
            case RegularFile():
                seen[path[1:]] = inode.content
            case _:
                seen[path[1:]] = inode.mode
    del seen[b""]
    return seen


def test_contents_of_every_kind_go_through() -> None:
    """Layers move inodes and never look at what files hold."""
    contents: list[Content] = [
        b"x",
        External(bytes(32), b"00/object"),
        Located([Piece(1, Blob(1, 512, None, b"tar"), 9)]),
        Unread(b"f", Stamp(0, 0, 1, 0, 0)),
    ]
    tree = LayeredTree(LayerRules())
    for number, content in enumerate(contents):
        layer = tree.layer(f"layer {number}")
        layer.add(b"d/%d" % number, RegularFile(mode=0o100644, size=1, content=content))
        layer.add_link(b"link", b"d/%d" % number)
        layer.apply()
    tree.finish()
    seen = look(tree)
    assert [seen[b"d/%d" % number] for number in range(len(contents))] == contents
    assert seen[b"link"] is contents[-1]


def texts(tree: LayeredTree) -> str:
    return "\n".join(str(warning) for warning in tree.warnings)


D = Dir(0o755)
BASE: list[Step] = [(b"d", Dir(0o750)), (b"d/x", b"old"), (b"d/sub", D), (b"d/sub/y", b"deep"), (b"f", b"file")]


def test_directory_over_directory_keeps_children_and_takes_all_attributes() -> None:
    tree = LayeredTree()
    first = tree.layer("one")
    first.add(b"d", Directory(mode=0o40700, uid=1, gid=2, mtime_sec=3, mtime_nsec=4, xattrs={b"user.a": b"1"}))
    stage(first, [(b"d/x", b"x")]).apply()
    second = tree.layer("two")
    second.add(b"d/", Directory(mode=0o41777, uid=5, gid=6, mtime_sec=7, mtime_nsec=8, xattrs={b"user.b": b"2"}))
    second.apply()
    directory = tree.finish().entries[b"d"]
    assert isinstance(directory, Directory)
    assert list(directory.entries) == [b"x"]
    assert (directory.mode, directory.uid, directory.gid) == (0o41777, 5, 6)
    assert (directory.mtime_sec, directory.mtime_nsec, directory.xattrs) == (7, 8, {b"user.b": b"2"})
    assert not tree.warnings


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        pytest.param([(b"d", b"now a file")], {b"d": b"now a file", b"f": b"file"}, id="dir-to-file"),
        pytest.param([(b"d", To(b"f"))], {b"d": To(b"f"), b"f": b"file"}, id="dir-to-symlink"),
        pytest.param([(b"f", D), (b"f/n", b"1")], {b"f": D, b"f/n": b"1"}, id="file-to-dir"),
        pytest.param([(b"f", b"new")], {b"f": b"new"}, id="file-to-file"),
        pytest.param([(b"f", To(b"d"))], {b"f": To(b"d")}, id="file-to-symlink"),
    ],
)
def test_anything_else_replaces(layer: list[Step], expected: dict[bytes, object]) -> None:
    tree = merge(BASE, layer)
    seen = look(tree)
    for path, value in expected.items():
        assert seen[path] == value
    assert (b"d/x" in seen) == (b"d" not in expected)
    assert not tree.warnings


@pytest.mark.parametrize("marker", [b"", b"not empty", D], ids=["empty", "contents", "directory"])
def test_whiteout_removes_whatever_the_marker_is(marker: bytes | Dir) -> None:
    assert b"f" not in look(merge(BASE, [(b".wh.f", marker)]))
    assert look(merge(BASE, [(b"d/.wh.sub", marker)])).keys() == {b"d", b"d/x", b"f"}


def test_whiteout_of_an_absent_name_or_directory_is_no_error_and_makes_nothing() -> None:
    seen = look(
        merge(BASE, [(b".wh.no", None), (b"no/where/.wh.x", None), (b"f/.wh.x", None), (b"n/.wh..wh..opq", None)])
    )
    assert seen == look(merge(BASE))


def test_whiteout_never_sees_its_own_layer() -> None:
    new: list[Step] = [(b"f", b"new"), (b".wh.f", None)]
    after, before = merge(BASE, new), merge(BASE, new[::-1])
    assert look(after) == look(before)
    assert look(after)[b"f"] == b"new"
    assert "layer 2: /f: a whiteout of the same name follows" in texts(after)
    assert not before.warnings


def test_hard_link_may_be_a_marker_too() -> None:
    assert b"f" not in look(merge(BASE, [(b".wh.f", Hard(b"d/x"))]))


@pytest.mark.parametrize("turn", [1, -1])
def test_whiteout_and_new_directory_hide_the_lower_contents(turn: int) -> None:
    tree = merge(BASE, [(b".wh.d", None), (b"d", D)][::turn], [(b"d/n", b"1")])
    assert look(tree) == {b"d": D, b"d/n": b"1", b"f": b"file"}
    assert "/d: a" in texts(tree) or "/d: whiteout and new directory" in texts(tree)


@pytest.mark.parametrize("turn", [1, -1])
def test_opaque_hides_lower_children_only(turn: int) -> None:
    tree = merge(BASE, [(b"d", D), *[(b"d/.wh..wh..opq", None), (b"d/n", b"1"), (b"d/sub/z", b"2")][::turn]])
    assert look(tree) == {b"d": D, b"d/n": b"1", b"d/sub": D, b"d/sub/z": b"2", b"f": b"file"}
    assert ("opaque marker follows" in texts(tree)) == (turn == -1)


def test_opaque_root() -> None:
    assert look(merge(BASE, [(b".wh..wh..opq", None), (b"n", b"1")])) == {b"n": b"1"}


def test_opaque_keeps_the_attributes_of_a_directory_not_in_the_layer() -> None:
    assert look(merge(BASE, [(b"d/.wh..wh..opq", None)])) == {b"d": Dir(0o750), b"f": b"file"}


def test_bare_markers_are_errors() -> None:
    for name in [b".wh.", b"d/.wh..", b"d/.wh..."]:
        with pytest.raises(OciError, match="names nothing"):
            merge(BASE, [(name, None)])


def test_entry_below_a_marker_is_an_error() -> None:
    with pytest.raises(OciError, match=r"layer 2: /d/.wh.x/y: an entry below a whiteout marker"):
        merge(BASE, [(b"d/.wh.x/y", b"")])


def test_aufs_files_are_skipped_but_serve_as_link_sources() -> None:
    layer: list[Step] = [
        (b".wh..wh.aufs", None),
        (b".wh..wh.plnk", D),
        (b".wh..wh.plnk/12.34", b"pool"),
        (b"a", Hard(b".wh..wh.plnk/12.34")),
        (b"b", Hard(b"./.wh..wh.plnk/12.34")),
    ]
    tree = merge(layer)
    assert look(tree) == {b"a": b"pool", b"b": b"pool"}
    assert isinstance(tree.root.entries[b"a"], RegularFile)
    assert tree.root.entries[b"a"].nlink == 2


def test_whiteout_through_links_and_replaced_links() -> None:
    base: list[Step] = [*BASE, (b"l", To(b"d"))]
    assert b"d/x" not in look(merge(base, [(b"l/.wh.x", None)]))
    # The layer's own directory stands where the link was: nothing of d is meant.
    assert look(merge(base, [(b"l/.wh.x", None), (b"l", D)]))[b"d/x"] == b"old"
    # The layer's own link counts already.
    assert b"d/x" not in look(merge(BASE, [(b"k", To(b"d")), (b"k/.wh.x", None)]))
    # A directory of the lower tree that the layer names as a directory is the same one.
    assert b"d/x" not in look(merge(BASE, [(b"k", To(b"d")), (b"d", D), (b"d/.wh.x", None)]))


def test_missing_parents_are_made() -> None:
    tree = merge([(b"a/b/c", b"1")])
    assert look(tree) == {b"a": D, b"a/b": D, b"a/b/c": b"1"}
    made = tree.root.entries[b"a"]
    assert isinstance(made, Directory)
    assert (made.uid, made.gid, made.mtime_sec, made.xattrs) == (0, 0, 0, {})
    assert texts(tree).count("missing parent directory") == 2


def test_missing_parent_described_later_is_nothing_special() -> None:
    tree = merge([(b"a/b", b"1"), (b"a", Dir(0o700))])
    assert look(tree) == {b"a": Dir(0o700), b"a/b": b"1"}
    assert not tree.warnings


def test_parent_of_a_lower_layer_keeps_its_attributes() -> None:
    tree = merge(BASE, [(b"d/n", b"1"), (b"d/sub/m", b"2")])
    assert look(tree)[b"d"] == Dir(0o750)
    assert texts(tree).splitlines() == [
        "layer 2: /d: the layer has no entry for this parent: it keeps its attributes, some tools reset them to 0755"
    ]
    assert not merge(BASE, [(b"d", D), (b"d/n", b"1")]).warnings


def test_parent_that_is_a_file_is_an_error() -> None:
    with pytest.raises(OciError, match=r"layer 2: /f: the parent of an entry is not a directory"):
        merge(BASE, [(b"f/x", b"")])


@pytest.mark.parametrize("target", [b"d", b"/d", b"../../d", b"d/../d/.", b"/../d//"])
@pytest.mark.parametrize("own", [True, False])
def test_symbolic_link_as_parent_is_followed_inside_the_root(target: bytes, own: bool) -> None:
    link: list[Step] = [(b"l", To(target))]
    tree = (
        merge(BASE + link, [(b"d", D), (b"l/n", b"1")]) if not own else merge(BASE, [(b"d", D), *link, (b"l/n", b"1")])
    )
    assert look(tree)[b"d/n"] == b"1"
    assert look(tree)[b"l"] == To(target)
    assert ("of this layer" if own else "of a lower layer") in texts(tree)
    assert len(tree.warnings) == 1


def test_link_to_a_missing_place_makes_it() -> None:
    assert look(merge([(b"l", To(b"no/where")), (b"l/n", b"1")])) == {
        b"l": To(b"no/where"),
        b"no": D,
        b"no/where": D,
        b"no/where/n": b"1",
    }


def test_link_replaced_by_a_directory_of_the_layer() -> None:
    tree = merge([*BASE, (b"l", To(b"d"))], [(b"l/a", b"1"), (b"l", D), (b"l/b", b"2")])
    assert {path for path in look(tree) if path.startswith((b"l", b"d/"))} == {
        b"d/a",
        b"d/sub",
        b"d/sub/y",
        b"d/x",
        b"l",
        b"l/b",
    }


def test_link_loops_end() -> None:
    with pytest.raises(OciError, match="too many symbolic links"):
        merge([(b"a", To(b"b")), (b"b", To(b"a")), (b"a/x", b"")])


def test_forty_links_are_followed() -> None:
    chain: list[Step] = [(b"d", D), (b"l0", To(b"d"))]
    chain += [(b"l%d" % n, To(b"l%d" % (n - 1))) for n in range(1, 41)]
    assert look(merge([*chain, (b"l39/x", b"1")]))[b"d/x"] == b"1"
    with pytest.raises(OciError, match="too many symbolic links"):
        merge([*chain, (b"l40/x", b"1")])


def test_dots_and_slashes() -> None:
    tree = merge([(b"/a//./b/", D), (b"./a/b/c/", b"a file for all its slash"), (b"", Dir(0o700))])
    assert look(tree)[b"a/b/c"] == b"a file for all its slash"
    assert tree.root.mode == 0o40700


@given(st.lists(st.sampled_from([b"a", b".", b"/", b"x" * 85, b"\0", b".wh.b"]), max_size=9).map(b"".join))
def test_paths_without_a_second_look_are_what_a_second_look_makes_of_them(path: bytes) -> None:
    plain = layers._PLAIN.fullmatch(path)
    if plain is None:
        assert not re.fullmatch(rb"(\./)?a+(/a+)*/?", path)
    else:
        assert normal_parts(path) == (plain[1].split(b"/"), False)


@pytest.mark.parametrize("path", [b"x" * 256, b"d/" + b"x" * 256 + b"/f", b"/".join([b"d"] * 2050), b"./\0"])
def test_paths_that_linux_does_not_allow_are_errors(path: bytes) -> None:
    with pytest.raises((OciError, LimitExceeded), match=r"longer than|NUL byte"):
        LayeredTree().layer("layer").add(path, Directory(mode=0o40755))


def test_dot_dot_stays_inside_the_root() -> None:
    tree = merge([(b"etc", D), (b"d/../../etc/x", b"1")])
    assert look(tree) == {b"etc": D, b"etc/x": b"1"}
    assert "/etc/x" in texts(tree)
    with pytest.raises(OciError, match=r'"\.\."'):
        merge([(b"etc", D), (b"d/../../etc/x", b"1")], strict=True)


@pytest.mark.parametrize("name", [b".", b"/", b"./", b"..", b"a/.."])
def test_root_must_be_a_directory(name: bytes) -> None:
    for value in (b"", To(b"x"), Hard(b"f")):
        with pytest.raises(OciError, match="the root is not a directory"):
            merge(BASE, [(name, value)])


def test_root_not_described() -> None:
    tree = merge(BASE)
    assert (tree.root.mode, tree.root.uid, tree.root.mtime_sec) == (0o40755, 0, 0)


@pytest.mark.parametrize("path", [b"a\0b", b"x" * 256, b"/".join([b"x" * 255] * 17)], ids=["nul", "name", "path"])
def test_names_that_no_file_system_has(path: bytes) -> None:
    with pytest.raises(OciError, match="layer 1"):
        merge([(path, b"")])
    with pytest.raises(OciError, match="layer 1"):
        merge([(b"h", Hard(path))])


@pytest.mark.parametrize("second", [b"a", b"./a", b"/a", b"x/../a"])
def test_duplicates(second: bytes) -> None:
    layer: list[Step] = [(b"a", b"1"), (second, b"2")]
    with pytest.raises(OciError, match=r"layer 1: /a: two entries of one name") as caught:
        merge(layer)
    assert caught.value.hint
    tree = merge(layer, allow_duplicates=True)
    assert look(tree) == {b"a": b"2"}
    assert "the last one wins" in texts(tree)


def test_duplicate_directories_are_told_only() -> None:
    tree = merge([(b"", D), (b"d", Dir(0o700)), (b"d/x", b"1"), (b"d/", Dir(0o711)), (b"./", Dir(0o700))])
    assert look(tree) == {b"d": Dir(0o711), b"d/x": b"1"}
    assert tree.root.mode == 0o40700
    assert texts(tree).count("the last one wins") == 2


def test_file_over_a_directory_of_the_same_layer_is_a_duplicate() -> None:
    layer: list[Step] = [(b"d/sub/n", b"1"), (b"d", b"2")]
    with pytest.raises(OciError, match="two entries"):
        merge(BASE, layer)
    assert look(merge(BASE, layer, allow_duplicates=True)) == {b"d": b"2", b"f": b"file"}


def test_hard_links_share_the_inode_and_count() -> None:
    tree = merge([(b"b", b"1"), (b"c", Hard(b"/b")), (b"d", D), (b"d/a", Hard(b"./c")), (b"a", Hard(b"d/a"))])
    entries = tree.root.entries
    first = entries[b"a"]
    assert isinstance(first, RegularFile)
    assert first.nlink == 4
    for name in (b"b", b"c"):
        entry = entries[name]
        assert isinstance(entry, HardLink)
        assert entry.inode is first
    assert not tree.warnings


def test_hard_link_forward() -> None:
    tree = merge([(b"a", Hard(b"b")), (b"c", Hard(b"a")), (b"b", b"1")])
    assert look(tree) == {b"a": b"1", b"b": b"1", b"c": b"1"}
    assert "later entry" in texts(tree)


def test_hard_link_to_a_lower_layer() -> None:
    tree = merge(BASE, [(b"h", Hard(b"f"))])
    entry = tree.root.entries[b"h"]
    assert isinstance(entry, HardLink)
    assert entry.inode is tree.root.entries[b"f"]
    assert "lower layer" in texts(tree)
    later = merge(BASE, [(b"h", Hard(b"f"))], [(b".wh.f", None)])
    lone = later.root.entries[b"h"]
    assert isinstance(lone, RegularFile)
    assert (lone.content, lone.nlink) == (b"file", 1)


@pytest.mark.parametrize("turn", [1, -1])
def test_hard_link_to_a_lower_file_that_the_layer_removes(turn: int) -> None:
    tree = merge(BASE, [(b"h", Hard(b"f")), (b".wh.f", None)][::turn])
    assert look(tree)[b"h"] == b"file"
    assert b"f" not in look(tree)
    assert "this layer removes" in texts(tree)
    deep = merge(BASE, [(b"h", Hard(b"d/sub/y")), (b"d/.wh.sub", None), (b"d/sub", D)][::turn])
    assert look(deep)[b"h"] == b"deep"


def test_hard_link_whose_target_is_replaced_keeps_the_old_file() -> None:
    tree = merge([(b"a", b"1"), (b"h", Hard(b"a")), (b"a", b"2")], allow_duplicates=True)
    assert look(tree) == {b"a": b"2", b"h": b"1"}
    later = merge([(b"a", b"1"), (b"h", Hard(b"a"))], [(b"a", b"2")])
    assert look(later) == {b"a": b"2", b"h": b"1"}


def test_hard_link_to_a_symbolic_link_links_the_link() -> None:
    tree = merge(BASE, [(b"l", To(b"f")), (b"h", Hard(b"l"))])
    assert look(tree)[b"h"] == To(b"f")


def test_hard_link_found_through_a_link() -> None:
    tree = merge(BASE, [(b"l", To(b"d")), (b"h", Hard(b"l/x"))])
    assert look(tree)[b"h"] == b"old"


def test_hard_linked_symbolic_link_leads_on() -> None:
    tree = merge([(b"d", D), (b"l", To(b"d")), (b"m", Hard(b"l")), (b"m/x", b"1")])
    assert look(tree)[b"d/x"] == b"1"


@pytest.mark.parametrize(
    ("link", "what"),
    [
        ((b"h", Hard(b"no")), "which does not exist"),
        ((b"h", Hard(b"no/where")), "which does not exist"),
        ((b"h", Hard(b"f/x")), "which does not exist"),
        ((b"h", Hard(b"h")), "hard link to itself"),
        ((b"f", Hard(b"./f")), "hard link to itself"),
        ((b"h", Hard(b"d")), "hard link to a directory"),
        ((b"h", Hard(b"/")), "hard link to a directory"),
    ],
)
def test_bad_hard_links(link: Step, what: str) -> None:
    with pytest.raises(OciError, match=what):
        merge(BASE, [link])


def test_devices_are_data() -> None:
    tree = LayeredTree()
    layer = tree.layer("l")
    layer.add(b"dev/whiteout", Device(mode=0o20000, rdev=0))
    layer.apply()
    parent = tree.finish().entries[b"dev"]
    assert isinstance(parent, Directory)
    assert isinstance(parent.entries[b"whiteout"], Device)


def test_strict_refuses_what_is_told_otherwise() -> None:
    with pytest.raises(OciError, match="lower layer stands for a parent"):
        merge([*BASE, (b"l", To(b"d"))], [(b"l/x", b"")], strict=True)


def test_limits() -> None:
    rules = LayerRules(max_entries=10)
    tree = LayeredTree(rules)
    layer = stage(tree.layer("l"), [(b"/".join([b"a"] * 20), b"")])
    with pytest.raises(LimitExceeded, match="l: more than 10 entries"):
        layer.apply()
    large = LayeredTree(LayerRules(max_metadata=10_000)).layer("l")
    steps: list[Step] = [(b"x" * 200, b""), (b"l", To(b"t" * 4000)), (b"h", Hard(b"n" * 200))]
    stage(large, [*steps, (b"m", To(b"t" * 4000))])
    with pytest.raises(LimitExceeded, match="l: more than 10000 bytes of paths, link targets and extended"):
        large.add(b"f", RegularFile(mode=0o100644, size=0, content=b"", xattrs={b"user.x": b"v" * 2000}))
    deep = LayeredTree()
    stage(deep.layer("1"), [(b"a/" * 2000 + b"end", D), (b"l", To(b"a/" * 1999))]).apply()
    with pytest.raises(LimitExceeded, match="nested deeper than 2048"):
        stage(deep.layer("2"), [(b"l/" + b"b/" * 100 + b"c", b"")]).apply()


def test_warnings_are_bounded() -> None:
    tree = merge([(b"x/../%d" % n, b"") for n in range(MAX_WARNINGS + 5)])
    assert len(tree.warnings) == MAX_WARNINGS
    assert tree.warnings_dropped == 5


def test_paths_are_shown_on_one_line() -> None:
    with pytest.raises(OciError) as caught:
        merge([(b"a\nb\xff\x1b/x", b""), (b"a\nb\xff\x1b/x", b"")])
    assert str(caught.value) == r"layer 1: /a\nb\xff\x1b/x: two entries of one name in a layer"


def test_settle_links_is_not_recursive() -> None:
    root = Directory(mode=0o40755)
    leaf: Leaf = RegularFile(mode=0o100644, size=0, content=b"", nlink=9)
    here = root
    for _ in range(5000):
        below = Directory(mode=0o40755)
        here.entries[b"d"] = below
        here = below
    here.entries[b"x"] = leaf
    here.entries[b"a"] = HardLink(leaf)
    settle_links(root)
    assert here.entries[b"a"] is leaf
    assert isinstance(here.entries[b"x"], HardLink)
    assert leaf.nlink == 2


_paths = st.lists(
    st.sampled_from([b"a", b"b", b"c", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.plnk", b"..", b"."]),
    min_size=1,
    max_size=4,
).map(b"/".join)
_values = (
    st.builds(To, _paths)
    | st.builds(Hard, _paths)
    | st.sampled_from([D, Dir(0o700)])
    | st.sampled_from([b"", b"1", b"2"])
)
_layers = st.lists(st.lists(st.tuples(_paths, _values), max_size=8), min_size=1, max_size=4)


@given(_layers, st.booleans(), st.booleans())
def test_any_layers_give_a_sound_tree_or_one_error(layers: list[list[Step]], allow: bool, strict: bool) -> None:
    try:
        tree = merge(*layers, allow_duplicates=allow, strict=strict)
    except (OciError, LimitExceeded):
        return
    names: dict[int, int] = {}
    primaries: set[int] = set()
    for path, name, entry in iter_entries(tree.root):
        assert not name.startswith(b".wh.")
        assert name not in {b".", b".."}
        assert (path == b"/") == (name == b"")
        if isinstance(entry, Directory):
            continue
        inode = entry.inode if isinstance(entry, HardLink) else entry
        if id(inode) not in names:
            assert inode is entry, path
            primaries.add(id(inode))
        names[id(inode)] = names.get(id(inode), 0) + 1
        if tree.linked:
            assert names[id(inode)] <= inode.nlink
    assert primaries == names.keys()


@given(st.lists(st.tuples(_paths, st.sampled_from([D, b"1"])), max_size=8), st.randoms())
def test_order_of_markers_never_matters(layer: list[Step], random: object) -> None:
    def outcome(steps: Sequence[Step]) -> object:
        try:
            return look(merge([(b"a", D), (b"a/b", D), (b"a/b/c", b"0"), (b"b", b"0")], steps, allow_duplicates=True))
        except OciError:
            return None

    # Not "a/.wh.b/..", which is a name for "a".
    plain = [step for step in layer if not step[0].rpartition(b"/")[2].startswith(b".wh.")]
    markers = [step for step in layer if step[0].rpartition(b"/")[2].startswith(b".wh.")]
    assert outcome(plain + markers) == outcome(markers + plain)


# What it costs


def chain(hops: int, turns: int) -> list[Step]:
    """Links of which each goes up and down many times before it leads to the next; the last one is called ``l``."""
    names = [b"%d" % number for number in range(hops - 1)] + [b"l"]
    steps: list[Step] = [(b"d", D), (names[0], To(b"d/../" * turns + b"d"))]
    return steps + [(name, To(b"d/../" * turns + before)) for before, name in pairwise(names)]


def test_steps_through_links_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LINK_STEPS", 90)
    monkeypatch.setattr(layers, "LINK_STEPS_PER_NAME", 2)
    # Five entries, so 100 steps: three links with 2 * 16 + 1 components each, and one more.
    tree = merge([*chain(3, 16), (b"l/x", b"")])
    assert look(tree)[b"d/x"] == b""
    with pytest.raises(LimitExceeded, match="symbolic links with more than 100 components in all, for 5 entries") as it:
        merge([*chain(3, 17), (b"l/x", b"")])
    assert it.value.where == "layer 1: /l"


@pytest.mark.parametrize("kind", ["file", "whiteout", "hard link"])
def test_hops_times_depth_times_entries_are_bounded(kind: str) -> None:
    layer: list[Step] = chain(40, 800)
    if kind == "file":
        layer += [(b"l%s/%d" % (b"/." * (number % 2), number), b"") for number in range(400)]
        layer = [
            step for pair in zip(layer, [(b"d/%d" % n, b"") for n in range(len(layer))], strict=True) for step in pair
        ]
    elif kind == "whiteout":
        layer += [(b"l/.wh.%d" % number, None) for number in range(400)]
    else:
        layer += [(b"h%d" % number, Hard(b"l/nothing%d" % number)) for number in range(400)]
    with bounded(1 << 10), pytest.raises((LimitExceeded, OciError)):
        merge(layer)


def test_deep_whiteouts_cost_by_their_length() -> None:
    deep = b"a/" * 2040
    layer: list[Step] = [(b"s", To(b"a")), (deep + b"f", b"")]
    layer += [(deep + b".wh.%d" % number, None) for number in range(200)]
    with bounded(sum(len(path) for path, _ in layer)):
        merge([(deep + b"f", b"")], layer)


def test_missing_parents_cost_by_their_number() -> None:
    layer: list[Step] = [(b"%d/" % number + b"a/" * 2000 + b"f", b"") for number in range(60)]
    names = 60 * 2002
    with bounded(names * 700):
        tree = merge(layer)
    assert tree.names == names
    assert len(tree.warnings) == MAX_WARNINGS
    assert [warning.path for warning in tree.warnings[:3]] == [b"0", b"0/a", b"0/a/a"]
    assert tree.warnings[999].path == b"0" + b"/a" * 999


def test_paths_without_links_have_a_limit() -> None:
    deep = b"/".join([b"n" * 255] * 8)
    base: list[Step] = [(deep, D), (b"l", To(deep)), (deep + b"/m", To(deep.rpartition(b"/")[0]))]
    room = 4095 - len(deep) - 1
    names = b"/".join([b"x" * 255] * 7 + [b"z" * 99])
    last = b"y" * (room - len(names) - 1)
    tree = merge([*base, (b"l/" + names + b"/" + last + b"/f", b"")])
    assert max(len(path) for path in look(tree)) == 4095 + 2
    with pytest.raises(LimitExceeded, match="without its symbolic links is longer than 4095 bytes"):
        merge([*base, (b"l/" + names + b"/" + last + b"y/f", b"")])


def test_depth_has_a_limit() -> None:
    tree = LayeredTree()
    stage(tree.layer("1"), [(b"a/" * 2000 + b"a", D), (b"l", To(b"a/" * 2000 + b"a"))]).apply()
    stage(tree.layer("2"), [(b"l/" + b"b/" * 47 + b"f", b"")]).apply()
    with pytest.raises(LimitExceeded, match="nested deeper than 2048"):
        stage(tree.layer("3"), [(b"l/" + b"b/" * 47 + b"c/f", b"")]).apply()


@pytest.mark.parametrize(
    ("enough", "too_few"),
    [
        (LayerRules(max_entries=5), LayerRules(max_entries=4)),
        (LayerRules(max_metadata=11), LayerRules(max_metadata=10)),
    ],
)
def test_names_and_metadata_have_limits(enough: LayerRules, too_few: LayerRules) -> None:
    # With the missing parent there are five names; paths of 1 + 3 + 1 + 3 bytes, a target and a name of one.
    steps: list[Step] = [(b"a", D), (b"a/b", b""), (b"c", To(b"tt")), (b"m/f", b"")]
    stage(LayeredTree(enough).layer("1"), steps).apply()
    with pytest.raises(LimitExceeded, match="more than"):
        stage(LayeredTree(too_few).layer("1"), steps).apply()
