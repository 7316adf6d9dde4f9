"""The help of a command: its options in groups, the common ones alone or all of them."""

from __future__ import annotations

import shutil
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from stateless_transducer.commands.shared.option_groups import (
    REQUIRED,
    Option,
    as_written,
    is_number_list,
    option_groups,
)
from stateless_transducer.options import choices_of

_INDENT, _MOST_COLUMNS = 26, 110


def help_text(kind: type, program: str, description: str, *, default: Any = None, is_all: bool = False) -> str:
    """Return the help of a command.

    Args:
        kind: Dataclass of the options.
        program: Name in the usage line.
        description: First paragraph of the help.
        default: Instance that holds the defaults; None: those of the dataclass.
        is_all: Show advanced options as well.
    """
    groups = list(option_groups(kind, default))
    positional = [option for group in groups for option in group.options if not option.names]
    usage = [option.metavar or option.name for option in positional]
    lines = [" ".join(["usage:", program, *usage, "[OPTIONS]"]), "", *textwrap.wrap(description, _columns())]
    sections = [("Arguments", positional)]
    for number, group in enumerate(groups):
        named = [option for option in group.options if option.names and not option.is_hidden]
        sections.append((group.heading if number else "Options", named))
    for heading, options in sections:
        shown = [option for option in options if is_all or not option.is_advanced]
        if shown:
            lines += ["", f"{heading}:"]
        for option in shown:
            lines += _entry(option)
    num_advanced = sum(option.is_advanced for _, options in sections for option in options)
    lines += [
        "",
        "Help:",
        *_two_columns("-h, --help", f"Show the {'common ' if num_advanced else ''}options."),
    ]
    if num_advanced:
        lines += _two_columns("--help-all", f"Show all options, {num_advanced} more.")
    return "\n".join(lines)


def _entry(option: Option) -> Iterator[str]:
    metavar = option.metavar or (_metavar(option) if option.names else option.name)
    text = option.text
    if option.default is REQUIRED and option.names:
        text += " (required)"
    elif option.default is not REQUIRED and option.default is not None and option.default != ():
        text += f" (default: {as_written(option.default)})"
    yield from _two_columns(f"{', '.join(option.names)} {metavar}" if option.names else metavar, text.strip())


def _metavar(option: Option) -> str:
    """Return the placeholder of a value: ``INT``, ``{true,false}``, ``PATH [PATH ...]``."""
    choices, kind = choices_of(option.hint), option.kind
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    if is_number_list(kind):
        return "INT[,INT...]"
    is_several = get_origin(kind) is tuple
    member = get_args(kind)[0] if is_several else kind
    names: dict[Any, str] = {bool: "{true,false}", int: "INT", float: "FLOAT", Path: "PATH"}
    name = f"{{{','.join(map(str, choices))}}}" if choices else names.get(member, "TEXT")
    return f"{name} [{name} ...]" if is_several else name


def _two_columns(left: str, text: str) -> Iterator[str]:
    wrapped = textwrap.wrap(text, _columns() - _INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    if len(left) + 4 > _INDENT:
        yield f"  {left}"
    else:
        yield f"  {left:{_INDENT - 2}}{wrapped.pop(0)}".rstrip()
    for line in wrapped:
        yield " " * _INDENT + line


def _columns() -> int:
    return max(60, min(shutil.get_terminal_size().columns, _MOST_COLUMNS))
