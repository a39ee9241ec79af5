"""The text of ``mkcfs --version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from cfstools import native

_LIBRARIES = ("click", "cryptography", "isal", "tqdm", "zstandard")


def version_text(own: str) -> str:
    """Our version, then the implementation of the hot loops and the libraries in use."""
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    return f"mkcfs {own} ({native.IMPLEMENTATION} loops)\nPython {platform.python_version()}, {libraries}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
