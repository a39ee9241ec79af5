"""The command ``mkcfs``: the only room that reads the environment, prints, prompts and exits."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Run ``mkcfs`` with the process' arguments and exit with its documented code."""
    from cfstools.cli.app import run
    from cfstools.cli.output import report_defect
    from cfstools.lifetime import free_at_exit

    sys.excepthook = report_defect
    free_at_exit()
    code = run()
    # What was printed before an error. That it cannot be written was said, or there is a code that says more.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    # What is left is to give back memory, object by object, which the kernel does at once.
    os._exit(code)
