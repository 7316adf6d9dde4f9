from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stateless_transducer


@pytest.mark.parametrize("name", stateless_transducer.__all__)
def test_public_name_is_there(name):
    assert getattr(stateless_transducer, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stateless_transducer.nothing  # noqa: B018


def test_public_names_are_listed_and_typed():
    """What is loaded when it is asked for is spelt out a second time for those who only read: the same, from there."""
    assert set(stateless_transducer.__all__) <= set(dir(stateless_transducer))
    folder = Path(stateless_transducer.__file__).parent
    assert (folder / "py.typed").exists()
    stub = (folder / "__init__.pyi").read_text()
    typed = re.findall(r"from stateless_transducer\.(\S+) import (\w+) as \2\n", stub)
    assert {name: module for module, name in typed} == stateless_transducer._MODULES


def test_importing_loads_neither_torch_nor_its_compiler_before_they_are_needed():
    """`torch._dynamo` takes as long to import as torch itself; only `torch.compile` needs it."""
    program = (
        "import stateless_transducer, sys; print('torch' in sys.modules)\n"
        "import stateless_transducer.model.transducer; print('torch._dynamo' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert printed == "False\nFalse\n"
