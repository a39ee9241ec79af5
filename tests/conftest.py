"""Fixtures and rules for the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from cfstools import native
from tests import own_temporary, requirements
from tests.coverage_floors import CoverageFloors
from tests.reference import Reference
from tests.second_tries import SecondTries

pytest_plugins = ["tests.users"]

hypothesis.settings.register_profile(
    "default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if requirements.REQUIRE_ALL else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pure", action="store_true", help="use the native functions written in Python; commands as well")
    parser.addoption(
        "--coverage-floors", action="store_true", help="fail if a room is covered less than its floor (needs --cov)"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest reads where temporary files shall be
def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores it for what runs in its background, and commands that tests interrupt would ignore it too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # So does nohup(1) for its command, which still has to outlive the terminal.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.option.basetemp = own_temporary.claim(config)
    if config.getoption("--pure"):
        native.use("pure")
        os.environ["MKCFS_NATIVE"] = "pure"
    if config.getoption("--coverage-floors") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(CoverageFloors())
    config.pluginmanager.register(SecondTries())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of a run without native functions what chooses them itself: it is the same in the run with them."""
    if config.getoption("--pure"):
        config.hook.pytest_deselected(items=[item for item in items if _chooses_native(item)])
        items[:] = [item for item in items if not _chooses_native(item)]


def _chooses_native(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    chosen = item.callspec.params.get("each_implementation") if hasattr(item, "callspec") else None
    return chosen == "native" or "native_in_use" in item.fixturenames or item.get_closest_marker("both") is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root"):
        requirements.need_root()
    if item.get_closest_marker("kernel"):
        requirements.need_mounts("erofs", "overlay")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is required to run, a skip that was not allowed is a failure."""
    report = yield
    allowed = hasattr(report, "wasxfail") or item.get_closest_marker("may_skip") is not None
    if requirements.REQUIRE_ALL and report.skipped and not allowed:
        report.outcome = "failed"
        report.longrepr = f"skipped where everything must run: {call.excinfo and call.excinfo.value}"
    return report


@pytest.fixture(scope="session", autouse=True)
def open_way(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let tests that act as another user reach the temporary directory, which pytest makes for its own user only."""
    base = tmp_path_factory.getbasetemp()
    for path in (base, *base.parents):
        mode = path.stat().st_mode
        if os.geteuid() == 0 and not mode & 0o001:
            path.chmod(mode | 0o011)


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The reference tools, in a Debian root that is made once per machine."""
    requirements.need_mounts()
    return Reference(requirements.debian_root("reference"))


@pytest.fixture(scope="session")
def debian_tree() -> Path:
    """The root of a minimal Debian 12, made once per machine: never change it."""
    requirements.need_root()
    return requirements.debian_root("bookworm")


@pytest.fixture
def pure() -> Iterator[None]:
    """The native functions in Python, for tests that put something in the place of what these call."""
    before = native.IMPLEMENTATION
    native.use("pure")
    yield
    native.use(before)


@pytest.fixture
def native_in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The native functions, whatever was chosen, in commands too; a test may change that, and then all is as before."""
    before = native.IMPLEMENTATION
    native.use("native")
    monkeypatch.delenv("MKCFS_NATIVE", raising=False)
    yield
    native.use(before)


@pytest.fixture(params=["pure", "native"])
def each_implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """A test that asks for this runs twice, with the native functions in Python and in C (where those were built)."""
    before = native.IMPLEMENTATION
    native.use("pure" if request.param == "pure" else "auto")
    if request.param != native.IMPLEMENTATION:
        pytest.skip("the native functions were not built")
    yield request.param
    native.use(before)


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digest cache of all commands that tests run."""
    return tmp_path_factory.mktemp("cache") / "cfstools"


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, cache_directory: Path) -> None:
    """Keep what the user's environment says about dates and colours, and the user's cache, out of the tests."""
    monkeypatch.setenv("MKCFS_CACHE_DIR", str(cache_directory))
    for name in ("SOURCE_DATE_EPOCH", "NO_COLOR", "FORCE_COLOR", "CFS_PARSE_STRICT"):
        monkeypatch.delenv(name, raising=False)
