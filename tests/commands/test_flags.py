"""Flags are promises: this fails when one appears or vanishes, until flags.txt is changed on purpose."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tyro

from stateless_transducer.cli import _COMMANDS, main
from stateless_transducer.commands.shared.flags import parse

FROZEN = Path(__file__).parent / "flags.txt"


def _flags(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    # a flag begins its line, after the frame, or is the other name of one that does
    return sorted(set(re.findall(r"(?:^\W*|}, )(--[a-z][a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE)))


def _frozen():
    lines = (line.split(":") for line in FROZEN.read_text().splitlines())
    return {command: flags.split() for command, flags in lines}


def test_every_command_is_frozen():
    assert sorted(_frozen()) == sorted(_COMMANDS)


@pytest.mark.parametrize("command", _COMMANDS)
def test_flags_are_the_frozen_ones(command, capsys):
    assert _flags(command, capsys) == _frozen()[command]


def test_flags_have_the_tutorials_names():
    frozen = _frozen()
    wanted = "--exp-dir --num-epochs --start-epoch --world-size --max-duration --lr-factor --context-size"
    assert set(f"{wanted} --modified-transducer-prob".split()) <= set(frozen["train"])
    wanted = "--epoch --avg --exp-dir --max-duration --decoding-method --beam-size --max-sym-per-frame"
    assert set(wanted.split()) <= set(frozen["decode"])


@dataclass(frozen=True)
class _Inner:
    deep_truth: bool = False


@dataclass(frozen=True)
class _Outer:
    names: tyro.conf.Positional[tuple[str, ...]]
    is_on: bool = True
    inner: _Inner = field(default_factory=_Inner)


@pytest.mark.parametrize(
    ("line", "is_on", "deep_truth", "names"),
    [
        ("", True, False, ()),
        ("a", True, False, ("a",)),
        ("--is-on --deep-truth", True, True, ()),
        ("a b --is-on False", False, False, ("a", "b")),
        ("--deep-truth --is-on no a b", False, True, ("a", "b")),
        ("a --deep_truth --is-on=0", False, True, ("a",)),
    ],
)
def test_truth_may_be_left_out(line, is_on, deep_truth, names):
    assert parse(_Outer, "test", line.split(), "") == _Outer(names, is_on, _Inner(deep_truth))
