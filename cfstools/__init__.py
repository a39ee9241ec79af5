"""cfstools: root file systems as composefs images, signed, verified and shared.

The command is ``mkcfs`` (package ``cfstools.cli``); every verb is also a function in ``cfstools.api``.
"""

__version__ = "0.1.0"
