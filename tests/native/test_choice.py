"""The native room: choosing an implementation, and what the functions promise in each of them."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from cfstools import native
from cfstools.errors import Unsupported, UsageError
from cfstools.native import _pure


def implementations() -> list[ModuleType]:
    try:
        return [_pure, importlib.import_module("cfstools.native._native")]
    except ImportError:
        return [_pure]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = native.IMPLEMENTATION
    module = sys.modules.get("cfstools.native._native")
    yield
    # A test may have put something else in the place of the module.
    sys.modules.pop("cfstools.native._native", None)
    if module is not None:
        sys.modules["cfstools.native._native"] = module
    native.use(before)


@pytest.mark.parametrize("module", implementations())
def test_hash_blocks(module: ModuleType) -> None:
    data = bytes(range(256)) * 40
    salt = b"s".ljust(64, b"\0")
    for name in ("sha256", "sha512"):
        new = getattr(hashlib, name)
        expected = b"".join(new(data[at : at + 4096].ljust(4096, b"\0")).digest() for at in range(0, len(data), 4096))
        assert module.hash_blocks(name, data, 4096, b"") == expected
        assert module.hash_blocks(name, memoryview(data), 16384, salt) == new(salt + data.ljust(16384, b"\0")).digest()
        assert module.hash_blocks(name, b"", 4096, b"") == b""
        assert module.hash_blocks(name, b"x", 1 << 18, b"") == new(b"x".ljust(1 << 18, b"\0")).digest()
    with pytest.raises(BufferError):
        module.hash_blocks("sha256", memoryview(data)[::2], 4096, b"")


def test_pure_can_be_chosen() -> None:
    native.use("pure")
    assert native.IMPLEMENTATION == "pure"
    assert native.hash_blocks is _pure.hash_blocks


def test_native_is_taken_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = ModuleType("cfstools.native._native")
    for name in dir(_pure):
        if not name.startswith("__"):
            setattr(twin, name, getattr(_pure, name))
    for name in ("encode_tree", "parse_lines", "read_tree", "print_entries", "needed_objects"):
        setattr(twin, name, native.decline)
    monkeypatch.setitem(sys.modules, "cfstools.native._native", twin)
    for choice in ("native", "auto"):
        native.use("pure")
        native.use(choice)
        assert native.IMPLEMENTATION == "native"
    monkeypatch.setitem(sys.modules, "cfstools.native._native", None)
    native.use("auto")
    assert native.IMPLEMENTATION == "pure"
    with pytest.raises(Unsupported, match="the native functions are not available"):
        native.use("native")


def test_an_extension_built_from_older_sources_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cfstools.native._native", ModuleType("cfstools.native._native"))
    native.use("auto")
    assert native.IMPLEMENTATION == "pure"
    with pytest.raises(Unsupported, match="not available"):
        native.use("native")


@pytest.mark.usefixtures("pure")
def test_what_only_c_has_declines() -> None:
    for name in native._ONLY_NATIVE:
        function = getattr(native, name)
        assert function is native.decline
        assert function(1, 2, 3) is None
    native.use("auto")
    if native.IMPLEMENTATION == "native":
        assert not any(getattr(native, name) is native.decline for name in native._ONLY_NATIVE)


def test_unknown_choice() -> None:
    with pytest.raises(UsageError, match="unknown implementation 'fast'"):
        native.use("fast")
