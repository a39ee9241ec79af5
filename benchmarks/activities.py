"""What is done with a mounted tree, each thing timed. Run as a program where the mount can be seen, by whom sees it.

``activities.py BEGUN SERVERS DIR ACTIVITY…`` prints the seconds of each activity as JSON, in the order given: how long
it took, and how long processors worked for it, in the programs and in the processes SERVERS (numbers, joined by
commas). BEGUN is what the monotonic clock said when the mount was begun. It imports next to nothing, since it is part
of what is measured.
"""

import json
import os
import random
import resource
import sys
import time

_EXECS = 200
_READS = 8000
_BLOCKS = 50
_FROM_THE_BEGINNING = {"first", "first-block"}
_LOADER = ["usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "--library-path", "usr/lib/x86_64-linux-gnu"]
_TRUE = [*_LOADER, "usr/bin/true"]
# As a container that starts does: the lists of packages, interpreters, and many small files. About 120 objects.
_WORK = """
dpkg -l; apt-get --version; perl -e 'use POSIX; use Socket; print floor(1.5)'
for name in /usr/share/doc/[a-k]*/copyright; do read -r line <$name; done
getent passwd; bash -c 'ulimit -a'; tar --version; sed --version; find --version; grep -V
"""


def _shell(script: str) -> list[str]:
    return ["sh", "-c", script]


COMMANDS = {
    "find": ["find", ".", "-printf", "%s %p\n"],
    # Into a pipe: tar does not read what it would write to /dev/null.
    "tar": _shell("tar --sort=none --numeric-owner -cf - . | cat"),
    "grep": ["grep", "-r", "-s", "-D", "skip", "-l", "a text that is in no file of these", "."],
    "dd": ["dd", "if=large", "of=/dev/null", "bs=1M", "count=1024"],
    "work": ["/usr/sbin/chroot", ".", "sh", "-c", _WORK],
}


def _spawn(command: list[str]) -> None:
    """Run a command to its end; its outputs are thrown away, and so is its status: grep finds nothing."""
    quiet = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1, 2)]
    _, status = os.waitpid(os.posix_spawnp(command[0], command, os.environ, file_actions=quiet), 0)
    if os.waitstatus_to_exitcode(status) not in {0, 1}:
        raise SystemExit(f"{command[0]} failed with {status}")


def _read_at_random(count: int) -> None:
    chance = random.Random(count)
    with open("large", "rb", buffering=0) as file:
        blocks = os.fstat(file.fileno()).st_size // 4096
        for _ in range(count):
            os.pread(file.fileno(), 4096, chance.randrange(blocks) * 4096)


def _act(name: str) -> None:
    if name == "first":
        _spawn(_TRUE)
    elif name == "execs":
        for _ in range(_EXECS):
            _spawn(_TRUE)
    elif name == "random":
        _read_at_random(_READS)
    elif name == "blocks":
        _read_at_random(_BLOCKS)
    elif name == "first-block":
        with open("large", "rb", buffering=0) as file:
            file.read(4096)
    else:
        _spawn(COMMANDS[name])


def _worked(servers: list[str]) -> float:
    """Seconds that processors have worked for this process, its children and the servers."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    for server in servers:
        for thread in os.listdir(f"/proc/{server}/task"):
            with open(f"/proc/{server}/task/{thread}/schedstat", "rb") as file:
                total += int(file.read().split()[0]) / 1e9
    return total


def main(begun: str, served_by: str, directory: str, *names: str) -> None:
    """Print what each activity took; a first program and a first block count from the beginning."""
    servers = served_by.split(",") if served_by else []
    os.chdir(directory)
    seconds = []
    for name in names:
        start = float(begun) if name in _FROM_THE_BEGINNING else time.monotonic()
        worked = _worked(servers)
        _act(name)
        seconds.append((time.monotonic() - start, _worked(servers) - worked))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
