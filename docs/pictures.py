#!/usr/bin/env python3
"""Make docs/report.png, docs/page.png and docs/terminal.svg from a finished demo.

python docs/pictures.py demo

Needs Chromium and a font with Chinese characters (Debian: chromium, fonts-wqy-microhei).
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.server.app import Service
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from browser import Page, opened  # noqa: E402
from served import running  # noqa: E402

COMMANDS = (
    "transducer transcribe model.pt a.wav b.wav",
    "transducer transcribe model.pt a.wav --output-format srt",
    "transducer export onnx --model model.pt --output exported",
)
WIDTH = 720
"""Pixels of the terminal."""
STYLE = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.command { fill: #8fd18f; font-weight: bold; }
.output { fill: #d8dee9; }
"""


def main() -> None:
    """Make all three pictures."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "model.pt").exists():
        sys.exit("usage: python docs/pictures.py DEMO, the folder of a finished `transducer demo`")
    demo = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        sounds = prepare(demo, Path(folder))
        picture_report(demo, Path(folder), sounds)
        picture_page(demo, Path(folder), sounds)
        picture_terminal(Path(folder))


def prepare(demo: Path, folder: Path) -> Path:
    """Lay the files of the commands into a folder, and return a sound of several sentences."""
    speakers = sorted((demo / "corpus/data_aishell/wav/test").iterdir())
    paths = [path for speaker in speakers for path in sorted(speaker.glob("*.wav"))[:2]]
    (folder / "model.pt").symlink_to(demo / "model.pt")
    for name, path in zip(("a.wav", "b.wav"), paths[::2], strict=False):
        (folder / name).symlink_to(path)
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    pause = np.zeros(16000, np.float32)
    talk = folder / "talk.wav"
    soundfile.write(talk, np.concatenate([part for wave in waves for part in (wave, pause)]), 16000)
    return talk


def picture_report(demo: Path, folder: Path, sound: Path) -> None:
    """Take a picture of the report, up to the features of an utterance."""
    with opened((demo / "report.html").as_uri(), folder / "report", microphone=sound) as page:
        page.resize(1080, 100)
        bottom = page.evaluate("document.querySelector('svg').getBoundingClientRect().bottom")
        page.resize(1080, round(bottom) + 16)
        save(page, "report.png")


def picture_page(demo: Path, folder: Path, sound: Path) -> None:
    """Take a picture of the server's page with a sound and its text."""
    engine = PiecewiseEngine(Recognizer.from_pretrained(demo / "model.pt"), BatchConfig())
    with running(Service(engine, "demo")) as address, opened(address, folder / "page", microphone=sound) as page:
        page.resize(800, 700)
        page.choose("#file", sound)
        page.wait("!document.getElementById('save').hidden")
        page.evaluate("document.getElementById('player').currentTime = spans[3].start + 0.01")
        page.wait("document.querySelector('.now') !== null")
        save(page, "page.png")


def save(page: Page, name: str) -> None:
    """Write the window as PNG with 256 colors, a third of the size."""
    page.evaluate("document.documentElement.style.overflow = 'hidden'")
    # until pictures are decoded and laid out
    time.sleep(0.5)
    Image.open(io.BytesIO(page.picture())).convert("RGB").quantize(256).save(DOCS / name, optimize=True)


def picture_terminal(folder: Path) -> None:
    """Draw the commands and their output as a terminal."""
    lines: list[tuple[str, str]] = []
    for command in COMMANDS:
        run = subprocess.run(
            command, shell=True, cwd=folder, text=True, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        lines += [("command", f"$ {command}"), *(("output", line) for line in run.stdout.expandtabs(8).splitlines())]
        lines.append(("output", ""))
    height = 20 * len(lines) + 36
    texts = [
        f'<text class="{kind}" x="20" y="{52 + 20 * number}" xml:space="preserve">{escape(line)}</text>'
        for number, (kind, line) in enumerate(lines)
        if line
    ]
    dots = [
        f'<circle cx="{22 + 20 * place}" cy="20" r="6" fill="{color}"/>'
        for place, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        f"<title>A terminal with the commands {', '.join(COMMANDS)} and what they print</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#1f2430"/>',
        *dots,
        *texts,
        "</svg>",
    ]
    (DOCS / "terminal.svg").write_text("\n".join(svg) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
