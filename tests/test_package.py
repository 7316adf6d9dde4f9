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
    """`torch._dynamo` takes as long to import as torch itself; only `torch.compile` needs it, not opening a model."""
    program = (
        "import stateless_transducer, sys; print('torch' in sys.modules)\n"
        "from stateless_transducer.checkpoint import skeleton\n"
        "from stateless_transducer.model.config import ConformerConfig, ModelConfig, ZipformerConfig\n"
        "for encoder in (ConformerConfig(), ZipformerConfig()):\n"
        "    skeleton(ModelConfig(9, encoder, encoder.usual_decoder, encoder.usual_joiner))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert printed == "False\nFalse\n"


WITHOUT_UNIX = """
import os, pkgutil, signal, sys
from importlib import import_module
from pathlib import Path
import lhotse, torch, uvicorn

for module in ("fcntl", "resource"):
    sys.modules[module] = None
for name in ("getuid", "sysconf", "sched_getaffinity"):
    delattr(os, name)
del signal.pthread_sigmask

import stateless_transducer
for module in pkgutil.walk_packages(stateless_transducer.__path__, "stateless_transducer."):
    if not module.name.endswith("__main__"):
        import_module(module.name)

from stateless_transducer.files import write_text
from stateless_transducer.processes import signals_blocked
from stateless_transducer.training.progress import peak_bytes
from stateless_transducer.training.run_lock import run_lock
from stateless_transducer.training.sizing import this_machine
from stateless_transducer.training.stopping import StopRequest

# other packages look at it while they are imported
sys.platform = "win32"
warnings = []
with run_lock(Path("."), "transducer train", warn=warnings.append), StopRequest(is_announced=True) as stop:
    with signals_blocked([signal.SIGTERM]):
        write_text(Path("a.txt"), "written")
    signal.raise_signal(signal.SIGTERM)
    this_machine()
print(len(warnings), stop.name, peak_bytes(), Path("a.txt").read_text())
"""


@pytest.mark.sweep
def test_package_works_without_the_calls_that_windows_lacks(tmp_path):
    """Not a test on Windows: it shows that no module needs these calls to be imported, to write and to stop."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout == "1 SIGTERM 0.0 written\n", run.stderr
