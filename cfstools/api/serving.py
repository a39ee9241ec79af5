"""How the processes behind a mount live: what a caller says about them, whether the mount needs any or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from cfstools.values import Value

if TYPE_CHECKING:
    from cfstools.api.mount import MountReport
    from cfstools.mount.daemon.log import Log
    from cfstools.mount.daemon.service import Service
    from cfstools.mount.daemon.start import Started


class Serving(Value):
    """How the processes behind a mount live.

    They are in the background, unless ``foreground`` keeps the caller until the mount is gone. What they say goes to
    the file ``log``; without one to the system's log, in the foreground to standard error. With ``allow_other``
    everybody may look into a mount that is served, and modes and owners count. ``helper`` is the path of fusermount3,
    for callers who may not mount. ``on_ready`` is called once all is mounted.
    """

    foreground: bool = False
    log: bytes | None = None
    allow_other: bool = False
    helper: bytes | None = None
    on_ready: Callable[[MountReport], None] = lambda _report: None

    def start(self, service: Service) -> Started:
        """Start the processes, and wait until they answer. Raises what they raise before."""
        with ExitStack() as stack:
            started = stack.enter_context(self.begin(service))
            started.await_answer()
            stack.pop_all()
            return started

    def begin(self, service: Service) -> Started:
        """Start the processes, which have yet to answer."""
        from cfstools.mount.daemon.start import start_in_background, start_in_foreground

        with self._open_log() as log:
            return start_in_foreground(service, log) if self.foreground else start_in_background(service, log)

    def _open_log(self) -> Log:
        from cfstools.mount.daemon.log import log_to_descriptor, log_to_file, log_to_system

        if self.log is not None:
            return log_to_file(self.log)
        return log_to_descriptor(2) if self.foreground else log_to_system()
