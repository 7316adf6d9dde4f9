"""Flags are promises: this fails when one appears or vanishes, until flags.txt is changed on purpose."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from stateless_transducer.cli import COMMANDS, main
from stateless_transducer.commands import stream
from stateless_transducer.commands.shared.flags import in_flags, parse
from stateless_transducer.commands.shared.option_groups import options_of
from stateless_transducer.options import choices_of

FROZEN = Path(__file__).parent / "flags.txt"


def _flags(command, capsys):
    """Flags that the help shows, each with its aliases."""
    with pytest.raises(SystemExit):
        main([*command.split(), "--help-all"])
    lines = re.findall(r"^  (--[a-z][a-z0-9-]+(?:, --[a-z][a-z0-9-]+)*)", capsys.readouterr().out, re.MULTILINE)
    return sorted(line.replace(", ", "=") for line in lines if line != "--help-all")


def _options(command):
    return import_module(f"stateless_transducer.commands.{COMMANDS[command][0]}").Options


def _frozen():
    lines = (line.split(":") for line in FROZEN.read_text().splitlines())
    return {command: flags.split() for command, flags in lines}


def test_every_command_is_frozen():
    assert sorted(_frozen()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_the_frozen_ones(command, capsys):
    hidden = [option.name for option in options_of(_options(command)) if option.is_hidden]
    assert sorted(_flags(command, capsys) + hidden) == _frozen()[command]


def test_flags_have_the_tutorials_names():
    frozen = {command: {name for flag in flags for name in flag.split("=")} for command, flags in _frozen().items()}
    wanted = "--exp-dir --num-epochs --start-epoch --world-size --max-duration --lr-factor --context-size"
    assert set(f"{wanted} --modified-transducer-prob --lm-scale --am-scale".split()) <= frozen["train"]
    wanted = "--epoch --avg --exp-dir --max-duration --decoding-method --beam-size --max-sym-per-frame"
    assert set(wanted.split()) <= frozen["decode"]


# arguments without which a command does not start, and values of options that are neither numbers nor choices
_NEEDED = {
    "transcribe": "m.pt a.wav",
    "serve": "m.pt",
    "stream": "folder a.wav",
    "import": "--output o.pt --model m.pt",
    "export icefall": "--output o.pt --model m.pt",
    "export onnx": "--output o --model m.pt",
    "export torch": "--output o.pt2 --model m.pt",
}
_ALIASES = [
    (command, flag.split("=")[0], alias)
    for command, flags in _frozen().items()
    for flag in flags
    for alias in flag.split("=")[1:]
]


@pytest.mark.parametrize(("command", "flag", "alias"), _ALIASES, ids=str)
def test_alias_means_the_same(command, flag, alias):
    (option,) = (option for option in options_of(_options(command)) if flag in option.names)
    value = (*choices_of(option.hint)[-1:], {float: 0.125, int: 7}.get(option.kind, "elsewhere"))[0]
    needed = _NEEDED.get(command, "").replace(f" {flag} m.pt", "").split()
    parsed = [parse(_options(command), command, [*needed, name, str(value)], "") for name in (flag, alias)]
    assert parsed[0] == parsed[1]
    if flag != "--model":
        assert parsed[0] != parse(_options(command), command, needed, "")


def test_old_spelling_of_int8_means_the_same():
    for flags, is_int8 in (["--prefer-int8"], True), (["--precision", "int8"], True), ([], False):
        assert parse(stream.Options, "stream", ["m", "a.wav", *flags], "").is_int8 == is_int8


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


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`deep_truth` must be true", "`--deep-truth` must be true"),
        ("pass `is_on=False`", "pass `--is-on false`"),
        ("pass `deep_truth=x y`", "pass `--deep-truth x y`"),
        ("`names` is empty", "`NAMES` is empty"),
        ("run `other` or `transducer is_on`", "run `other` or `transducer is_on`"),
    ],
)
def test_arguments_in_messages_become_flags(message, expected):
    assert in_flags(message, _Outer) == expected


@pytest.mark.parametrize(
    "arguments",
    [["decode", "--beam-size", "0"], ["train", "--num-epochs", "0"], ["transcribe", "m.pt", "a.wav", "--nbest", "0"]],
)
def test_error_of_a_dataclass_is_one_line_with_the_flag(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    flag = arguments[-2]
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"transducer {arguments[0]}: error: `{flag}` must be at least 1, but is 0.\n"


def _help(command, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), flag])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_shows_common_options_and_help_all_the_rest(capsys):
    common, whole = (_help("train", flag, capsys) for flag in ("--help", "--help-all"))
    for flag in ("--num-epochs", "--max-duration", "--optimizer"):
        assert f"  {flag} " in common and f"  {flag} " in whole
    for flag in ("--weight-decay", "--num-frame-masks", "--master-port"):
        assert f"  {flag} " not in common and f"  {flag} " in whole
    assert len(common.splitlines()) < 0.7 * len(whole.splitlines())
    assert "\nFine-tuning:\n" in common and "--prefer-int8" not in _help("stream", "--help-all", capsys)


def test_help_reflows_docstrings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line for line in _help("train", "--help-all", capsys).splitlines() if line.startswith(" " * 26)]
    # a text that spans two lines of the source fills a line of the help
    assert max(map(len, lines)) > 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    for option in options_of(_options(command)):
        # two lines of the source
        assert option.text.endswith(".") and len(option.text) <= 240, option.name


def test_sizes_of_every_encoder_are_named_by_their_flags():
    """An error at run time does not know which encoder the command line has named."""
    message = "`num_encoder_layers` 3, `num_layers` 3"
    assert in_flags(message, _options("train")) == "`--num-encoder-layers` 3, `--num-layers` 3"
    # elsewhere, these are sizes of a checkpoint
    assert in_flags(message, _options("decode")) == message
