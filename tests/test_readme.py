"""What the README shows of Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example_of_the_loss_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "joint_transducer_loss(" in block)
    names: dict = {}
    exec(example, names)
    assert names["nll"].sum().item() > 0
    # both doors say the same
    assert abs(names["nll"].sum().item() - names["loss"].item()) < 1e-3
    assert names["encoder_out"].grad is not None
