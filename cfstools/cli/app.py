"""The table of verbs, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Sequence

from cfstools import __version__
from cfstools.cli.output import open_streams, print_lines, tell, tell_traceback
from cfstools.errors import CfsError, Interrupted

TYPE_CHECKING = False  # typing itself takes longer to load than the rest of this module
if TYPE_CHECKING:
    from types import FrameType

_PIPE_CLOSED = 1
_LIBRARIES = ("click", "cryptography", "isal", "tqdm", "zstandard")
_METADATA = (".dist-info", ".egg-info")

# Verb to the module that holds it and its one-line help, so that listing verbs imports none of them.
VERBS: dict[str, tuple[str, str]] = {
    "build": ("build", "Turn a directory, a container image or a dump into a composefs image."),
    "inspect": ("inspect", "Say what an image is: versions, digest, counts, sizes."),
    "verify": ("verify", "Check an image: signature, structure, and every object it needs."),
    "sign": ("sign", "Sign an image, or remove its signature."),
    "keygen": ("keygen", "Make a key to sign images with."),
    "ls": ("listing", "List the names in an image."),
    "dump": ("listing", "Print an image as composefs-dump(5) text."),
    "objects": ("listing", "List the objects images need, or those missing from stores."),
    "digest": ("digest", "Print fs-verity digests of files."),
    "extract": ("extract", "Extract an image to a directory."),
    "cat": ("extract", "Print the contents of a file in an image."),
    "push": ("push", "Push an image with its objects into a registry or to files elsewhere."),
    "pull": ("pull", "Pull an image, and of its objects those that are missing."),
    "plan": ("plan", "Say what an update from one image to another would fetch."),
    "mount": ("mount", "Mount an image with the kernel, as root."),
    "run": ("run", "Run a command that sees an image, without root."),
    "umount": ("mount", "Unmount an image."),
    "diff": ("diff", "Say what changed from one image, directory or dump to another."),
    "store": ("store", "Care for an object store: check it, collect garbage, count, push its objects."),
    "completion": ("completion", "Print the shell completion script."),
}


IGNORED_AT_START: set[int] = set()
"""Signals that our caller ignores, as nohup does: they stop this command, but a command that it runs ignores them."""


class _Stopped(BaseException):
    """A signal asked us to stop; unwinding removes temporaries. Not KeyboardInterrupt, which click answers itself."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``mkcfs`` and return its exit code; nothing raises out of here but a defect under ``--debug``."""
    called = sys.argv[0] if arguments is None else "mkcfs"
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    open_streams()
    # Trees are millions of small objects without cycles: the cyclic collector would go through them over and over.
    gc.disable()
    try:
        _choose_loops()
        if os.path.basename(called) == "mount.mkcfs":
            from cfstools.cli.mount_helper import arguments_of

            arguments = arguments_of(arguments)
        code = _call(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody left to tell. Keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except (CfsError, _Stopped, MemoryError, OSError) as error:
        return _report(error, debug=_wants_debug(arguments))
    return code


def _call(arguments: Sequence[str]) -> int:
    """Do what the words say. What parses them is loaded here, because ``--version`` alone is nothing to parse."""
    if list(arguments) == ["--version"]:
        print_versions()
        return 0
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.signal(number, _stop) is signal.SIG_IGN:
            IGNORED_AT_START.add(number)
    from cfstools.cli.standins import load_click

    load_click()
    from cfstools.cli.verbs import call

    return call(arguments)


def print_versions() -> None:
    """Print our version and the implementation of the hot loops, then the libraries in use."""
    from cfstools import native

    installed = _installed()
    python = ".".join(map(str, sys.version_info[:3]))
    libraries = ", ".join(f"{name} {installed.get(name, 'not installed')}" for name in _LIBRARIES)
    print_lines([f"mkcfs {__version__} ({native.IMPLEMENTATION} loops)", f"Python {python}, {libraries}"])


def _installed() -> dict[str, str]:
    """Versions by the names of metadata directories: importlib.metadata would take most of the start-up time."""
    found: dict[str, str] = {}
    for place in sys.path:
        try:
            names = os.listdir(place)
        except OSError:
            continue
        for name in names:
            library, _, rest = name.partition("-")
            if name.lower().endswith(_METADATA) and library.lower() in _LIBRARIES:
                version = rest[: -len(_METADATA[0])] if rest.endswith(_METADATA[0]) else rest[: -len(_METADATA[1])]
                found.setdefault(library.lower(), version.partition("-")[0])
    return found


def _choose_loops() -> None:
    """Take the hot loops that ``MKCFS_NATIVE`` names, for comparisons. Raises UsageError and Unsupported."""
    wanted = os.environ.get("MKCFS_NATIVE")
    if wanted:
        from cfstools import native

        native.use(wanted)


def _wants_debug(arguments: Sequence[str]) -> bool:
    """Whether ``--debug`` was given; looked for in the arguments because an error may come before click parsed it."""
    return "--debug" in itertools.takewhile(lambda word: word != "--", arguments)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _report(error: BaseException, *, debug: bool) -> int:
    if debug:
        tell_traceback(error)
    match error:
        case CfsError():
            shown: CfsError = error
        case MemoryError():
            shown = CfsError("out of memory")
        case OSError():
            # Output streams (a full disk behind a redirection); everything else is translated where it happens.
            shown = CfsError(f"cannot write output: {error.strerror}")
        case _:
            shown = Interrupted("interrupted")
    from cfstools.cli.hints import link_hint, spelled

    shown.what = spelled(shown.what)
    tell(f"mkcfs: {shown}")
    for hint in (shown.hint or link_hint(shown), *getattr(error, "__notes__", ())):
        if hint:
            tell(f"hint: {spelled(hint)}")
    return shown.exit_code
