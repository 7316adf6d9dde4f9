"""The house rules of docs/architecture.md: downward imports only, files that fit a head."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import stateless_transducer

PACKAGE = Path(stateless_transducer.__file__).parent
FLOORS = (
    {"files", "audio_files", "processes", "threads", "options", "wording"},
    {"ops", "text", "audio", "features", "products", "weight_files", "model_files", "published_models"},
    {"model"},
    {"checkpoint", "decoding", "data", "icefall_layouts"},
    {"training", "icefall", "export", "hub"},
    {"recognition", "onnx_import"},
    {"evaluation", "server"},
    {"commands"},
    {"cli"},
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name[:2] != "__")


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def _imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lead_downward(path):
    room = _room(path)
    for line, module in _imports(path):
        parts = module.split(".")
        if parts[0] != "stateless_transducer" or len(parts) == 1 or parts[1] == room:
            continue
        assert _floor(parts[1]) < _floor(room), f"{path}:{line}: {room} imports {parts[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lhotse_lives_in_data(path):
    if _room(path) != "data":
        assert not [line for line, module in _imports(path) if module.split(".")[0] == "lhotse"]


@pytest.mark.parametrize(
    "path",
    [p for folder in (PACKAGE, Path(__file__).parent) for p in sorted(folder.rglob("*.py"))],
    ids=lambda path: path.name,
)
def test_file_fits(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
