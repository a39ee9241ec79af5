"""Says at the end of a run which tests passed only at a second try, and how the first one ended."""

from __future__ import annotations

import pytest


class SecondTries:
    """A pytest plugin beside pytest-rerunfailures, which lists what it ran again without the reason."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show how each first try ended, before pytest's own summary."""
        first_tries = terminalreporter.stats.get("rerun", [])
        if first_tries:
            terminalreporter.section("first tries that failed: a defect of the test, or of what it tests")
        for report in first_tries:
            terminalreporter.write_line(f"{report.nodeid} ({report.when})", yellow=True)
            terminalreporter.write_line(report.longreprtext)
