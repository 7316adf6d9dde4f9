"""Folders of ONNX graphs are transcribed where there is no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile
from tiny_talker import say

_BLOCKED = "import sys; sys.modules['torch'] = None\n"
# tyro takes a torch of None for one that is there
_COMMAND = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
from stateless_transducer.cli import main
sys.exit(main())
"""


def _run(program, *arguments):
    """Status, standard output and error of a Python without torch."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def wav(tmp_path):
    soundfile.write(tmp_path / "a.wav", say("今天很好", np.random.default_rng(3)), 16000)
    return tmp_path / "a.wav"


def test_command_transcribes_a_folder(talker, wav):
    flags = ["--precision", "int8", "--decoding-method", "modified_beam_search", "--num-threads", "1"]
    status, printed, complained = _run(_COMMAND, "transcribe", talker / "onnx", wav, *flags)
    assert (status, printed) == (0, f"{wav}\t今天很好\n"), complained


@pytest.mark.sweep
def test_hotwords_work(talker, wav):
    program = (
        f"{_BLOCKED}from stateless_transducer import Recognizer, SearchConfig\n"
        "config = SearchConfig('modified_beam_search')\n"
        "recognizer = Recognizer.from_pretrained(sys.argv[1], config, hotwords=['今天'], num_threads=1)\n"
        "print(recognizer.transcribe([sys.argv[2]])[0].text)"
    )
    assert _run(program, talker / "onnx", wav) == (0, "今天很好\n", "")


def test_what_needs_torch_says_what_to_install(talker):
    model = talker / "model.pt"
    commands = {
        f"transcribe {model} a.wav": "torch",
        f"export onnx --checkpoint {model} --output absent": "export",
        f"export icefall --checkpoint {model} --output absent": "torch",
        "train": "train",
    }
    every = _COMMAND.replace("sys.exit(main())", "print(*(main(words.split()) for words in sys.argv[1:]))")
    status, printed, complained = _run(every, *commands)
    assert (status, printed) == (0, "1 1 1 1\n")
    for line, extra in zip(complained.splitlines(), commands.values(), strict=True):
        assert line.endswith(f"No module named 'torch': pip install 'stateless-transducer[{extra}]'.")


def test_recognizer_is_imported_without_what_it_may_not_need():
    program = (
        "import sys; from stateless_transducer.recognition.recognizer import Recognizer\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'lhotse', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    assert _run(program) == (0, "[]\n", "")


@pytest.mark.sweep
def test_folder_is_described(talker):
    status, printed, _ = _run(_COMMAND, "info", talker / "onnx")
    assert status == 0 and "9 of unit char: <blk>" in printed
