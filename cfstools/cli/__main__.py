"""``python -m cfstools.cli`` is ``mkcfs``."""

from cfstools.cli import main

main()
