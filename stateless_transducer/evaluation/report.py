"""Report page of an experiment: losses, error rates, and emission times of tokens.

The page is one HTML file with embedded pictures. Token labels are drawn by the browser, not by matplotlib, whose
own font has no Chinese characters.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from stateless_transducer.files import parse_json, write_text
from stateless_transducer.recognition.transcript import Transcript

_GRAY = "#767676"
"""Color that can be read on a light and on a dark page."""


@dataclass(frozen=True)
class Example:
    """An utterance on the page."""

    name: str
    reference: str
    """Reference transcript; empty if unknown."""
    transcript: Transcript
    features: np.ndarray
    """(T_in, F)"""


def write_report(
    path: Path, *, title: str, facts: Mapping[str, str], exp_dir: Path, examples: Sequence[Example]
) -> None:
    """Write the page.

    Args:
        path: Path of the HTML file.
        title: Title of the page.
        facts: Names and values for the head of the page.
        exp_dir: Folder with ``log/metrics.jsonl`` and ``log/**/result-*.json``.
        examples: Utterances to list; the first one is drawn with its features.
    """
    sections = [
        f"<h1>{escape(title)}</h1>",
        _table(("", ""), [(escape(name), escape(value)) for name, value in facts.items()]),
        "<h2>Error rates</h2>",
        _error_rates(exp_dir),
        "<h2>Loss</h2>",
        "<p>Negative log-likelihood per encoder frame. Training: mean of the recent batches.</p>",
        _loss_picture(read_metrics(exp_dir)),
    ]
    if examples:
        sections += ["<h2>When each token was emitted</h2>", _timeline(examples[0])]
        sections += ["<h2>Transcribed files</h2>", _transcripts(examples)]
    write_text(path, _PAGE.format(title=escape(title), body="\n".join(sections)))


def _transcripts(examples: Sequence[Example]) -> str:
    """Return a table of the transcripts, with a column of references if any is known."""
    if not any(example.reference for example in examples):
        return _table(
            ("file", "recognized"),
            [(escape(example.name), _marked(example.transcript.text)) for example in examples],
        )
    rows = [(escape(e.name), _marked(e.reference), _marked(e.transcript.text)) for e in examples]
    return _table(("file", "reference", "recognized"), rows)


def read_metrics(exp_dir: Path) -> list[dict[str, Any]]:
    """Return the records of training in order; of steps repeated by a resumed run, the later records."""
    path = exp_dir / "log" / "metrics.jsonl"
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        record = _parsed(line, f"{path}:{number}")
        while records and records[-1]["step"] > record["step"]:
            records.pop()
        records.append(record)
    return records


def _parsed(text: bytes, place: object) -> dict[str, Any]:
    try:
        return parse_json(text)
    except ValueError as err:
        raise ValueError(f"{place} is damaged ({err}). Remove it.") from err


def read_results(exp_dir: Path) -> list[dict[str, Any]]:
    """Return the results written by `write_results`, sorted by test set, method and metric."""
    results = [_parsed(path.read_bytes(), path) for path in exp_dir.glob("log/**/result-*.json")]
    return sorted(results, key=lambda r: (r["test_set"], r["method"], r["name"], r["metric"]))


def _error_rates(exp_dir: Path) -> str:
    results = read_results(exp_dir)
    if not results:
        return "<p>Nothing decoded yet: run <code>transducer decode</code>.</p>"
    # null: errors without reference units
    worst = max(max(r["error_rate"] or 0.0 for r in results), 1e-9)
    rows = []
    for r in results:
        bar = f'<div class="bar" style="width:{9 * (r["error_rate"] or 0.0) / worst:.2f}em"></div>'
        rows.append(
            (
                escape(r["test_set"]),
                f'<span class="whole">{_rate(r)}</span>{bar}',
                escape(r["method"]),
                f'<span class="whole">{r["errors"]} of {r["reference_units"]}<br>'
                f"{r['insertions']} ins, {r['deletions']} del, {r['substitutions']} sub</span>",
                f'<span class="quiet">{escape(r["name"])}</span>',
            )
        )
    return _table(("test set", "error rate", "search", "errors", "model and search options"), rows)


def _rate(result: Mapping[str, Any]) -> str:
    """Return the error rate and its interval, absent from files of earlier versions."""
    rate = "-" if result["error_rate"] is None else f"{result['error_rate']:.2f} %"
    interval = result.get("confidence_interval") or {"low": None, "high": None}
    is_finite = None not in (interval["low"], interval["high"])
    spread = f" ({interval['low']:.2f} to {interval['high']:.2f})" if is_finite else ""
    return f"<b>{rate}</b> {escape(result['metric'])}{spread}"


def _loss_picture(metrics: Sequence[Mapping[str, Any]]) -> str:
    # null: the loss is not finite
    curves = {
        name: [(m["step"], m[loss]) for m in metrics if m.get(loss) is not None]
        for name, loss in (("training", "tot_loss"), ("validation", "valid_loss"))
    }
    if not any(curves.values()):
        return "<p>No losses recorded.</p>"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, points), style in zip(curves.items(), ("-", "o-"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    losses = [loss for points in curves.values() for _, loss in points]
    # within a decade, only minor ticks have numbers
    axes.yaxis.set_minor_formatter("{x:g}" if 0 < max(losses) < 10 * min(losses) else "")
    axes.set_xlabel("batches", color=_GRAY)
    axes.set_ylabel("loss per frame", color=_GRAY)
    axes.tick_params(which="both", color=_GRAY, labelcolor=_GRAY)
    axes.spines[:].set_color(_GRAY)
    axes.grid(True, color=_GRAY, alpha=0.3)
    axes.legend(frameon=False, labelcolor=_GRAY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, transparent=True)
    last = ", ".join(f"{name} {points[-1][1]:.3g}" for name, points in curves.items() if points)
    return f'<img class="curves" alt="Loss curves; last values: {last}" src="{_data_url(buffer.getvalue())}">'


def _timeline(example: Example) -> str:
    """Return the features as a picture, low frequencies at the bottom, with a labeled line per emitted token."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.flipud(example.features.T), cmap="magma", format="png")
    transcript, left, top, height = example.transcript, 56, 46, 240
    num_bins = example.features.shape[1]
    scale = max(160.0, min(600.0, 960 / max(transcript.duration, 0.1)))  # pixels per second
    width = transcript.duration * scale
    parts = [
        f'<image href="{_data_url(buffer.getvalue())}" x="{left}" y="{top}" width="{width:.0f}" height="{height}" '
        'preserveAspectRatio="none"/>',
        f'<text x="{left - 6}" y="{top + 10}" text-anchor="end" class="tick">mel {num_bins}</text>',
        f'<text x="{left - 6}" y="{top + height}" text-anchor="end" class="tick">mel 1</text>',
    ]
    right = 0.0
    for token, seconds in zip(transcript.tokens, transcript.times, strict=True):
        x, half = left + seconds * scale, 4 + 9 * _em_width(token)
        # a label moves to the right of the one before it rather than onto it
        label = max(x, right + half)
        right = label + half
        parts.append(f'<path d="M{label:.1f} {top - 18}L{x:.1f} {top - 4}" class="pointer"/>')
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + height}" class="when"/>')
        parts.append(f'<text x="{label:.1f}" y="{top - 23}" text-anchor="middle" class="token">{escape(token)}</text>')
    for tick in np.arange(0, transcript.duration + 1e-6, 0.5):
        x = left + tick * scale
        parts.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle" class="tick">{tick:.1f} s</text>')
    total = max(left + width + 20, right)
    reference = f"reference: <b>{escape(example.reference)}</b>; " if example.reference else ""
    return (
        f"<p>{escape(example.name)}, {transcript.duration:.2f} s; {reference}recognized: "
        f"<b>{_marked(transcript.text)}</b>. Log mel energies (time to the right, pitch upwards); each line is "
        "the frame on which the model emitted the token above it.</p>"
        f'<div class="wide"><svg viewBox="0 0 {total:.0f} {top + height + 26}" width="{total:.0f}" role="img" '
        f'aria-label="Features of {escape(example.name)} with the time of each token">'
        + "".join(parts)
        + "</svg></div>"
    )


