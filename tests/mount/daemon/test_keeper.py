"""A keeper and its servers, over a pipe in place of /dev/fuse: what is written is served, its end is the umount."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cfstools.errors import CfsError, Interrupted, StoreError, Unsupported
from cfstools.mount.daemon.log import Log, log_to_file
from cfstools.mount.daemon.service import Serve, Service, Turn
from cfstools.mount.daemon.start import Started, start_in_background, start_in_foreground
from tests.processes import alive, late, server_of, until


class Place:
    """A pipe as device. Servers append what they do to a file; a request is a byte."""

    def __init__(self, path: Path) -> None:
        self.device, self.kernel = os.pipe2(os.O_CLOEXEC)
        self.served = -1
        self.done = path / "done"
        self.log_path = path / "log"
        self.detached: list[int] = []
        self.fail: CfsError | None = None

    def service(self) -> Service:
        self.served = os.dup(self.device)  # whoever starts the service closes it
        return Service(self.served, self.prepare, self.detach)

    def detach(self, number: int) -> None:
        self.note(f"detach {number}")

    @contextmanager
    def prepare(self, log: Log) -> Iterator[Serve]:
        if self.fail is not None:
            raise self.fail
        yield self.serve

    def serve(self, turn: Turn) -> None:
        turn.watch(lambda: "counters")
        length = 1
        try:
            self.note("resume" if turn.resume else "start")
            turn.ready()
            while request := os.read(self.served, length):
                match request:
                    case b"u":
                        length = late(signal.SIGUSR1)
                    case b"t":
                        length = late(signal.SIGTERM)
                    case b"k":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case b"e":
                        raise StoreError("the store is gone")
                    case b"x":
                        raise ValueError("a defect")
                    case _:
                        self.note(f"served {request.decode()} by {os.getpid()} of {os.getppid()}")
        finally:
            self.note("published")

    def note(self, line: str) -> None:
        with self.done.open("a", encoding="ascii") as file:
            file.write(f"{line}\n")

    def notes(self) -> list[str]:
        return [line.split(" by ")[0] for line in self.done.read_text(encoding="ascii").splitlines()]

    def ask(self, request: bytes) -> None:
        os.write(self.kernel, request)

    def umount(self) -> None:
        """Close the kernel's end."""
        if self.kernel >= 0:
            os.close(self.kernel)
            self.kernel = -1


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.umount()
    os.close(place.device)


@contextmanager
def background(place: Place) -> Iterator[Started]:
    """A keeper in the background; at the end the kernel's side closes, and the keeper has to end."""
    with log_to_file(bytes(place.log_path)) as log, start_in_background(place.service(), log) as started:
        started.await_answer()
        pid = started.pid
        try:
            yield started
        finally:
            place.umount()
            until(lambda: not alive(pid))


def test_it_ends_with_the_file_system(place: Place) -> None:
    with background(place) as started:
        assert started.pid not in (os.getpid(), os.getppid())
        assert os.getsid(started.pid) != os.getsid(0)
        assert Path(f"/proc/{started.pid}/comm").read_text(encoding="ascii") == "mkcfs-keeper\n"
        place.ask(b"a")
        until(lambda: "served a" in place.notes())
        assert started.keep() == 0
    assert place.notes() == ["start", "served a", "published"]
    assert place.log_path.read_text(encoding="utf-8") == ""


