from __future__ import annotations

import random
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from tiny_offline import SYMBOLS, VOCAB_SIZE, write_offline
from tiny_talker import TOKENS

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.export.onnx_model import OnnxTransducer
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.recognition.model import open_model
from stateless_transducer.text.symbols import SymbolTable


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return write_offline(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def folder(foreign, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(foreign, tmp_path / "model")


def test_answers_are_torchs(talker):
    ours, torchs = OnnxTransducer.open(talker / "onnx"), FrozenTransducer(load_checkpoint(talker / "model.pt").model())
    assert (ours.blank_id, ours.context_size, ours.vocab_size, ours.fbank_config) == (0, 2, len(TOKENS), FbankConfig())
    features, lens = torch.randn(3, 90, 80), torch.tensor([90, 60, 5])
    found, wanted = ours.encode(features.numpy(), lens.numpy()), torchs.encode(features, lens)
    assert found[1].tolist() == wanted[1].tolist()
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-4)
    contexts = torch.tensor([[0, 0], [0, 4], [4, 5]])
    np.testing.assert_allclose(ours.predict(contexts.numpy()), torchs.predict(contexts), rtol=0, atol=1e-6)
    pair = torch.randn(2, 3, 32)
    np.testing.assert_allclose(ours.join(*pair.numpy()), torchs.join(*pair), rtol=0, atol=1e-5)


def test_start_of_others_is_a_blank_with_nothing_before_it(foreign):
    """Their blank has an embedding, and they are trained with zeros before it."""
    model = OnnxTransducer.open(foreign)
    contexts = np.array([[0, 0], [-1, 0], [0, 4]])
    given = contexts.copy()
    start, wanted, later = model.predict(contexts)
    assert (start == wanted).all() and not np.allclose(start, later) and (contexts == given).all()
    # the graph itself tells a blank from nothing
    assert not np.allclose(start, model._decoder.run(np.array([[0, 0]]))[0])


@pytest.mark.parametrize("width", [0, 8, 30, 77, 100])
def test_others_get_utterances_as_wide_as_the_longest(foreign, width):
    """Their masks are that wide; fewer than 9 frames are an error of theirs."""
    model, rng = OnnxTransducer.open(foreign), np.random.default_rng(width)
    features = rng.standard_normal((3, 100, 80)).astype(np.float32)
    lens = np.array([width, width // 2, 0])
    encoder_out, found = model.encode(features, lens)
    assert found.tolist() == [(length - 9) // 4 + 1 if length >= 9 else 0 for length in lens.tolist()]
    for i in range(2):
        alone, _ = model.encode(features[i : i + 1, : lens[i]], lens[i : i + 1])
        np.testing.assert_allclose(encoder_out[i, : found[i]], alone[0, : found[i]], rtol=0, atol=1e-4)


def test_utterances_do_not_disturb_one_another_in_quantized_graphs(talker):
    model, exact = OnnxTransducer.open(talker / "onnx", precision="int8"), OnnxTransducer.open(talker / "onnx")
    rng = np.random.default_rng(0)
    features, lens = rng.standard_normal((3, 80, 80)).astype(np.float32), np.array([80, 50, 9])
    features *= np.array([1, 5, 3], np.float32)[:, None, None]
    encoder_out, found = model.encode(features, lens)
    assert found.tolist() == exact.encode(features, lens)[1].tolist()
    rows = encoder_out[:, 0]
    for i in range(3):
        alone, _ = model.encode(features[i : i + 1, : lens[i]], lens[i : i + 1])
        assert (encoder_out[i, : found[i]] == alone[0, : found[i]]).all()
        assert (model.join(rows[i : i + 1], rows[i : i + 1]) == model.join(rows, rows)[i]).all()
    # in one call, since the scale of its activations is fixed
    assert not model._joiner.is_single and model._encoder.is_single
    assert 0 < np.abs(model.join(rows, rows) - exact.join(rows, rows)).max() < 0.5


@pytest.mark.parametrize("layout", ["plain", "one deeper", "apart"])
def test_folder_may_hold_folders(foreign, tmp_path, layout):
    """As onnx-asr wants it, and as vosk's are."""
    folder = tmp_path / "model"
    shutil.copytree(foreign, folder if layout == "plain" else folder / "am")
    if layout == "apart":
        (folder / "lang").mkdir()
        (folder / "am" / "tokens.txt").rename(folder / "lang" / "tokens.txt")
    model = open_model(folder)
    assert isinstance(model.token_table, SymbolTable) and model.token_table.symbols[1] == SYMBOLS[1]


def test_precisions_are_told_apart(folder):
    with pytest.raises(ValueError, match="holds no encoder of `precision` int8, but encoder-epoch-99-avg-1.onnx: `p"):
        OnnxTransducer.open(folder, precision="int8")
    (folder / "encoder-epoch-99-avg-1.onnx").rename(folder / "encoder-epoch-99-avg-1.int8.onnx")
    # decoder and joiner are taken as they are
    assert OnnxTransducer.open(folder, precision="int8").vocab_size == VOCAB_SIZE
    with pytest.raises(ValueError, match="holds no encoder of `precision` fp32, but .*int8.onnx: `precision=int8`"):
        OnnxTransducer.open(folder)


def _graph(folder, role):
    (path,) = folder.glob(f"{role}*.onnx")
    return path


def _with_metadata(path, **changes):
    graph = onnx.load(path)
    entries = {each.key: each.value for each in graph.metadata_props} | changes
    onnx.helper.set_model_props(graph, {key: value for key, value in entries.items() if value is not None})
    onnx.save(graph, path)


BAD = {
    "absent": (lambda f: shutil.rmtree(f), "model: no such model; it is a checkpoint, a folder"),
    "no-joiner": (lambda f: _graph(f, "joiner").unlink(), r"model: holds no joiner\*.onnx"),
    "two-encoders": (
        lambda f: shutil.copy(_graph(f, "encoder"), f / "encoder.onnx"),
        "several graphs of the encoder: encoder-epoch-99-avg-1.onnx, encoder.onnx",
    ),
    "text": (lambda f: _graph(f, "encoder").write_text("hello"), "encoder.*onnx: onnxruntime cannot open the graph: "),
    "pointer": (
        lambda f: _graph(f, "decoder").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "decoder.* is a Git LFS pointer",
    ),
    "exchanged": (
        lambda f: shutil.copy(_graph(f, "joiner"), _graph(f, "encoder")),
        "encoder.*: must take x and x_lens and give 2 outputs, but takes encoder_out, decoder_out and gives 1",
    ),
    "no-context-size": (
        lambda f: _with_metadata(_graph(f, "decoder"), context_size=None),
        "decoder.*: the metadata lack `context_size`",
    ),
    "other-vocabulary": (
        lambda f: _with_metadata(_graph(f, "decoder"), vocab_size="500"),
        "joiner.*: gives 20 logits, but `vocab_size` of .*decoder.* is 500",
    ),
    "other-front-end": (
        lambda f: _with_metadata(_graph(f, "encoder"), fbank='{"num_mel_bins": 40}'),
        "encoder.*: takes 80 mel bins, but its front end has 40",
    ),
    "no-front-end": (
        lambda f: _with_metadata(_graph(f, "encoder"), fbank='{"bins": 40}'),
        "encoder.*: `fbank` in the metadata is no front end",
    ),
    "no-tokens": (lambda f: (f / "tokens.txt").unlink(), "model: holds ONNX graphs, but no tokens.txt"),
    "few-tokens": (lambda f: (f / "tokens.txt").write_text("<blk> 0\na 1\n"), "tokens.txt: lacks id 2, but the model "),
    "gap": (
        lambda f: (f / "tokens.txt").write_text("".join(f"s{i} {i}\n" for i in range(20) if i != 7)),
        "tokens.txt: lacks id 7, .* 0..19",
    ),
    "many-tokens": (
        lambda f: (f / "tokens.txt").write_text("".join(f"s{i} {i}\n" for i in range(500))),
        "tokens.txt: has 's20' with id 20, .* 0..19",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_folder_that_does_not_fit_is_explained(folder, case):
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        open_model(folder)


def test_graph_alone_is_no_model(folder):
    with pytest.raises(ValueError, match="encoder-.*onnx is one of three graphs; name the folder that holds them"):
        open_model(_graph(folder, "encoder"))


def test_streaming_encoder_is_sent_to_the_other_command(tiny_model):
    with pytest.raises(ValueError, match="encoder.onnx is a streaming encoder, .* Use `transducer stream`"):
        open_model(tiny_model().folder)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_streaming_encoder_of_int8_alone_is_sent_there_too(tiny_model, tmp_path, precision):
    for path in tiny_model().folder.iterdir():
        shutil.copy(path, tmp_path / path.name.replace(".onnx", ".int8.onnx"))
    with pytest.raises(ValueError, match="encoder.int8.onnx is a streaming encoder, .* Use `transducer stream`"):
        open_model(tmp_path, precision=precision)


def test_missing_onnxruntime_is_named_with_its_extra(foreign, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"ONNX models need onnxruntime: pip install 'stateless-transducer\[onnx\]'"):
        open_model(foreign)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"precision": "bf16"}, "`precision` bf16 is one of checkpoints; .* is an ONNX folder: fp32, perhaps int8"),
        ({"device": "cuda"}, "`device` cuda: ONNX models run on the CPU only"),
    ],
)
def test_what_a_folder_cannot_do_is_named(foreign, choice, message):
    with pytest.raises(ValueError, match=message):
        open_model(foreign, **choice)


def test_int8_of_a_checkpoint_is_explained(talker):
    with pytest.raises(ValueError, match="`precision` int8 is one of ONNX folders"):
        open_model(talker / "model.pt", precision="int8")


def test_damaged_file_of_an_exported_folder_is_refused_by_name(talker, tmp_path):
    """A flipped bit in a weight makes another model, which onnxruntime runs without a word."""
    generator = random.Random(0)
    for name in ("encoder.onnx", "decoder.int8.onnx", "joiner.onnx", "tokens.txt", "lang.json"):
        folder = tmp_path / name
        shutil.copytree(talker / "onnx", folder)
        content = bytearray((folder / name).read_bytes())
        place = generator.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} differs from its checksum in model.json: .* remove model.json"):
            open_model(folder, precision="int8" if "int8" in name else "fp32")
    # without the card, as folders of other programs are
    (folder / "model.json").unlink()
    (folder / "lang.json").unlink()
    open_model(folder)
