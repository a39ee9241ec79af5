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
# The native code reads hostile input: these make a mistake in it harder to exploit and cost nothing measurable. They
# come behind the CFLAGS of the environment, hence -U: some compilers define the macro themselves.
HARDENING = ["-fstack-protector-strong", "-fPIC", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
READ_ONLY_AFTER_START = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]
if MODE not in {"auto", "require", "off"}:
    raise SystemExit(f"CFSTOOLS_NATIVE={MODE}: expected auto, require or off")

extensions = []
if SOURCES and MODE != "off":
    extensions.append(
        Extension(
            "cfstools.native._native",
            SOURCES,
            depends=HEADERS,
            define_macros=[("_GNU_SOURCE", None), ("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O2", "-g0", "-std=c11", "-Wall", "-Wextra", *HARDENING],
            extra_link_args=READ_ONLY_AFTER_START,
            py_limited_api=True,
            optional=MODE == "auto",
        )
    )

setup(ext_modules=extensions, options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {})
