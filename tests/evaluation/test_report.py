from __future__ import annotations

import re

import numpy as np
import pytest

from stateless_transducer.evaluation.report import Example, write_report
from stateless_transducer.recognition.transcript import Segment, Transcript


@pytest.mark.parametrize("reference", ["", "今天"])
def test_references_have_a_column_where_there_are_any(tmp_path, reference):
    segment = Segment(0.0, 1.0, "今", ("今",), (0.4,), (-0.1,))
    features = np.zeros((100, 80), np.float32)
    example = Example("a.wav", reference, Transcript("今", 1.0, (segment,)), features)
    write_report(tmp_path / "r.html", title="t", facts={}, exp_dir=tmp_path, examples=[example])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (">reference</th>" in page) == bool(reference)
    assert "nothing" not in page


def test_labels_of_tokens_on_neighboring_frames_do_not_overlap(tmp_path):
    times = (0.0, 0.04, 0.08, 0.96)
    segment = Segment(0.0, 1.0, "今天天气", tuple("今天天气"), times, (-0.1,) * 4)
    example = Example("a.wav", "", Transcript("今天天气", 1.0, (segment,)), np.zeros((100, 40), np.float32))
    write_report(tmp_path / "r.html", title="t", facts={}, exp_dir=tmp_path, examples=[example])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ">mel 40<" in page
    places = [float(x) for x in re.findall(r'x="([\d.]+)"[^>]*class="token"', page)]
    font_px = int(re.search(r"\.token { font-size: (\d+)px", page)[1])
    assert len(places) == 4 and (np.diff(places) >= font_px).all()
    # the others stay above their frame
    (lines,) = {tuple(map(float, re.findall(r'x1="([\d.]+)"', page)))}
    assert places[0] == lines[0] and places[3] == lines[3]
