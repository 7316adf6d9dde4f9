"""The house rules of docs/architecture.md: downward imports only, files that fit a head."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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


def _imports() -> Iterator[tuple[Path, int, str]]:
    """File, line and module of each import."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                yield path, node.lineno, node.module or ""
            elif isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name) for alias in node.names)


def test_imports_lead_downward_and_lhotse_lives_in_data():
    wrong = []
    for path, line, module in _imports():
        room, parts = _room(path), module.split(".")
        is_of_another_room = parts[0] == "stateless_transducer" and len(parts) > 1 and parts[1] != room
        if (is_of_another_room and _floor(parts[1]) >= _floor(room)) or (parts[0] == "lhotse" and room != "data"):
            wrong.append(f"{path}:{line}: {room} imports {module}")
    assert not wrong


def test_files_fit():
    paths = [path for folder in (PACKAGE, Path(__file__).parent) for path in sorted(folder.rglob("*.py"))]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {path: length for path, length in lengths.items() if length > 500}
