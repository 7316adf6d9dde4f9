"""Fixtures for all tests."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import warm  # noqa: F401 - tells the server what to import
from sounds import write_aishell, write_musan

from stateless_transducer.cli import main
from stateless_transducer.data import executor

if TYPE_CHECKING:
    # fixtures import it, so that the process that starts the others does not wait for the import
    import torch

LONGEST = (
    *("test_tutorial.py", "test_notebook.py", "test_shell_blocks.py", "test_pretended_gpu.py", "test_pipeline.py"),
    *("test_survival.py", "test_streaming_export.py", "test_rebuild.py", "test_decode.py", "test_recipe_scripts.py"),
    *("test_kernels.py", "test_going_back.py", "test_zipformer_training.py", "test_zipformer_commands.py"),
    *("test_documents.py", "test_attack.py", "test_push.py", "test_sizing.py", "test_joint_loss.py"),
    *("test_zipformer_golden.py", "test_distributed.py", "test_borders.py", "test_memory.py", "test_server.py"),
)
"""Files whose tests take longest together, the longest first."""


def pytest_configure(config):
    # a shell's background job ignores SIGINT, and so would the programs that tests start and interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # neither measure the machine nor write into the user's cache
    os.environ["TRANSDUCER_PRODUCTS"] = "default"
    if config.getoption("--device") == "cpu":
        # before Triton is imported: its kernels then run on the CPU, in Python
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tensors of the tests live: cpu, cuda")


@pytest.fixture
def device(request) -> torch.device:
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests are small; threads that wait for one another make them slow on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def warm_pools():
    """Let the processes of `transducer prepare` be forked from the server of `warm`, which has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_START_METHOD", "forkserver")
        yield


@pytest.fixture(autouse=True)
def seeded(request):
    import torch

    # for each kind of device that is not in use, torch.manual_seed keeps a stack trace, which takes 2 ms
    seed = torch.default_generator.manual_seed if request.config.getoption("--device") == "cpu" else torch.manual_seed
    seed(20220301)


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parent / "golden" / "icefall"


@pytest.fixture(scope="session")
def zipformer_golden() -> Path:
    """Results of icefall's Zipformer, beside the checkout: too large for the repository."""
    folder = Path(__file__).parents[2] / "shared" / "golden" / "zipformer"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a folder that the first test process to need it makes, for all of them; tests only read it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                # of an attempt that failed
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def prepared(made_once) -> Path:
    """A corpus in AISHELL's layout and MUSAN, both of noise: aishell/, musan/, and prepared from them, data/."""

    def make(folder: Path) -> None:
        flags = ["--data-dir", str(folder / "data"), "--num-jobs", "1"]
        assert main(["prepare", "aishell", "--corpus-dir", str(write_aishell(folder / "aishell")), *flags]) == 0
        assert main(["prepare", "musan", "--corpus-dir", str(write_musan(folder / "musan")), *flags]) == 0

    return made_once("prepared", make)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Tiny streaming models by kind and shape, each made once."""
    from tiny_streaming import Tiny

    made: dict[tuple[str, bool], Tiny] = {}

    def make(kind: str = "zipformer2", *, one_stream_only: bool = False) -> Tiny:
        key = (kind, one_stream_only)
        if key not in made:
            made[key] = Tiny(tmp_path_factory.mktemp(kind), kind, one_stream_only=one_stream_only)
        return made[key]

    return make


@pytest.fixture(scope="session")
def talker(made_once) -> Path:
    """A trained tiny model: model.pt, and in onnx/ what `transducer export onnx` writes of it, int8 as well."""
    from tiny_talker import train

    from stateless_transducer.checkpoint import save_checkpoint

    def make(folder: Path) -> None:
        save_checkpoint(folder / "model.pt", train())
        flags = ["--checkpoint", str(folder / "model.pt"), "--output", str(folder / "onnx"), "--int8", "true"]
        assert main(["export", "onnx", *flags]) == 0

    return made_once("talker", make)


@pytest.fixture(scope="session")
def live_talker(made_once) -> Path:
    """A checkpoint of a trained tiny causal model."""
    from tiny_talker import CAUSAL_SIZES, train

    from stateless_transducer.checkpoint import save_checkpoint

    def make(folder: Path) -> None:
        save_checkpoint(folder / "model.pt", train(first_steps=80, steps=100, sizes=CAUSAL_SIZES))

    return made_once("live_talker", make) / "model.pt"


_first_cases: dict[str, dict[str, object]] = {}
"""Parameters of the first case of each test."""


def pytest_itemcollected(item):
    """Mark a case that differs from the first one in several parametrizations: combinations are for `make test-all`."""
    if not hasattr(item, "callspec"):
        return
    values = item.callspec.params
    first = _first_cases.setdefault(item.nodeid.partition("[")[0], values)
    # parameters of fixtures have no mark, and count by themselves
    parametrizations = {
        name.strip(): number
        for number, mark in enumerate(item.iter_markers("parametrize"))
        for name in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
    }
    differing = {parametrizations.get(name, name) for name, value in values.items() if value is not first[name]}
    if len(differing) > 1:
        item.add_marker(pytest.mark.sweep)


def pytest_collection_finish():
    """Spare garbage collection the modules and tests of the whole suite."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