def _em_width(token: str) -> float:
    """Return the approximate width of a text in ems: Chinese characters are twice as wide as Latin letters."""
    return sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.55 for character in token)


def _marked(text: str) -> str:
    return escape(text) or "<i>nothing</i>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in header) if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>'


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: light-dark(#222, #ddd); --quiet: light-dark(#666, #999); }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em;
  color: var(--text); }}
h1 {{ font-size: 1.6em; line-height: 1.25; }}
h2 {{ font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #8886; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .25em 1.2em .25em 0; text-align: left; vertical-align: top; }}
th {{ font-weight: 600; color: var(--quiet); white-space: nowrap; }}
.quiet {{ color: var(--quiet); font-size: .9em; }} .whole {{ white-space: nowrap; }} .wide {{ overflow-x: auto; }}
.bar {{ background: #d1605a; height: .4em; border-radius: .2em; margin: .2em 0 .4em; min-width: 1px; }}
.curves {{ width: 880px; max-width: 100%; height: auto; }}
svg {{ height: auto; max-width: 100%; min-width: 640px; }}
.when {{ stroke: #fff; stroke-width: 1.5; stroke-dasharray: 4 3; }}
.pointer {{ stroke: var(--quiet); fill: none; }}
.token {{ font-size: 18px; fill: var(--text); }} .tick {{ font-size: 11px; fill: var(--quiet); }}
</style></head><body>
{body}
</body></html>
"""
