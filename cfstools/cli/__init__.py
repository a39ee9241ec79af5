"""The command ``mkcfs``: the only room that reads the environment, prints, prompts and exits."""

from __future__ import annotations


def main() -> None:
    """Run ``mkcfs`` with the process' arguments and exit with its documented code."""
    from cfstools.cli.app import run

    raise SystemExit(run())
