"""Checkpoints rebuilt from ONNX graphs, against the weights that the graphs were written from."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from model_sizes import SMALL_ZIPFORMER, zipformer_model

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.export.onnx_writer import write_onnx, write_streaming_onnx
from stateless_transducer.export.quantize import quantize
from stateless_transducer.features import FbankConfig
from stateless_transducer.icefall import from_icefall
from stateless_transducer.model.transducer import build_model
from stateless_transducer.onnx_import.rebuild import rebuild
from stateless_transducer.text.tokens import build_token_table

KWS = Path(__file__).parents[3] / "shared" / "data" / "models" / "kws-zipformer-wenetspeech-3.3M"


def _run(*words):
    return main([str(word) for word in words])


@torch.no_grad()
def _checkpoint(encoder, *, is_trained):
    torch.manual_seed(1)
    tokens = build_token_table(["今天天气"], "char")
    config = zipformer_model(len(tokens), encoder, decoder_dim=12, joiner_dim=20)
    model = build_model(config)
    if is_trained:
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Checkpoint(model.state_dict(), config, FbankConfig(), tokens)


@pytest.fixture(autouse=True)
def short_sound(monkeypatch):
    """Let graphs and models be compared on a second, which has chunks enough."""
    monkeypatch.setattr("stateless_transducer.onnx_import.rebuild._CHECKED_SECONDS", 1)


KINDS = ["offline", *(pytest.param(kind, marks=pytest.mark.sweep) for kind in ("causal", "streaming"))]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A checkpoint and its graphs; equal tensors of a new model share one in the graph."""
    folder, is_streaming = tmp_path_factory.mktemp(request.param), request.param == "streaming"
    checkpoint = _checkpoint(replace(SMALL_ZIPFORMER, causal=request.param != "offline"), is_trained=is_streaming)
    if is_streaming:
        # chunks of 8, 2 and 4 frames: longer and shorter than the kernels of 7 and 5
        write_streaming_onnx(folder, checkpoint, chunk_ms=160, left_ms=320)
    else:
        write_onnx(folder, checkpoint)
    quantize(folder)
    return folder, checkpoint


def _assert_equal(weights, expected, *, tolerance=lambda value: 0.0):
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(("downsample.bias", "downsample_output.bias")):
            # a constant has no effect on a softmax
            value = value - value.mean()
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=name)
        elif not re.search(r"layers\.\d+\.bypass_scale$", name):
            error = (weights[name] - value).abs().max().item()
            # of rounding, after a logarithm
            assert error <= max(tolerance(value), 1e-6 if name.endswith("log_scale") else 0.0), name


def test_graphs_give_the_weights_back(exported, tmp_path, capsys):
    folder, checkpoint = exported
    assert _run("import", "--onnx", folder, "--output", tmp_path / "m.pt") == 0
    rebuilt = load_checkpoint(tmp_path / "m.pt")
    _assert_equal(rebuilt.weights, checkpoint.weights)
    # the sizes of training alone are not in the graphs; neither are the chunks that a graph does not run with
    encoder = replace(rebuilt.model_config.encoder, encoder_unmasked_dim=SMALL_ZIPFORMER.encoder_unmasked_dim)
    chunks = {"chunk_size": SMALL_ZIPFORMER.chunk_size, "left_context_frames": SMALL_ZIPFORMER.left_context_frames}
    assert replace(encoder, **chunks) == checkpoint.model_config.encoder
    assert rebuilt.token_table == checkpoint.token_table
    capsys.readouterr()
    assert _run("info", tmp_path / "m.pt") == 0
    out = capsys.readouterr().out
    assert "encoder.onnx" in out and "encoder_unmasked_dim" in out
    assert max(float(number) for number in re.findall(r"\d\.\de[-+]\d\d", out)) < 1e-5


@pytest.mark.sweep
def test_int8_graphs_give_the_rounded_weights_back(exported, tmp_path):
    folder, checkpoint = exported
    for path in [*folder.glob("*.int8.onnx"), folder / "tokens.txt", folder / "lang.json"]:
        shutil.copy(path, tmp_path)
    rebuilt = rebuild(tmp_path)
    # 7 bits and a sign, in the weights that are matrices
    _assert_equal(
        rebuilt.weights, checkpoint.weights, tolerance=lambda value: value.abs().max().item() / 63 if value.ndim else 0
    )
    assert "weights, to 8 bits" in rebuilt.provenance["rounded"]


