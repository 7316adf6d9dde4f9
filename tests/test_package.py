from __future__ import annotations

import subprocess
import sys

import pytest

import stateless_transducer


@pytest.mark.parametrize("name", stateless_transducer.__all__)
def test_public_name_is_there(name):
    assert getattr(stateless_transducer, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stateless_transducer.nothing  # noqa: B018


def test_importing_the_package_loads_no_torch():
    program = "import stateless_transducer, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
