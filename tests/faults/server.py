"""Runs ``mkcfs`` over and over, each time in a fork of this process, with the preloaded faults armed.

Reads one JSON request a line, ``{"words", "place", "nth", "errno", "seconds"}``, and answers with one line.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from typing import Any

import cfstools
from cfstools.cli import main

SHIM = ctypes.CDLL(None)
SHIM.fault_state.restype = ctypes.POINTER(ctypes.c_long)
SHIM.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]


def child(request: dict[str, Any], out: int) -> None:
    """Be ``mkcfs``; never returns."""
    code = 99
    try:
        os.chdir(request["place"])
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["mkcfs", *request["words"]]
        SHIM.fault_arm(os.fsencode(request["place"]), request["nth"], request["errno"])
        main()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    out = os.memfd_create("said")
    state = SHIM.fault_state()
    state[0] = state[1] = state[2] = 0
    pid = os.fork()
    if pid == 0:
        child(request, out)
    if request["seconds"] is not None:
        time.sleep(request["seconds"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    said = os.pread(out, 1 << 20, 0).decode(errors="replace")
    os.close(out)
    name = ctypes.string_at(ctypes.addressof(state.contents) + 2 * ctypes.sizeof(ctypes.c_long), 64)
    call = name.partition(b"\0")[0].decode()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": said,
        "calls": state[0],
        "fired": bool(state[1]),
        "call": call,
    }


def serve() -> None:
    # All that a command would import is there before the first fork.
    for module in pkgutil.walk_packages(cfstools.__path__, "cfstools."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