@pytest.mark.sweep
def test_streaming_graphs_of_icefall_give_its_weights_back(zipformer_golden, tmp_path):
    folder = shutil.copytree(
        zipformer_golden / "onnx" / "streaming_c16_l64", tmp_path / "graphs", copy_function=shutil.copy
    )
    build_token_table(["".join(chr(0x4E00 + i) for i in range(38))], "char").write(tmp_path / "lang")
    encoder = onnx.load(str(folder / "encoder.onnx"))
    properties = {entry.key: entry.value for entry in encoder.metadata_props if entry.key != "left_context_len"}
    onnx.helper.set_model_props(encoder, properties)
    onnx.save(encoder, str(folder / "encoder.onnx"))
    # shorter than a chunk
    (folder / "test_wavs").mkdir()
    soundfile.write(folder / "test_wavs" / "0.wav", np.zeros(3200), 16000)
    rebuilt = rebuild(folder, sizes={"chunk_size": [16, 32]}, lang_dir=tmp_path / "lang")
    sizes = json.loads((zipformer_golden / "causal" / "config.json").read_text())["config"]
    theirs = torch.load(zipformer_golden / "causal" / "pretrained.pt", weights_only=True)["model"]
    stated = {"num_heads": list(map(int, sizes["num_heads"].split(","))), "chunk_size": [16, 32]}
    heads = ("simple_", "ctc_output")
    expected, config = from_icefall(
        {name: value for name, value in theirs.items() if not name.startswith(heads)},
        {**stated, "left_context_frames": [64]},
    )
    _assert_equal(rebuilt.weights, expected)
    assert rebuilt.model_config == config
    with pytest.raises(ValueError, match="`chunk_size` must contain 16, .* but is 32,64"):
        rebuild(folder, sizes={"chunk_size": [32, 64]}, lang_dir=tmp_path / "lang")


@pytest.mark.sweep
def test_published_model_with_folded_weights_is_rebuilt(tmp_path):
    if not KWS.exists():
        pytest.skip(f"no {KWS}")
    rebuilt = rebuild(KWS)
    difference, *_ = (float(number) for number in re.findall(r"\d\.\de[-+]\d\d", rebuilt.provenance["difference"]))
    assert difference < 1.5e-3
    assert "6 layers" in rebuilt.provenance["positions"] and "12 convolutions" in rebuilt.provenance["edges"]
    assert (rebuilt.model_config.encoder.chunk_size, rebuilt.model_config.encoder.pos_dim) == ((16,), 48)


def test_what_cannot_be_rebuilt_is_refused(exported, talker, tiny_model, tmp_path, capsys, monkeypatch):
    def refuses(*words, message, status=1):
        try:
            found = _run("import", *words, "--output", tmp_path / "m.pt")
        except SystemExit as stopped:
            found = stopped.code
        err = capsys.readouterr().err
        assert found == status and re.search(message, err), err
        assert not (tmp_path / "m.pt").exists()

    folder, checkpoint = exported
    refuses(message="Pass `--model` or `--onnx`; both are missing", status=2)
    refuses("--onnx", folder, "--model", "m.pt", message="either `--model` or `--onnx`", status=2)
    refuses("--onnx", folder, "--encoder", "conformer", message="`--encoder` is conformer, but .*`--model`", status=2)
    refuses("--onnx", talker / "onnx", message="is a conformer, .* zipformer2 is supported")
    refuses("--onnx", tiny_model("zipformer").folder, message="is a zipformer, .* zipformer2 is supported")
    # labelled as one, but something else
    refuses("--onnx", tiny_model("zipformer2").folder, message="encoder.* no Zipformer can be rebuilt")
    if "streaming" in folder.name:
        monkeypatch.setattr("stateless_transducer.onnx_import.rebuild._CHECKED_SECONDS", 0.2)
        refuses("--onnx", folder, message="encoder.onnx: a chunk has 29 feature frames, but at most 20 can be")
    if not checkpoint.model_config.encoder.causal:
        damaged = tmp_path / "damaged"
        shutil.copytree(folder, damaged, ignore=shutil.ignore_patterns("*.int8.onnx", "model.json"))
        model = onnx.load(str(damaged / "encoder.onnx"))
        for node in model.graph.node:
            # another operation, with the same weights
            if node.op_type == "Sigmoid":
                node.op_type = "Tanh"
        onnx.save(model, str(damaged / "encoder.onnx"))
        refuses("--onnx", damaged, message="the rebuilt model differ by more than 0.001")
        # values that are not numbers, in one of three graphs
        shutil.copy(folder / "encoder.onnx", damaged / "encoder.onnx")
        model = onnx.load(str(damaged / "decoder.onnx"))
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 1 and tensor.data_type == onnx.TensorProto.FLOAT:
                values = np.full(tensor.dims, np.nan, np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(damaged / "decoder.onnx"))
        refuses("--onnx", damaged, message="differ by more than 0.001 .*decoder nan")
