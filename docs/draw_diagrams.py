#!/usr/bin/env python3
"""Draw docs/model.svg, docs/data_flow.svg and docs/chunks.svg.

python docs/draw_diagrams.py
"""

from __future__ import annotations

from pathlib import Path

from drawing import head, text, write

RULES = """
text { font: 14px sans-serif; }
.title { font-weight: bold; }
.small { font-size: 13px; fill: SOFT; }
.box { stroke: INK; stroke-width: 1.4; }
.learned, .ahead { fill: LEARNED; }
.plain { fill: GROUND; }
.file { fill: FILE; }
.new { fill: NEW; }
.new, .ahead { stroke: GROUND; }
.arrow { stroke: SOFT; stroke-width: 1.6; fill: none; marker-end: url(#arrow); }
.arrow-head { fill: SOFT; }
.state { stroke: ORANGE; stroke-width: 1.6; fill: none; marker-end: url(#state); }
.state-head { fill: ORANGE; }
"""
FRAME = 6
"""Pixels of a feature frame in the drawing of the chunks."""


def box(x: float, y: float, width: float, title: str, detail: str, kind: str) -> list[str]:
    """Draw a box of height 56 with its upper left corner at (x, y)."""
    center = x + width / 2
    return [
        f'<rect class="box {kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="56" rx="8"/>',
        text(center, y + 24, title, "title"),
        text(center, y + 43, detail, "small"),
    ]


def line(points: str, kind: str = "arrow") -> str:
    """Draw a line through points, with an arrowhead at the last one."""
    return f'<path class="{kind}" d="M{points}"/>'


def draw_model() -> tuple[int, int, str, list[str]]:
    """Encoder, decoder and joiner, from bottom to top, with the shapes between them."""
    return (
        760,
        450,
        "The model: encoder, decoder and joiner",
        [
            *box(270, 20, 220, "logits", "(V,) per frame and token", "plain"),
            line("380,125 L380,82"),
            *box(270, 125, 220, "joiner", "linear(tanh(sum))", "learned"),
            line("170,230 L170,153 L264,153"),
            line("590,230 L590,153 L496,153"),
            text(162, 196, "(T, D)", "small", "end"),
            text(598, 196, "(U+1, D)", "small", "start"),
            *box(40, 230, 260, "encoder", "subsampling by 4, conformer layers", "learned"),
            *box(460, 230, 260, "stateless decoder", "embedding, then convolution", "learned"),
            line("170,340 L170,292"),
            line("590,340 L590,292"),
            *box(40, 340, 260, "filter bank", "80 mel bins, 100 frames per second", "plain"),
            *box(460, 340, 260, "last two tokens", "of the transcript or the hypothesis", "plain"),
            line("170,422 L170,402"),
            text(170, 438, "sound", "small"),
        ],
    )


def draw_data_flow() -> tuple[int, int, str, list[str]]:
    """Commands and files from recordings to text."""
    rows = [
        (
            ("recordings, texts", "wav, mp3, tsv, ...", "file"),
            ("transducer prepare", "check, features, tokens", "learned"),
            ("data/", "manifests, fbank, lang", "file"),
            ("transducer train", "loss, checkpoints", "learned"),
        ),
        (
            ("model.pt", "weights, sizes, tokens", "file"),
            ("transducer average", "mean of the last epochs", "learned"),
            ("exp/", "epoch-N.pt, logs", "file"),
        ),
        (
            ("transducer export", "ONNX, int8, TorchScript", "learned"),
            ("transcribe, serve", "sound to text", "learned"),
            ("transducer decode", "error rate with interval", "learned"),
        ),
    ]
    drawn = []
    for row, boxes in enumerate(rows):
        first = 0 if row == 0 else 1
        for column, (title, detail, kind) in enumerate(boxes, first):
            drawn += box(20 + 230 * column, 20 + 120 * row, 190, title, detail, kind)
    return (
        930,
        340,
        "The commands and files from recordings to text",
        [
            *drawn,
            *(line(f"{210 + 230 * column},48 L{244 + 230 * column},48") for column in range(3)),
            line("805,76 L805,134"),
            line("710,168 L676,168"),
            line("480,168 L446,168"),
            line("345,196 L345,254"),
            line("440,182 L460,182 L460,226 L575,226 L575,254"),
            line("805,196 L805,254"),
        ],
    )


def draw_chunks() -> tuple[int, int, str, list[str]]:
    """Chunks of 45 feature frames, each 32 frames after the one before, and the states handed on."""
    chunk, shift, left = 45, 32, 110
    drawn = []
    for number in range(3):
        x, y = left + number * shift * FRAME, 30 + number * 74
        drawn.append(text(left - 12, y + 22, f"chunk {number + 1}", "title", "end"))
        for frame in range(chunk):
            kind = "new" if frame < shift else "ahead"
            drawn.append(
                f'<rect class="{kind}" x="{x + frame * FRAME}" y="{y}" width="{FRAME}" height="34" stroke-width="0.5"/>'
            )
        if number < 2:
            start = x + shift * FRAME / 2
            drawn.append(line(f"{start:g},{y + 38} L{start:g},{y + 91} L{x + shift * FRAME - 5:g},{y + 91}", "state"))
            drawn.append(text(start + 8, y + 62, "states", "small", "start"))
    width, axis = left + (2 * shift + chunk) * FRAME + 40, 30 + 3 * 74
    drawn.append(line(f"{left},{axis} L{width - 20},{axis}"))
    for tenth in range(0, 11, 2):
        drawn.append(text(left + tenth * 10 * FRAME, axis + 20, f"{tenth / 10:g} s", "small"))
    legend = axis + 46
    drawn += [
        f'<rect class="new" x="{left}" y="{legend - 12}" width="24" height="14"/>',
        text(left + 32, legend, "frames that the chunk consumes (32)", "small", "start"),
        f'<rect class="ahead" x="{left + 270}" y="{legend - 12}" width="24" height="14"/>',
        text(left + 302, legend, "look-ahead, read again by the next chunk (13)", "small", "start"),
    ]
    return width, legend + 20, "Overlapping chunks of a streaming model and the states between them", drawn


def main() -> None:
    """Write the drawings beside this script."""
    for name, (width, height, label, drawn) in {
        "model": draw_model(),
        "data_flow": draw_data_flow(),
        "chunks": draw_chunks(),
    }.items():
        path = Path(__file__).with_name(f"{name}.svg")
        write(path, width, height, label, RULES, head("arrow") + head("state"), drawn)


if __name__ == "__main__":
    main()
