"""Fails a run whose coverage of some room is under its floor, before pytest prints its last line."""

from __future__ import annotations

import io
from collections.abc import Generator

import coverage
import pytest

from tests.requirements import REQUIRE_ALL

# Room to the least branch coverage in per cent; the floor of the whole stands with the rest.
FLOORS = {
    "cfstools/*": 95.0,
    "cfstools/errors.py": 100.0,
    "cfstools/formats/erofs/*": 100.0,
    "cfstools/signing/*": 100.0,
    "cfstools/verity/*": 100.0,
}


class CoverageFloors:
    """A pytest plugin around pytest-cov: reads the data it saved and judges each room."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Judge after pytest-cov, whose own wrapper lies inside this one, has combined and saved its data."""
        result = yield
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        skipped = len(reporter.stats.get("skipped", [])) if reporter else 0
        if skipped and not REQUIRE_ALL:
            self.lines.append(f"not judged: {skipped} tests were skipped (CI runs them all)")
            return result
        measured = coverage.Coverage()
        measured.load()
        for room, floor in FLOORS.items():
            details = io.StringIO()
            try:
                percent = measured.report(include=[room], file=details, show_missing=True, skip_covered=True)
            except coverage.exceptions.NoDataError:
                percent = 0.0
            if percent < floor:
                self.lines += [f"FAIL {room}: {percent:.2f} % covered, at least {floor:g} % required"]
                self.lines += details.getvalue().splitlines()
                session.testsfailed += 1
            else:
                self.lines.append(f"{room}: {percent:.2f} % covered (floor {floor:g} %)")
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was found."""
        terminalreporter.section("coverage floors")
        for line in self.lines:
            terminalreporter.write_line(line, red=line.startswith("FAIL"))
