from __future__ import annotations

import subprocess
import sys
import weakref

from cfstools.lasting import keep

PROGRAM = """
import weakref
from cfstools.lasting import end_soon, keep
class Thing: pass
thing = Thing()
alive = weakref.ref(thing)
end_soon()
keep(thing)
del thing
print(alive() is not None)
"""


def test_things_last_only_in_a_process_that_ends_soon() -> None:
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    keep(thing)
    del thing
    assert alive() is None
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
