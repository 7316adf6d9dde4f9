"""Parts of the diagrams: colors for light and dark pages, text, and the frame of an SVG file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

LIGHT = {
    "ground": "#ffffff",
    "ink": "#1f2933",
    "soft": "#52606d",
    "faint": "#cbd2d9",
    "blue": "#2b6cb0",
    "orange": "#c05621",
    "learned": "#d9e8f7",
    "file": "#fdf0dc",
    "new": "#7fb2e5",
}
DARK = {
    "ground": "#1b2027",
    "ink": "#e4e9ef",
    "soft": "#aab4c0",
    "faint": "#4a5563",
    "blue": "#74b0f0",
    "orange": "#f09a62",
    "learned": "#23405e",
    "file": "#4d3d20",
    "new": "#4b8fd2",
}
"""The same colors in a dark color scheme."""
FRAME = ".ground { fill: GROUND; stroke: FAINT; } text { fill: INK; }"


def style(rules: str) -> str:
    """Return a style sheet for both color schemes.

    The page that shows a drawing may be light or dark, whatever the scheme of the system is. So each drawing brings the
    ground of its scheme, and is legible on any page.

    Args:
        rules: style sheet whose colors are the names of `LIGHT` in capitals, such as ``.box { stroke: INK; }``.
    """
    light, dark = rules, rules
    for name in LIGHT:
        light, dark = light.replace(name.upper(), LIGHT[name]), dark.replace(name.upper(), DARK[name])
    return f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}\n</style>"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """Draw a line of text with its baseline at y."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def head(kind: str, tip: float = 5) -> str:
    """Define the arrowhead ``url(#kind)``; tip: its point that lies on the end of the line."""
    return (
        f'<marker id="{kind}" markerWidth="7" markerHeight="7" refX="{tip:g}" refY="3" orient="auto">'
        f'<path class="{kind}-head" d="M0,0 L6,3 L0,6 z"/></marker>'
    )


def write(path: Path, width: int, height: int, label: str, rules: str, heads: str, drawn: Iterable[str]) -> None:
    """Write a drawing.

    Args:
        path: SVG file.
        width: pixels.
        height: pixels.
        label: description for readers who do not see the drawing.
        rules: style sheet, as for `style`.
        heads: definitions of arrowheads.
        drawn: elements, from back to front.
    """
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(label)}">',
        style(FRAME + rules),
        f"<defs>{heads}</defs>",
        f'<rect class="ground" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        *drawn,
        "</svg>",
    ]
    path.write_text("\n".join(svg) + "\n", encoding="utf-8")
