"""The list of published models: the same in the document and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from stateless_transducer.cli import main
from stateless_transducer.hub import PublishedName
from stateless_transducer.published_models import MODELS, markdown


def test_document_has_the_list():
    document = Path(__file__).parents[1] / "docs" / "models.md"
    assert markdown() in document.read_text(encoding="utf-8")


def test_command_lists_names_that_commands_take(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{model.name}\n" in printed and PublishedName.parse(model.name) for model in MODELS)
    assert main(["models", "--output-format", "json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [model["name"] for model in listed] == [model.name for model in MODELS]
    assert any(model["is_streaming"] for model in listed)
