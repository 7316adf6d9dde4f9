"""What the README shows of Python runs as it stands there; what documents link to is there; flags they name exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md"]


def test_example_of_the_loss_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "joint_transducer_loss(" in block)
    names: dict = {}
    exec(example, names)
    assert names["nll"].sum().item() > 0
    # both doors say the same
    assert abs(names["nll"].sum().item() - names["loss"].item()) < 1e-3
    assert names["encoder_out"].grad is not None


def test_example_of_a_model_of_ones_own_runs(capsys):
    text = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Mine" in block)
    exec(example, {"__name__": "example"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2] == "() () 0.0" and len(eval(lines[0].split(") (")[0] + ")")) > 3


def test_links_lead_somewhere():
    assert len(DOCUMENTS) > 10
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
        if not link.startswith("http")
    ]
    assert len(links) > 20
    assert not [
        f"{document.relative_to(ROOT)}: {link}" for document, link in links if not (document.parent / link).exists()
    ]


def test_flags_of_our_commands_exist():
    lines = (ROOT / "tests" / "commands" / "flags.txt").read_text(encoding="utf-8").splitlines()
    flags = {command: set(flags.split()) for command, flags in (line.split(":") for line in lines)}
    seen, missing = 0, []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^transducer (.*)", text, re.MULTILINE):
            typed = line.split("#")[0]
            command = max((name for name in flags if typed.startswith(name + " ")), key=len, default=None)
            if command is None:
                missing.append(f"{document.name}: {line}")
                continue
            used = set(re.findall(r"(?<=\s)--[a-z][a-z0-9-]+", typed))
            seen += len(used)
            missing += [f"{document.name}: {flag} of {command}" for flag in used - flags[command]]
    assert seen > 50
    assert not missing
