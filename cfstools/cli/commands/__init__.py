"""The verbs: each turns its options into values of the library, calls one function of ``cfstools.api``, and prints.

Modules are imported by ``cfstools.cli.app`` when one of their verbs is called or asked for its help.
"""
