"""Calls of a function in namespaces of its own, as the caller's root there unless ids are given."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from cfstools.linux import namespaces
from cfstools.linux.namespaces import IdMap


def inside(work: Callable[[], Any], ids: IdMap | None = None) -> Any:
    """Return what *work* returns in new namespaces; what it raises there is raised here."""
    reader, writer = os.pipe()

    def tell() -> int:
        try:
            said = (True, work())
        except BaseException as error:  # noqa: BLE001 - raised again outside
            error.add_note("".join(traceback.format_exception(error)))
            said = (False, error)
        with open(writer, "wb") as file:
            pickle.dump(said, file)
        return 0

    pid = namespaces.spawn(namespaces.one_id((0, 0)) if ids is None else ids, tell)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert data, f"ended with {code}"
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value
