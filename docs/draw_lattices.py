#!/usr/bin/env python3
"""Draw docs/lattices.svg: the cells and arcs that the loss sums over, as `list_cells` lists them.

python docs/draw_lattices.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from stateless_transducer.ops.cells import Topology, list_cells

T, U, TOKENS = 5, 3, "你好吗"
STEP_X, STEP_Y, RADIUS = 62, 58, 15
LEFT, TOP, PANEL = 46, 74, 426
TITLES: dict[Topology, tuple[str, str]] = {
    "standard": ("standard", "a symbol stays on its frame"),
    "modified": ("modified", "a symbol moves on; the last arc is a blank"),
    "modified_open": ("modified, last_arc_is_blank=False", "the last arc may be a symbol"),
}
STYLE = """
text { font: 13px sans-serif; fill: #1f2933; }
.title { font-weight: bold; font-size: 15px; }
.small { font-size: 11px; fill: #52606d; }
.cell { fill: #fff; stroke: #1f2933; stroke-width: 1.4; }
.off { fill: none; stroke: #cbd2d9; stroke-dasharray: 3 3; }
.exit { fill: #1f2933; stroke: #1f2933; }
.blank { stroke: #2b6cb0; stroke-width: 1.6; }
.symbol { stroke: #c05621; stroke-width: 1.6; }
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
    title, subtitle = TITLES[topology]
    x, bottom = panel * PANEL + LEFT, TOP + U * STEP_Y + 42
    svg = [
        f'<text class="title" x="{x - RADIUS}" y="24">{title}</text>',
        f'<text x="{x - RADIUS}" y="43">{subtitle}</text>',
        *arcs,
    ]
    for t in range(T):
        svg.append(f'<text class="small" x="{position(panel, t, 0)[0]}" y="{bottom}" text-anchor="middle">t={t}</text>')
        for u in range(U + 1):
            cx, cy = position(panel, t, u)
            kind = "cell" if (t, u) in listed else "off"
            svg.append(f'<circle class="{kind}" cx="{cx}" cy="{cy}" r="{RADIUS}"/>')
            if kind == "cell":
                said = TOKENS[:u] or "–"
                svg.append(f'<text class="small" x="{cx}" y="{cy + 4}" text-anchor="middle">{said[-1]}</text>')
    cx, cy = position(panel, *exit_cell)
    svg.append(f'<circle class="exit" cx="{cx}" cy="{cy}" r="6"/>')
    return svg


def main() -> None:
    """Write the drawing beside this script."""
    height = TOP + U * STEP_Y + 96
    markers = "".join(
        f'<marker id="{kind}" markerWidth="7" markerHeight="7" refX="2" refY="3" orient="auto">'
        f'<path d="M0,0 L6,3 L0,6 z" fill="{color}"/></marker>'
        for kind, color in (("blank", "#2b6cb0"), ("symbol", "#c05621"))
    )
    legend_y = height - 18
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * PANEL} {height}" role="img" '
        'aria-label="Cells and arcs of the three transducer lattices">',
        f"<style>{STYLE}</style><defs>{markers}</defs>",
        f'<rect width="{3 * PANEL}" height="{height}" fill="#fff"/>',
        *(line for panel, topology in enumerate(TITLES) for line in draw(panel, topology)),
        f'<line class="blank" x1="{LEFT}" y1="{legend_y - 4}" x2="{LEFT + 30}" y2="{legend_y - 4}"/>',
        f'<text x="{LEFT + 40}" y="{legend_y}">blank</text>',
        f'<line class="symbol" x1="{LEFT + 110}" y1="{legend_y - 4}" x2="{LEFT + 140}" y2="{legend_y - 4}"/>',
        f'<text x="{LEFT + 150}" y="{legend_y}">next token</text>',
        f'<text x="{LEFT + 250}" y="{legend_y}">in a cell: the last token said; dashed: on no path, never computed; '
        "black: the end</text>",
        "</svg>",
    ]
    Path(__file__).with_name("lattices.svg").write_text("\n".join(svg) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
