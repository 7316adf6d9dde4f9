"""The notebook runs for someone who has the repository alone, and is committed with what it shows."""

from __future__ import annotations

import os
import re

import kaldialign
import pytest
from recipe_folder import ROOT, Folder

nbformat = pytest.importorskip("nbformat", reason="in the group dev")
nbclient = pytest.importorskip("nbclient", reason="in the group dev")
NOTEBOOK = ROOT / "notebooks" / "transcribe.ipynb"
LINE = re.compile(r"^([零一二三四五六七八九]*)  (\w+)$", re.MULTILINE)
METHODS = ["greedy_search", "beam_search", "modified_beam_search"]


def _read():
    return nbformat.read(NOTEBOOK, as_version=4)


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _printed(notebook):
    return "".join(output["text"] for output in _outputs(notebook) if output["output_type"] == "stream")


def test_notebook_trains_a_model_and_understands_a_sound(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="espeak-ng speaks: pip install '.[demo]'")
    folder, notebook = Folder(tmp_path), _read()
    (tmp_path / "temporary").mkdir()
    for name, value in {**folder.environment, "TMPDIR": str(tmp_path / "temporary")}.items():
        monkeypatch.setenv(name, value)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=dict(os.environ))
    (text, _), *found = LINE.findall(_printed(notebook))
    assert [method for _, method in found] == METHODS
    for said, method in found:
        # machines differ in rounding, and so do models trained on them
        assert kaldialign.edit_distance(list(text), list(said))["total"] <= 1, method
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "temporary"], "nothing is written beside it"


def test_committed_outputs_are_whole_and_of_no_machine():
    notebook = _read()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = _outputs(notebook)
    assert not [each for each in outputs if each["output_type"] == "error" or each.get("name") == "stderr"]
    assert [method for _, method in LINE.findall(_printed(notebook))] == ["said", *METHODS]
    assert not re.search(r"(?:^|\s)/\w|\x1b", _printed(notebook), re.MULTILINE), "paths and colors"
    assert NOTEBOOK.stat().st_size < 400_000
