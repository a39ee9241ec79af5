from __future__ import annotations

import subprocess
import sys
import weakref

from cfstools.lifetime import keep_until_exit

PROGRAM = """
import weakref
from cfstools.lifetime import free_at_exit, keep_until_exit
class Thing: pass
thing = Thing()
alive = weakref.ref(thing)
free_at_exit()
keep_until_exit(thing)
del thing
print(alive() is not None)
"""


def test_things_last_only_in_a_process_that_ends_soon() -> None:
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    keep_until_exit(thing)
    del thing
    assert alive() is None
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
