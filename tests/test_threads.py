"""How threads wait, and that the user's choice counts."""

from __future__ import annotations

import os

import pytest

from stateless_transducer.cli import main
from stateless_transducer.export.onnx_graph import Graph

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    for name in VARIABLES:
        # set first, so that what a test leaves behind is removed
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_commands_have_threads_sleep():
    assert main(["info", "missing.pt"]) == 1
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000")])
def test_choice_of_the_user_counts(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert main(["info", "missing.pt"]) == 1
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == {name: value}


@pytest.mark.parametrize(("policy", "spins"), [(None, "0"), ("passive", "0"), ("active", "1")])
def test_graphs_follow_the_policy(monkeypatch, talker, policy, spins):
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    options = Graph(talker / "onnx" / "decoder.onnx", 2)._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins
