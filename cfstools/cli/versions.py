"""The text of ``mkcfs --version``."""

from __future__ import annotations

import os
import re
import sys

from cfstools import native

_LIBRARIES = ("click", "cryptography", "isal", "tqdm", "zstandard")


def version_text(own: str) -> str:
    """Our version, then the implementation of the hot loops and the libraries in use."""
    python = ".".join(map(str, sys.version_info[:3]))
    installed = _installed()
    libraries = ", ".join(f"{name} {installed.get(name, 'not installed')}" for name in _LIBRARIES)
    return f"mkcfs {own} ({native.IMPLEMENTATION} loops)\nPython {python}, {libraries}"


def _installed() -> dict[str, str]:
    """Versions by the names of metadata directories: importlib.metadata would take most of the start-up time."""
    wanted = re.compile(rf"({'|'.join(_LIBRARIES)})-([^-]+)(?:-.*)?\.(?:dist|egg)-info", re.IGNORECASE)
    found: dict[str, str] = {}
    for place in sys.path:
        try:
            names = os.listdir(place)
        except OSError:
            continue
        for name in names:
            if match := wanted.fullmatch(name):
                found.setdefault(match[1].lower(), match[2])
    return found
