from __future__ import annotations

from collections.abc import Iterator

import pytest

from cfstools import native


@pytest.fixture
def native_in_use() -> Iterator[None]:
    """The native functions, whatever was chosen; a test may change that, and afterwards all is as it was."""
    before = native.IMPLEMENTATION
    native.use("native")
    yield
    native.use(before)
