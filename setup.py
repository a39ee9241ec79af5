"""The optional native extension; everything else about the package stands in pyproject.toml.

Two environment variables decide what happens (both unset: the extension is built if a compiler is there and
left out silently if not):

``CFSTOOLS_NATIVE=require``  a failed native build fails the installation (used by CI and for releases)
``CFSTOOLS_NATIVE=off``      the extension is not tried at all
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(str(path) for path in Path("cfstools/native").glob("*.c"))
HEADERS = sorted(str(path) for path in Path("cfstools/native").glob("*.h"))
MODE = os.environ.get("CFSTOOLS_NATIVE", "auto")
if MODE not in {"auto", "require", "off"}:
    raise SystemExit(f"CFSTOOLS_NATIVE={MODE}: expected auto, require or off")

extensions = []
if SOURCES and MODE != "off":
    extensions.append(
        Extension(
            "cfstools.native._native",
            SOURCES,
            depends=HEADERS,
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O2", "-g0", "-std=c11", "-Wall", "-Wextra"],
            py_limited_api=True,
            optional=MODE == "auto",
        )
    )

setup(ext_modules=extensions, options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {})
