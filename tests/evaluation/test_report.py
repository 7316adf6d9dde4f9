from __future__ import annotations

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
    assert ("<th>reference</th>" in page) == bool(reference)
    assert "nothing" not in page
