"""Stages: opened, advanced from any thread, and finished however the work ends."""

from __future__ import annotations

import pytest

from cfstools.progress import SILENT, Progress, Stage, running_stage


class Recorder:
    """Progress that remembers every call, with the name of its stage."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def stage(self, name: str, total: int | None, unit: str, /) -> Stage:
        self.calls.append(("stage", name, total, unit))
        return RecordedStage(name, self.calls)


class RecordedStage:
    def __init__(self, name: str, calls: list[tuple[object, ...]]) -> None:
        self._name = name
        self._calls = calls

    def advance(self, amount: int, /) -> None:
        self._calls.append(("advance", self._name, amount))

    def finish(self) -> None:
        self._calls.append(("finish", self._name))


def work(progress: Progress) -> None:
    with running_stage(progress, "outer", 2, "file") as outer, running_stage(progress, "inner", None, "B") as inner:
        inner.advance(1)
        outer.advance(2)
        inner.advance(3)


def test_stages_at_the_same_time_are_told_apart() -> None:
    recorder = Recorder()
    work(recorder)
    assert recorder.calls == [
        ("stage", "outer", 2, "file"),
        ("stage", "inner", None, "B"),
        ("advance", "inner", 1),
        ("advance", "outer", 2),
        ("advance", "inner", 3),
        ("finish", "inner"),
        ("finish", "outer"),
    ]


def test_a_stage_is_finished_after_an_error() -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt), running_stage(recorder, "work", None, "B"):
        raise KeyboardInterrupt
    assert recorder.calls == [("stage", "work", None, "B"), ("finish", "work")]


def test_silence_takes_everything() -> None:
    work(SILENT)
