"""Command lines from dataclasses: flat flags, true/false values, lists with commas, the tutorial's spelling.

The library names Python arguments in its errors; `in_flags` turns them into the flags of a command.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from stateless_transducer.commands.shared.help import help_text
from stateless_transducer.commands.shared.option_groups import is_number_list, options_of
from stateless_transducer.model.config import ENCODER_CONFIGS

# icefall's spelling of true and false
_TRUE, _FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")

Options = TypeVar("Options")


def parse(
    options: type[Options], program: str, arguments: list[str], description: str, *, default: Options | None = None
) -> Options:
    """Parse arguments into options; exit with status 2 and a message if they are invalid, also for the dataclasses.

    Args:
        options: Dataclass; inner dataclasses give flat flags as well.
        program: Name in the usage line.
        arguments: Words after the command's name.
        description: First paragraph of the help.
        default: Values that replace the defaults of the dataclass.
    """
    help_flags = [word for word in arguments if word in ("-h", "--help", "--help-all")]
    if help_flags:
        print(help_text(options, program, description, default=default, is_all="--help-all" in help_flags))
        raise SystemExit(0)
    tyro_message = io.StringIO()
    truths = {name for option in options_of(options, default) if option.kind is bool for name in option.names}
    try:
        with redirect_stderr(tyro_message):
            result = tyro.cli(
                options,
                prog=program,
                args=_with_truths(arguments, truths),
                description=description,
                default=default,
                # comments beside fields are not for users; tyro would parse the sources for them
                config=(
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.FlagConversionOff,
                    tyro.conf.HelptextFromCommentsOff,
                ),
                registry=_registry(),
            )
    except SystemExit as stopped:
        refusal = _refusal(stopped)
        shown = f"{program}: error: {in_flags(refusal, options, default)}\n" if refusal else tyro_message.getvalue()
        print(shown, end="", file=sys.stderr)
        raise
    assert result is not None
    return result


def _refusal(stopped: SystemExit) -> str:
    """Return the message of the dataclass that refused its values; empty if a check of tyro ended the program.

    tyro chains the error of a dataclass, or another error that names the place of an inner dataclass.
    """
    cause = stopped.__context__
    if isinstance(getattr(cause, "arg", None), str):
        cause = cause.__context__ if cause else None
    return str(cause) if isinstance(cause, ValueError) else ""


def in_flags(message: str, options: type, default: object = None) -> str:
    """Replace Python arguments in a message by the flags of a command.

    `` `beam_size` 0 `` becomes `` `--beam-size` 0 ``, `` `drop_last=False` `` becomes `` `--drop-last false` ``.

    Args:
        message: Message with arguments in backquotes; other names stay.
        options: Dataclass of the command's options.
        default: Instance that holds the defaults, see `parse`.
    """
    names: dict[str, str] = {}
    for option in options_of(options, default):
        for spelling in (option.field, *(name.removeprefix("--").replace("-", "_") for name in option.names)):
            names.setdefault(spelling, option.name)
    if "encoder" in names:
        # the sizes of the encoder that a command line names
        sizes = (size.name for config in ENCODER_CONFIGS.values() for size in fields(config))
        names = {size: f"--{size.replace('_', '-')}" for size in sizes} | names

    def as_flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in names:
            return match[0]
        written = {"=True": " true", "=False": " false"}.get(value, value.replace("=", " ", 1).replace('"', ""))
        return f"`{names[name]}{written}`"

    return re.sub(r"`([a-z][a-z0-9_]*)(=[^`]*|)`", as_flag, message)


def named_options(arguments: Sequence[str]) -> set[str]:
    """Return the names of the options on a command line, as Python spells them."""
    return {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word[:2] == "--"}


def _with_truths(arguments: list[str], flags: set[str]) -> list[str]:
    """Insert ``true`` after boolean flags without a value: ``--resume`` means ``--resume true``."""
    words = []
    for word, following in zip(arguments, [*arguments, "-"][1:], strict=True):
        words.append(word)
        if word.replace("_", "-") in flags and following.startswith("-"):
            words.append("true")
    return words


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
    def _path(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if type_info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: _path_of(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
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

    @registry.primitive_rule
    def _numbers(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[int, ...]] | None:
        if not is_number_list(type_info.type):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT[,INT...]",
            instance_from_str=lambda words: _numbers_of(words[0]),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(number, int) for number in value),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry


def _truth_of(word: str) -> bool:
    if word.lower() not in _TRUE + _FALSE:
        raise ValueError(f"must be true or false, but is {word!r}")
    return word.lower() in _TRUE


def _path_of(word: str) -> Path:
    # the empty path would be the current folder
    if not word:
        raise ValueError("must be a path, but is empty")
    return Path(word)


def _numbers_of(word: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in word.split(","))
    except ValueError:
        raise ValueError(f"must be whole numbers with commas between them, but is {word!r}") from None


def _number_of(word: str) -> float:
    number = float(word)
    # NaN and infinity would pass some bounds of the dataclasses
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, but is {word!r}")
    return number
