"""Flags are promises: this fails when one appears or vanishes, until flags.txt is changed on purpose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stateless_transducer.cli import _COMMANDS, main

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
