"""The notebooks run in a clone without other files, and are committed with their outputs."""

from __future__ import annotations

import os
import re

import kaldialign
import pytest
from recipe_folder import ROOT, Folder

nbformat = pytest.importorskip("nbformat", reason="in the group dev")
nbclient = pytest.importorskip("nbclient", reason="in the group dev")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRANSCRIBE, OWN_RECORDINGS = ROOT / "notebooks" / "transcribe.ipynb", ROOT / "notebooks" / "own_recordings.ipynb"
LINE = re.compile(r"^([零一二三四五六七八九]*)  (\w+)$", re.MULTILINE)
METHODS = ["greedy_search", "beam_search", "modified_beam_search"]


def _run(path, tmp_path, monkeypatch, smaller):
    """The notebook with the outputs of a run in an empty folder, with smaller numbers behind some of its words."""
    pytest.importorskip("espeakng_loader", reason="espeak-ng speaks: pip install '.[demo]'")
    folder, notebook = Folder(tmp_path), nbformat.read(path, as_version=4)
    (tmp_path / "temporary").mkdir()
    for name, value in {**folder.environment, "TMPDIR": str(tmp_path / "temporary")}.items():
        monkeypatch.setenv(name, value)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    for words, number in smaller.items():
        (cell,) = (cell for cell in notebook.cells if words in cell.source)
        cell.source = re.sub(rf"{re.escape(words)}\d+", f"{words}{number}", cell.source)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=dict(os.environ))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "temporary"], "nothing is written beside it"
    return notebook


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _printed(notebook):
    return "".join(output["text"] for output in _outputs(notebook) if output["output_type"] == "stream")


@pytest.mark.sweep
def test_notebook_trains_a_model_and_understands_a_sound(tmp_path, monkeypatch):
    notebook = _run(TRANSCRIBE, tmp_path, monkeypatch, {"--num-epochs ": 8})
    (text, _), *found = LINE.findall(_printed(notebook))
    assert [method for _, method in found] == METHODS
    for said, method in found:
        # machines differ in rounding, and so do models trained on them
        assert kaldialign.edit_distance(list(text), list(said))["total"] <= 1, method
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 2


@pytest.mark.sweep
def test_notebook_trains_on_recordings_with_a_text_beside_each(tmp_path, monkeypatch):
    """Too few to learn from them, as the other notebook does."""
    notebook = _run(OWN_RECORDINGS, tmp_path, monkeypatch, {"--num-epochs ": 6, "for n in range(": 60})
    assert re.search(r"^dev +modified_beam_search +[0-9.]+ ", _printed(notebook), re.MULTILINE)
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_and_of_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = _outputs(notebook)
    assert not [each for each in outputs if each["output_type"] == "error" or each.get("name") == "stderr"]
    assert not re.search(r"(?:^|\s)/\w|\x1b", _printed(notebook), re.MULTILINE), "paths and colors"
    assert path.stat().st_size < 400_000


def test_committed_searches_are_all_there():
    printed = _printed(nbformat.read(TRANSCRIBE, as_version=4))
    assert [method for _, method in LINE.findall(printed)] == ["said", *METHODS]