def test_it_holds_nothing_of_the_caller(place: Place, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours, background(place) as started:
        os.set_inheritable(ours.fileno(), True)
        for pid, most in ((started.pid, 2), (server_of(started.pid), 3)):
            links = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
            pipes = {link for link in links if link.startswith("pipe:")}
            assert links - pipes == {"/dev/null", str(place.log_path)}
            # The device, what says where the mount is, and in the server what tells of signals. The pipe of readiness
            # is closed.
            assert os.readlink(f"/proc/self/fd/{place.device}") in pipes
            assert len(pipes) <= most
            assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_server_that_is_killed_is_started_again(place: Place) -> None:
    with background(place) as started:
        first = server_of(started.pid)
        place.ask(b"aka")
        until(lambda: place.notes().count("served a") == 2)
        assert server_of(started.pid) != first
    assert place.notes() == ["start", "served a", "resume", "served a", "published"]
    assert "the server ended by signal 9: started again in 0.1 s" in place.log_path.read_text(encoding="utf-8")


def test_a_defect_is_logged_and_the_server_started_again(place: Place) -> None:
    with background(place):
        place.ask(b"xa")
        until(lambda: "served a" in place.notes())
    log = place.log_path.read_text(encoding="utf-8")
    assert "this is a defect of mkcfs: ValueError: a defect" in log
    assert "the server ended with code 70: started again" in log


def test_too_many_ends_give_it_up(place: Place) -> None:
    with background(place) as started:
        started.placed(42)
        place.ask(b"k" * 6)
        until(lambda: not alive(started.pid))
    assert place.notes() == ["start", *["resume"] * 5, "detach 42"]
    assert "too often in 60 seconds: the mount is given up" in place.log_path.read_text(encoding="utf-8")


def test_an_error_is_not_tried_again(place: Place) -> None:
    with background(place) as started:
        started.placed(7)
        place.ask(b"e")
        until(lambda: not alive(started.pid))
    assert place.notes() == ["start", "published", "detach 7"]
    assert "the store is gone" in place.log_path.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_takes_the_mount_off(place: Place, number: signal.Signals) -> None:
    with background(place) as started:
        started.placed(9)
        os.kill(started.pid, number)
        until(lambda: "detach 9" in place.notes())
        # Files are still open: the server goes on, until the last one is closed or somebody insists.
        place.ask(b"a")
        until(lambda: "served a" in place.notes())
        os.kill(started.pid, number)
        until(lambda: not alive(started.pid))
    assert place.notes() == ["start", "detach 9", "served a", "published"]


def test_a_signal_before_there_is_a_mount_ends_it(place: Place) -> None:
    with background(place) as started:
        os.kill(started.pid, signal.SIGTERM)
        until(lambda: not alive(started.pid))
    assert place.notes() == ["start", "published"]


def test_counters_are_said(place: Place) -> None:
    with background(place) as started:
        os.kill(started.pid, signal.SIGUSR1)
        until(lambda: "counters" in place.log_path.read_text(encoding="utf-8"))


def test_counters_are_said_by_a_server_that_is_about_to_wait(place: Place) -> None:
    with background(place):
        place.ask(b"u")
        until(lambda: "counters" in place.log_path.read_text(encoding="utf-8"))


def test_a_server_that_is_about_to_wait_can_be_ended(place: Place) -> None:
    with background(place):
        place.ask(b"t")
        until(lambda: "the server ended with code 2" in place.log_path.read_text(encoding="utf-8"))


def test_counters_are_said_once_there_is_a_server_again(place: Place) -> None:
    with background(place) as started:
        place.ask(b"kkkk")
        until(lambda: "started again in 0.8 s" in place.log_path.read_text(encoding="utf-8"))
        os.kill(started.pid, signal.SIGUSR1)
        until(lambda: "counters" in place.log_path.read_text(encoding="utf-8"))


def test_the_server_survives_its_keeper(place: Place) -> None:
    with background(place) as started:
        server = server_of(started.pid)
        assert server is not None
        os.kill(started.pid, signal.SIGKILL)
        until(lambda: not alive(started.pid))
        place.ask(b"a")
        until(lambda: "served a" in place.notes())
    until(lambda: not alive(server))
    assert place.notes()[-1] == "published"


@pytest.mark.parametrize("start", [start_in_background, start_in_foreground])
def test_what_fails_at_the_start_is_raised(place: Place, start: Callable[[Service, Log], Started]) -> None:
    place.fail = Unsupported("not here", subject="x", hint="y")
    with (
        log_to_file(bytes(place.log_path)) as log,
        pytest.raises(Unsupported, match="x: not here"),
        start(place.service(), log) as started,
    ):
        started.await_answer()
    assert not place.done.exists()


@pytest.mark.parametrize("start", [start_in_background, start_in_foreground])
@pytest.mark.parametrize(("how", "text"), [("error", "no way"), ("defect", "a defect of mkcfs: OSError"), ("kill", "")])
def test_a_server_that_never_answers(
    place: Place, start: Callable[[Service, Log], Started], how: str, text: str
) -> None:
    def serve(turn: Turn) -> None:
        if turn.resume:  # of a keeper in the background, to which a killed server is like any other
            assert os.read(place.served, 1) == b""
            return
        match how:
            case "error":
                raise Unsupported("no way")
            case "defect":
                raise OSError("odd")
            case _:
                os.kill(os.getpid(), signal.SIGKILL)

    place.serve = serve  # type: ignore[method-assign]
    kind = Unsupported if how == "error" else CfsError
    with (
        log_to_file(bytes(place.log_path)) as log,
        pytest.raises(kind, match=text or "ended before it was ready"),
        start(place.service(), log) as started,
    ):
        started.await_answer()


def in_foreground(place: Place, act: Callable[[Started], None]) -> tuple[int, list[str]]:
    """Run a keeper in the foreground of a child; its exit code, and what was noted."""
    child = os.fork()
    if not child:
        code = 99
        with suppress(BaseException):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with log_to_file(bytes(place.log_path)) as log, start_in_foreground(place.service(), log) as started:
                started.await_answer()
                started.placed(5)
                act(started)
                try:
                    code = started.keep()
                except Interrupted as error:
                    code = error.exit_code
        os._exit(code)
    place.umount()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), place.notes()


def test_the_foreground_stays_until_the_end(place: Place) -> None:
    def act(started: Started) -> None:
        assert started.pid == os.getpid()
        place.ask(b"a")
        place.umount()

    assert in_foreground(place, act) == (0, ["start", "served a", "published"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_signals_in_the_foreground(place: Place, number: signal.Signals, code: int) -> None:
    def act(started: Started) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the same signal counts once until it is answered

        def again() -> None:
            until(lambda: "detach 5" in place.notes())
            os.kill(os.getppid(), number)

        if not os.fork():
            with suppress(BaseException):
                again()
            os._exit(0)

    assert in_foreground(place, act) == (code, ["start", "detach 5", "published"])


def test_an_unfinished_mount_ends_in_the_foreground(place: Place) -> None:
    with log_to_file(bytes(place.log_path)) as log, start_in_foreground(place.service(), log) as started:
        started.await_answer()
        server = server_of(os.getpid())
        assert server is not None
        assert alive(server)
        assert started.pid == os.getpid()
    assert not Path(f"/proc/{server}").exists()
    assert place.notes() == ["start", "published"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
