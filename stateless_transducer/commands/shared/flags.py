"""Command lines from dataclasses: flat flags, true/false values, the tutorial's spelling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TypeVar, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

# icefall's spelling of true and false
_TRUE, _FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")

Options = TypeVar("Options")


def parse(
    options: type[Options], program: str, arguments: list[str], description: str, *, default: Options | None = None
) -> Options:
    """Options from arguments; exits with status 2 and a message if they are wrong, bounds of the dataclasses included.

    Args:
        options: a dataclass; those inside it give flat flags, too.
        program: for the usage line.
        arguments: what follows the command's name.
        description: head of the help.
        default: values in place of the dataclass's own.
    """
    found = tyro.cli(
        options,
        prog=program,
        args=_with_truths(arguments, _boolean_flags(options)),
        description=description,
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        registry=_registry(),
    )
    assert found is not None
    return found


def _boolean_flags(options: type) -> set[str]:
    """Of a dataclass and those inside it."""

    def names(kind: type) -> Iterator[str]:
        hints = get_type_hints(kind)
        for each in fields(kind):
            if hints[each.name] is bool:
                yield each.name
            elif is_dataclass(hints[each.name]):
                yield from names(hints[each.name])

    return {f"--{name.replace('_', '-')}" for name in names(options)}


def _with_truths(arguments: list[str], flags: set[str]) -> list[str]:
    """A flag of these at the end or before another flag is true: ``--resume`` says what ``--resume true`` says."""
    said = []
    for word, following in zip(arguments, [*arguments, "-"][1:], strict=True):
        said.append(word)
        if word.replace("_", "-") in flags and following.startswith("-"):
            said.append("true")
    return said


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _truth(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
        if type_info.type is not bool:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            instance_from_str=lambda words: _truth_of(words[0]),
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
        )

    @registry.primitive_rule
    def _number(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
        if type_info.type is not float:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda words: _number_of(words[0]),
            is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _truth_of(word: str) -> bool:
    if word.lower() not in _TRUE + _FALSE:
        raise ValueError(f"must be true or false, but is {word!r}")
    return word.lower() in _TRUE


def _number_of(word: str) -> float:
    number = float(word)
    # bounds of the dataclasses are not asked about these
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, but is {word!r}")
    return number
