"""Names that try to get at a terminal, and runs of the command whose output is checked for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from cfstools.cli import app
from cfstools.cli.output import report_defect
from cfstools.text import is_printable
from tests.text.test_text import HOSTILE

FORGED = "FORGED"
# Every byte a file name can have, and what Unicode has, with a line to be forged behind whatever may end one.
BYTES = b"".join(b"%c" % value for value in range(1, 256) if value not in b"/")
UNICODE = "".join(char for char in HOSTILE if char not in "\0 " and not char.isascii())
ENDS = "".join(f"{end}{FORGED}" for end in ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"))
TERMINAL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp"
CHARACTERS = UNICODE.encode("utf-8", "surrogatepass")
NAMES = [BYTES, ((ENDS + TERMINAL + "\\x41").encode() + CHARACTERS)[:250]]
TEXT = UNICODE.replace("\ud800", "").replace("\udfff", "") + ENDS + TERMINAL


def check_output(text: bytes, encoding: str = "utf-8") -> None:
    """Fail for what disturbs a terminal and for a line that begins as no line of ours does."""
    for line in text.decode(encoding).split("\n"):
        assert all(char == "\t" or is_printable(char) for char in line), ascii(line)  # listings have tabs
        assert not line.lstrip().startswith(FORGED), ascii(line)


class Ran:
    """One run of the command in a process forked off, which has all modules already."""

    def __init__(self, words: tuple[str | bytes | Path, ...], prepare: Callable[[], None] = lambda: None) -> None:
        pipes = [os.pipe(), os.pipe()]
        child = os.fork()
        if not child:
            code = 99
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number, (_, write) in enumerate(pipes, 1):
                    os.dup2(write, number)
                os.closerange(3, 64)
                prepare()
                code = _run([os.fsdecode(word) for word in words])
            finally:
                os._exit(code)
        for _, write in pipes:
            os.close(write)
        outputs = [b"", b""]
        readers = [os.fdopen(read, "rb") for read, _ in pipes]
        for number, reader in enumerate(readers):
            with reader:
                outputs[number] = reader.read()
        self.stdout, self.stderr = outputs
        self.code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(words: list[str]) -> int:
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        setattr(sys, name, open(number, mode))  # noqa: SIM115
    try:
        code = app.run(words)
    except Exception as error:  # noqa: BLE001
        report_defect(type(error), error, None)
        code = 98
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(*words: str | bytes | Path, codes: tuple[int, ...] = (0, 1, 2, 3)) -> Ran:
    """Run the command and check all it says."""
    done = Ran(words)
    check_output(done.stdout)
    check_output(done.stderr)
    assert done.code in codes, (words, done.code, done.stderr)
    return done
