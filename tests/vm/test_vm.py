"""Under a kernel that enforces fs-verity everything is as promised; `make vm` prints what this run sees."""

from __future__ import annotations

import pytest

from tests.reference import RootUnavailable
from tests.requirements import missing, need_command
from tests.vm import guest, machine


@pytest.mark.root
@pytest.mark.slow
def test_every_check_holds_in_the_machine() -> None:
    need_command(*machine.COMMANDS)
    try:
        said = list(machine.lines())
    except RootUnavailable as error:
        missing(str(error))
    last = [line for line in said if line.startswith("vm: ")][-1:]
    assert last == [f"vm: {len(guest.CHECKS)} held, 0 failed"], "\n".join(said)
