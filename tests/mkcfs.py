"""Runs ``mkcfs`` as a user would: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.reference import Completed

COMMAND = [sys.executable, "-m", "cfstools.cli"]
NOBODY = 65534

# The interpreter itself may be out of the reach of ordinary users: start it and load everything first, then give up
# all rights.
AS_NOBODY = f"""
import hashlib, importlib, json, locale, os, pkgutil, sys, traceback
import cfstools.cli.app
for module in pkgutil.walk_packages(cfstools.__path__, "cfstools."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(cfstools.cli.app.run())
"""


def mkcfs(*words: str | bytes | Path, stdin: bytes = b"", check: bool = True) -> Completed:
    """Run ``mkcfs``; with *check* any exit code but 0 fails the test with what it said."""
    command = [os.fsencode(word) for word in (*COMMAND, *words)]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if check:
        assert done.returncode == 0, f"{words}: exit code {done.returncode}: {done.stderr.decode(errors='replace')}"
    return Completed(done.returncode, done.stdout, done.stderr)


def unmeasured() -> dict[str, str]:
    """Return the environment for a child that cannot write coverage data, because it runs as another user."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
