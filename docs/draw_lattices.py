#!/usr/bin/env python3
"""Draw docs/lattices.svg: the cells and arcs that the loss sums over, as `list_cells` lists them.

python docs/draw_lattices.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from drawing import head, text, write

from stateless_transducer.ops.cells import Topology, list_cells

T, U, TOKENS = 5, 3, "你好吗"
STEP_X, STEP_Y, RADIUS = 46, 48, 14
LEFT, TOP, PANEL = 34, 96, 300
TITLES: dict[Topology, tuple[str, str, str]] = {
    "standard": ("standard", "a symbol stays on its frame", ""),
    "modified": ("modified", "a symbol moves to the next frame;", "the last arc is a blank"),
    "modified_open": ("modified", "with last_arc_is_blank=False,", "the last arc may be a symbol"),
}
"""Title and two lines of description."""
RULES = """
text { font: 14px sans-serif; }
.title { font-weight: bold; font-size: 15px; }
.small { font-size: 13px; fill: SOFT; }
.cell { fill: GROUND; stroke: INK; stroke-width: 1.4; }
.off { fill: none; stroke: FAINT; stroke-dasharray: 3 3; }
.exit { fill: INK; stroke: INK; }
.blank { stroke: BLUE; stroke-width: 1.6; }
.blank-head { fill: BLUE; }
.symbol { stroke: ORANGE; stroke-width: 1.6; }
.symbol-head { fill: ORANGE; }
"""


def position(panel: int, t: int, u: int) -> tuple[float, float]:
    """Pixels of cell (t, u): time runs to the right, tokens upwards."""
    return panel * PANEL + LEFT + t * STEP_X, TOP + (U - u) * STEP_Y


def arrow(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    """A line between the rims of two cells."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    gap = RADIUS + 2
    x1, y1 = start[0] + dx / length * gap, start[1] + dy / length * gap
    x2, y2 = end[0] - dx / length * (gap + 4), end[1] - dy / length * (gap + 4)
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" marker-end="url(#{kind})"/>'


def draw(panel: int, topology: Topology) -> list[str]:
    """One lattice."""
    cells = list_cells(torch.tensor([T]), torch.tensor([U]), T, topology, torch.device("cpu"))
    listed = set(zip((cells.frame % T).tolist(), cells.u.tolist(), strict=True))
    # where the last arc of a path leads to
    exit_cell = (T, U)
    places = listed | {exit_cell}
    arcs = []
    for t, u in sorted(listed):
        symbol_end = (t, u + 1) if topology == "standard" else (t + 1, u + 1)
        for end, kind in (((t + 1, u), "blank"), (symbol_end, "symbol")):
            if end in places and (kind == "blank" or u < U):
                arcs.append(arrow(position(panel, t, u), position(panel, *end), kind))
    title, *description = TITLES[topology]
    x, bottom = panel * PANEL + LEFT, TOP + U * STEP_Y + 42
    svg = [
        text(x - RADIUS, 24, title, "title", "start"),
        *(text(x - RADIUS, 44 + 19 * number, line, anchor="start") for number, line in enumerate(description)),
        *arcs,
    ]
    for t in range(T):
        svg.append(text(position(panel, t, 0)[0], bottom, f"t={t}", "small"))
        for u in range(U + 1):
            cx, cy = position(panel, t, u)
            kind = "cell" if (t, u) in listed else "off"
            svg.append(f'<circle class="{kind}" cx="{cx}" cy="{cy}" r="{RADIUS}"/>')
            if kind == "cell":
                svg.append(text(cx, cy + 4.5, TOKENS[u - 1] if u else "–", "small"))
    cx, cy = position(panel, *exit_cell)
    svg.append(f'<circle class="exit" cx="{cx}" cy="{cy}" r="6"/>')
    return svg


def main() -> None:
    """Write the drawing beside this script."""
    height = TOP + U * STEP_Y + 96
    y = height - 18
    write(
        Path(__file__).with_name("lattices.svg"),
        len(TITLES) * PANEL,
        height,
        "Cells and arcs of the three transducer lattices",
        RULES,
        head("blank", tip=2) + head("symbol", tip=2),
        [
            *(line for panel, topology in enumerate(TITLES) for line in draw(panel, topology)),
            f'<line class="blank" x1="{LEFT}" y1="{y - 4}" x2="{LEFT + 30}" y2="{y - 4}"/>',
            text(LEFT + 40, y, "blank", anchor="start"),
            f'<line class="symbol" x1="{LEFT + 110}" y1="{y - 4}" x2="{LEFT + 140}" y2="{y - 4}"/>',
            text(LEFT + 150, y, "next token", anchor="start"),
            text(
                LEFT + 250,
                y,
                "in a cell: its last token; dashed: on no path, never computed; disk: the end",
                anchor="start",
            ),
        ],
    )


if __name__ == "__main__":
    main()
