"""What commands show, and where they show nothing."""

from __future__ import annotations

import pytest

from stateless_transducer.commands.shared.console import bytes_bar, hours_bar, progress_bar


@pytest.mark.parametrize("bar", [progress_bar, bytes_bar], ids=["numbers", "bytes"])
def test_bar_is_for_terminals_alone(bar, monkeypatch, capsys):
    """A notebook asks for colors, and is none."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bar("working") as move:
        move(1, 2)
    with hours_bar("working", lambda: 10.0) as move:
        move(5.0)
    assert capsys.readouterr() == ("", "")
