"""Starts the commands that are measured, in a small process of its own.

The largest memory of a process counts from that of the process that started it. Run as a program, which imports next to
nothing: it reads commands with their environments and writes what each took.
"""

import marshal
import os
import sys
import time


def measure(command: list[bytes], environment: dict[bytes, bytes]) -> tuple[int, float, float, int, int]:
    """Run a command with its output thrown away.

    Returns its status, the seconds it took, those of the CPU, its memory at the peak, and blocks it had written.
    """
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, environment, file_actions=quiet)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    return status, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, usage.ru_oublock


def main() -> None:
    """Measure what comes on standard input until that ends."""
    while True:
        try:
            request = marshal.load(sys.stdin.buffer)
        except EOFError:
            return
        marshal.dump(measure(*request), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
