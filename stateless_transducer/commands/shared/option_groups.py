"""The options of a command, as its dataclass and the dataclasses inside it declare them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tyro.conf import Positional, Suppress

from stateless_transducer.options import ADVANCED, HIDDEN, metadata_of, type_hints

REQUIRED = object()
"""Default of an option without a default."""


@dataclass(frozen=True)
class Option:
    """An option of a command line."""

    field: str
    """Name of the dataclass's field."""
    kind: Any
    """Type of the value, without metadata."""
    hint: Any
    """Annotation of the field, metadata included."""
    names: tuple[str, ...]
    """``--max-duration``, then its aliases; empty: the option is positional."""
    metavar: str | None
    """Placeholder of the value, if the annotation sets one."""
    default: Any
    """`REQUIRED` if there is none."""
    text: str
    """Docstring of the field, on one line."""
    is_advanced: bool
    """Whether ``--help`` leaves it to ``--help-all``."""

    @property
    def name(self) -> str:
        """The option as a user writes it."""
        return self.names[0] if self.names else (self.metavar or self.field.upper()).split()[0].strip("[")

    @property
    def is_hidden(self) -> bool:
        """Whether no help shows it."""
        return HIDDEN in metadata_of(self.hint)


@dataclass(frozen=True)
class OptionGroup:
    """The options of one dataclass."""

    heading: str
    """Beginning of the dataclass's docstring, up to a colon, a semicolon or the end of the line."""
    options: tuple[Option, ...]


def option_groups(kind: type, default: Any = None, *, is_advanced: bool = False) -> Iterator[OptionGroup]:
    """Yield the group of a dataclass, then those of inner dataclasses, whose types are those of their defaults.

    Args:
        kind: Dataclass of the options.
        default: Instance that holds the defaults; None: those of the fields.
        is_advanced: Whether all of its options are advanced.
    """
    plain, hints, texts = get_type_hints(kind), type_hints(kind), _texts(kind)
    options: list[Option] = []
    inner: list[OptionGroup] = []
    for item in fields(kind):
        metadata = metadata_of(hints[item.name])
        value = _default(item) if default is None else getattr(default, item.name)
        advanced = is_advanced or ADVANCED in metadata
        if is_dataclass(plain[item.name]):
            inner += option_groups(type(value), value, is_advanced=advanced)
        elif Suppress not in metadata:
            names, metavar = _names(item.name, metadata)
            text = texts.get(item.name, "")
            options.append(Option(item.name, plain[item.name], hints[item.name], names, metavar, value, text, advanced))
    heading = re.split(r"[:;] |\.?\n|\.$", kind.__doc__ or "")[0]
    yield OptionGroup(heading, tuple(options))
    yield from inner


def options_of(kind: type, default: Any = None) -> Iterator[Option]:
    """Return the options of a dataclass and of inner dataclasses."""
    return (option for group in option_groups(kind, default) for option in group.options)


def as_written(value: Any) -> str:
    """Return a value as a command line spells it: lists of whole numbers have commas, others blanks."""
    if isinstance(value, tuple):
        members: tuple[Any, ...] = value
        return ("," if all(isinstance(member, int) for member in members) else " ").join(map(as_written, members))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_number_list(kind: Any) -> bool:
    """Report whether a type is ``tuple[int, ...]``, a list that a flag spells with commas."""
    if get_origin(kind) is Annotated:
        return is_number_list(get_args(kind)[0])
    if get_origin(kind) is not tuple:
        return False
    member, *rest = get_args(kind)
    return rest == [...] and (get_args(member)[0] if get_origin(member) is Annotated else member) is int


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return REQUIRED if item.default is MISSING else item.default


def _names(name: str, metadata: list[Any]) -> tuple[tuple[str, ...], str | None]:
    """Return flags and metavar, with the settings of `tyro.conf.arg`."""
    settings = [entry for entry in metadata if hasattr(entry, "aliases")]
    flag = next((entry.name for entry in settings if entry.name), name).replace("_", "-")
    aliases = [alias for entry in settings for alias in entry.aliases or ()]
    metavar = next((entry.metavar for entry in settings if entry.metavar), None)
    return (() if Positional in metadata else (f"--{flag}", *aliases)), metavar


def _texts(kind: type) -> dict[str, str]:
    """Return the docstrings of fields, inherited ones included, each on one line."""
    texts: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        texts |= _module_texts(ancestor.__module__).get(ancestor.__qualname__, {})
    return texts


@cache
def _module_texts(module: str) -> dict[str, dict[str, str]]:
    """Docstrings of the fields of a module's classes; Python itself keeps only those of classes and functions."""
    path = getattr(sys.modules[module], "__file__", None)
    if path is None or not path.endswith(".py"):
        return {}
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    texts: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts[node.name] = members = {}
        for field, successor in zip(node.body, node.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(successor, ast.Expr) and isinstance(successor.value, ast.Constant):
                members[field.target.id] = " ".join(str(successor.value.value).split())
    return texts
