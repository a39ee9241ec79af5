"""Writes the manual pages in ``man/`` from the commands: ``python -m tools.manual`` (``make man``).

A page has what the help has, and besides it the exit codes, the environment and what else to read. It is roff for the
``man`` macros, in ASCII, and depends on nothing but the commands: the same commands give the same bytes, whatever
version of click is installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from cfstools import __version__
from cfstools.cli.app import VERBS
from cfstools.cli.params import GENERAL, grouped_options
from cfstools.cli.verbs import mkcfs
from cfstools.errors import exit_codes

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / "man"

EVERY: frozenset[str] = frozenset()
_NETWORK = frozenset({"build", "diff", "inspect", "mount", "plan", "pull", "push", "run"})
# Variable to what it does and the verbs that read it (EVERY: all of them).
_READING = frozenset({"cat", "diff", "extract", "mount", "objects", "plan", "pull", "push", "run", "store", "verify"})
_PROXIED = _READING | _NETWORK
_STORAGE = "The URL of object storage that is not Amazon's; of the three the one with the longest name counts."
ENVIRONMENT: Mapping[str, tuple[str, frozenset[str]]] = {
    "AWS_ENDPOINT": (_STORAGE, _READING),
    "AWS_ENDPOINT_URL": (_STORAGE, _READING),
    "AWS_ENDPOINT_URL_S3": (_STORAGE, _READING),
    "CFS_PARSE_STRICT": ("If set, refuse lenient dump texts, as --strict does.", frozenset({"build"})),
    "CONTAINERS_REGISTRIES_CONF": (
        "The configuration of registries and their mirrors, instead of registries.conf and its drop-ins.",
        _NETWORK,
    ),
    "DOCKER_CONFIG": (
        "The directory of docker's config.json, which may hold credentials for registries.",
        _NETWORK,
    ),
    "HOME": (
        "Below it are credentials for registries (.config/containers, .docker) and the digest cache (.cache/cfstools).",
        _NETWORK,
    ),
    "HTTPS_PROXY": ("The proxy for https, also in small letters.", _PROXIED),
    "HTTP_PROXY": ("The proxy for http, also in small letters.", _PROXIED),
    "MKCFS_CACHE_DIR": ("The directory of the digest cache; --cache-dir wins.", frozenset({"build"})),
    "MKCFS_NATIVE": ("Which hot loops to use: native, pure or auto (the default); for comparisons.", EVERY),
    "MKCFS_PASSPHRASE": ("The passphrase of the private key.", frozenset({"build", "keygen", "push", "sign"})),
    "NO_COLOR": ("If set and not empty, progress bars have no colour.", EVERY),
    "NO_PROXY": (
        "Hosts that are reached without a proxy, also in small letters.",
        _PROXIED,
    ),
    "NOTIFY_SOCKET": ("Where the service manager is told that the mount is there.", frozenset({"mount"})),
    "REGISTRY_AUTH_FILE": (
        "The only file with credentials for registries; --authfile wins.",
        _NETWORK,
    ),
    "TMPDIR": (
        "The directory for temporary files: parts of container images while they are read, mounts while they are made.",
        frozenset({"build", "inspect", "mount", "plan", "pull", "push", "run"}),
    ),
    "XDG_CACHE_HOME": (
        "If it is an absolute path, the digest cache is in cfstools below it, except for root.",
        frozenset({"build"}),
    ),
    "XDG_CONFIG_HOME": (
        "If it is an absolute path, containers below it has credentials, certificates and mirrors of registries.",
        _NETWORK,
    ),
    "XDG_RUNTIME_DIR": (
        "If it is an absolute path, containers/auth.json below it has credentials for registries.",
        _NETWORK,
    ),
}

# Page to those that belong to the same work.
RELATED: Mapping[str, tuple[str, ...]] = {
    "mkcfs-build": ("mkcfs-inspect", "mkcfs-verify", "mkcfs-sign", "mkcfs-diff", "mkcfs-mount", "mkcomposefs"),
    "mkcfs-inspect": ("mkcfs-ls", "mkcfs-dump", "mkcfs-verify", "composefs-info"),
    "mkcfs-verify": ("mkcfs-sign", "mkcfs-keygen", "mkcfs-store-fsck"),
    "mkcfs-sign": ("mkcfs-keygen", "mkcfs-verify", "fsverity"),
    "mkcfs-keygen": ("mkcfs-sign", "mkcfs-verify"),
    "mkcfs-ls": ("mkcfs-dump", "mkcfs-objects", "composefs-info"),
    "mkcfs-dump": ("mkcfs-ls", "mkcfs-build", "composefs-info"),
    "mkcfs-objects": ("mkcfs-verify", "mkcfs-store-gc", "composefs-info"),
    "mkcfs-digest": ("mkcfs-verify", "fsverity"),
    "mkcfs-extract": ("mkcfs-cat", "mkcfs-mount"),
    "mkcfs-cat": ("mkcfs-extract", "mkcfs-ls"),
    "mkcfs-mount": ("mkcfs-umount", "mkcfs-run", "mkcfs-verify", "mount"),
    "mkcfs-umount": ("mkcfs-mount", "umount"),
    "mkcfs-run": ("mkcfs-mount", "mkcfs-extract", "unshare", "bwrap"),
    "mkcfs-push": ("mkcfs-pull", "mkcfs-build", "mkcfs-sign"),
    "mkcfs-pull": ("mkcfs-push", "mkcfs-plan", "mkcfs-verify", "mkcfs-mount", "mkcfs-store-gc"),
    "mkcfs-plan": ("mkcfs-pull", "mkcfs-diff", "mkcfs-objects"),
    "mkcfs-diff": ("mkcfs-build", "mkcfs-inspect"),
    "mkcfs-store": ("mkcfs-store-fsck", "mkcfs-store-gc", "mkcfs-store-push", "mkcfs-store-stat"),
    "mkcfs-store-fsck": ("mkcfs-store", "mkcfs-verify"),
    "mkcfs-store-gc": ("mkcfs-store", "mkcfs-objects"),
    "mkcfs-store-push": ("mkcfs-push", "mkcfs-store-fsck", "mkcfs-objects"),
    "mkcfs-store-stat": ("mkcfs-store", "mkcfs-store-gc"),
    "mkcfs-completion": (),
}
_SECTIONS = {"mount": 8, "umount": 8}

_ESCAPES = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
)
_LITERAL = re.compile(r"`([^`]+)`")


def pages() -> dict[str, str]:
    """Name of the page (``mkcfs-build``) to its roff."""
    context = click.Context(mkcfs, info_name="mkcfs", **mkcfs.context_settings)
    return {name: _page(command, ctx) for name, command, ctx in _commands(mkcfs, context)}


def _commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    yield context.command_path.replace(" ", "-"), command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below, click.Context(below, info_name=name, parent=context))


def _page(command: click.Command, context: click.Context) -> str:
    path = context.command_path
    name = path.replace(" ", "-")
    summary = _summary(command, context)
    lines = [
        '.\\" Made by tools/manual.py from the commands; make man writes it anew.',
        f'.TH "{_escaped(name.upper())}" "1" "" "cfstools {__version__}" "User Commands"',
        ".nh",  # break no words: options and paths would not be recognised
        ".ad l",
        *_section("NAME"),
        f"{_escaped(name)} \\- {_escaped(summary[0].lower() + summary[1:].removesuffix('.'))}",
        *_section("SYNOPSIS"),
        *_synopsis(command, context),
        *_section("DESCRIPTION"),
        *_paragraphs(command.help or ""),
    ]
    if isinstance(command, click.Group):
        lines += [*_section("VERBS"), *_verbs(command, context)]
    lines += [*_section("OPTIONS"), *_options(command, context)]
    lines += [*_section("EXIT STATUS"), *_terms((f"\\fB{code}\\fR", text) for code, text in exit_codes().items())]
    lines += [*_section("ENVIRONMENT"), *_environment(path.split(" ")[1:])]
    if examples := _examples(command):
        lines += [*_section("EXAMPLES"), ".nf", *examples, ".fi"]
    lines += [*_section("SEE ALSO"), *_see_also(name)]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command, context: click.Context) -> str:
    """One line about a command: for verbs that of the list of verbs."""
    assert command.help is not None
    if context.parent is None:
        return command.help.partition("\n\n")[0]
    if context.parent.parent is None:
        return VERBS[command.name or ""][1]
    return command.short_help or command.help.partition("\n\n")[0].replace("\n", " ")


def _section(title: str) -> list[str]:
    return [f".SH {title}"]


def _synopsis(command: click.Command, context: click.Context) -> Iterator[str]:
    words = [_bold(context.command_path), "[\\fIOPTION\\fR]..."]
    words += [_argument(parameter) for parameter in command.params if isinstance(parameter, click.Argument)]
    if isinstance(command, click.Group):
        words.append("\\fIVERB\\fR [\\fIARGUMENT\\fR]...")
    yield " ".join(words)


def _argument(argument: click.Argument) -> str:
    name = (argument.metavar or (argument.name or "").upper()).strip("[].")
    text = _italic(name)
    if not argument.required:
        text = f"[{text}]"
    return text if argument.nargs == 1 else f"{text}..."


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        yield _prose(paragraph)


def _prose(text: str) -> str:
    """One paragraph on one line; what stands in backquotes, and options, in bold."""
    parts = _LITERAL.split(" ".join(text.split()))
    # Splitting by a pattern with one group puts what it matched at the odd places.
    marked = [_bold(part) if number % 2 else _bold_options(part) for number, part in enumerate(parts)]
    line = "".join(marked)
    return f"\\&{line}" if line.startswith((".", "\\(aq")) else line


def _bold_options(text: str) -> str:
    pieces = re.split(r"(?<![\w-])(--?[a-z][a-z-]*)", text)
    return "".join(_bold(piece) if number % 2 else _escaped(piece) for number, piece in enumerate(pieces))


def _escaped(text: str) -> str:
    assert text.isascii(), text
    return text.translate(_ESCAPES)


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_escaped(text)}\\fR"


def _terms(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield from (".TP", term, _prose(text))


def _verbs(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        below = group.get_command(context, name)
        assert below is not None
        page = f"{context.command_path} {name}".replace(" ", "-")
        summary = _summary(below, click.Context(below, info_name=name, parent=context))
        yield from (".TP", f"\\fB{_escaped(page)}\\fR(1)", _prose(summary))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    groups = grouped_options(command, context)
    for heading, options in groups.items():
        if len(groups) > 1:
            yield f".SS {_escaped(heading)}"
        yield from _terms((_option(option), _option_text(option)) for option in options)
    assert list(groups)[-1] == GENERAL


def _option(option: click.Option) -> str:
    # Short names first, as in the help. Older versions of click give those of --help in any order.
    names = ", ".join(_bold(name) for name in [*sorted(option.opts, key=_is_long), *option.secondary_opts])
    if (option.is_flag and option.metavar is None) or option.count:
        return names
    if isinstance(option.type, click.Choice):
        choices = "|".join(_bold(str(choice)) for choice in option.type.choices)
        return f"{names} {choices}"
    assert option.metavar, option.name
    return f"{names} \\fI{_escaped(option.metavar)}\\fR"


def _is_long(name: str) -> bool:
    return name.startswith("--")


def _option_text(option: click.Option) -> str:
    assert option.help, option.name
    if option.show_default and not option.is_flag:
        return f"{option.help} The default is {option.default}."
    return option.help


def _environment(words: list[str]) -> Iterator[str]:
    verb = words[0] if words else None
    yield from _terms(
        (_bold(name), text)
        for name, (text, verbs) in ENVIRONMENT.items()
        if verb is None or verbs is EVERY or verb in verbs
    )


def _examples(command: click.Command) -> list[str]:
    return [_escaped(line.strip()) for line in (command.epilog or "").splitlines() if line.strip().startswith("mkcfs ")]


def _see_also(name: str) -> Iterator[str]:
    related = ["mkcfs", *RELATED[name]] if name != "mkcfs" else [*RELATED, "mkcomposefs", "composefs-info"]
    names = [f"\\fB{_escaped(page)}\\fR({_SECTIONS.get(page, 1)})" for page in related]
    yield ", ".join(names)
    yield ".PP"
    yield "The tutorial, the formats and all that is promised stand in the directory docs of the source."


def outdated() -> list[str]:
    """The pages whose files are missing, left over, or say something else than the commands."""
    made = pages()
    kept = {path.stem: path.read_bytes() for path in PAGES.glob("*.1")}
    return sorted(name for name in made | kept if kept.get(name) != made.get(name, "").encode("ascii"))


def write() -> None:
    """Write every page, and remove those of verbs that are gone."""
    PAGES.mkdir(exist_ok=True)
    made = pages()
    for path in PAGES.glob("*.1"):
        if path.stem not in made:
            path.unlink()
    for name, text in made.items():
        (PAGES / f"{name}.1").write_text(text, encoding="ascii")


def main(arguments: list[str]) -> int:
    """Write the pages; with ``--check`` only say which are out of date."""
    if arguments != ["--check"]:
        write()
        return 0
    for name in outdated():
        print(f"man/{name}.1 is not what the commands say: `make man` writes it", file=sys.stderr)
    return 1 if outdated() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
