"""Under a kernel that enforces fs-verity everything is as promised; `make vm` prints what this run sees.

The machines for mounts of users take longer than all else here together: `make vm` boots them too.
"""

from __future__ import annotations

import pytest

from tests.reference import RootUnavailable
from tests.requirements import missing, need_command
from tests.vm import machine
from tests.vm.checks import VERITY


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(machine.TIMEOUT + 600)
def test_every_check_holds_in_the_machine() -> None:
    need_command(*machine.COMMANDS)
    try:
        said = list(machine.lines([VERITY]))
    except RootUnavailable as error:
        missing(str(error))
    last = [line for line in said if line.startswith("vm: ")][-1:]
    assert last == [machine.wanted(VERITY)], "\n".join(said)
