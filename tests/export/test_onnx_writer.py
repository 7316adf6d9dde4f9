from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from model_sizes import resized
from tiny_talker import SIZES, TOKENS

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint
from stateless_transducer.export.onnx_writer import differs_from_clients, write_onnx
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import SPECIAL, TokenTable


@pytest.fixture(scope="module")
def model(talker):
    return load_checkpoint(talker / "model.pt").model()


def _session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


@pytest.fixture(scope="module")
def encoder(talker):
    session = _session(talker / "onnx" / "encoder.onnx")
    return lambda x, x_lens: session.run(None, {"x": np.asarray(x), "x_lens": np.asarray(x_lens)})


# traced with 2 and 40
@pytest.mark.parametrize(("N", "T"), [(1, 11), (3, 12), (2, 40), (5, 41), (1, 333), (2, 2000)])
def test_encoder_gives_what_torch_gives(model, encoder, N, T):
    x, x_lens = torch.randn(N, T, 80), torch.linspace(T, 7, N).long()
    with torch.inference_mode():
        wanted, wanted_lens = model.encode(x, x_lens)
    found, lens = encoder(x, x_lens)
    assert found.shape == wanted.shape and lens.tolist() == wanted_lens.tolist() and lens.dtype == np.int64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_utterance_in_a_padded_batch_gives_what_it_gives_alone(encoder):
    x, x_lens = torch.randn(4, 150, 80), torch.tensor([150, 91, 30, 8])
    together, lens = encoder(x, x_lens)
    for i, count in enumerate(x_lens.tolist()):
        alone, (length,) = encoder(x[i : i + 1, :count], [count])
        assert length == lens[i]
        np.testing.assert_allclose(together[i, :length], alone[0, :length], rtol=0, atol=1e-4)
        # whatever stands behind the end
        x[i, count:] = 1e3
    np.testing.assert_allclose(encoder(x, x_lens)[0][3, :1], together[3, :1], rtol=0, atol=1e-4)


CHANGES = {
    "mean": {"feature_norm": "mean"},
    "level": {"feature_norm": "level"},
    "global": {"feature_norm": "global"},
    # trained on chunks alone, it has chunks in whole utterances as well
    "chunks": {"causal": True, "chunk_size": (8,), "left_context_frames": (16,)},
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    ("N", "T"), [(3, 41), *(pytest.param(*each, marks=pytest.mark.sweep) for each in ((1, 12), (2, 700)))]
)
def test_normalization_and_chunks_are_in_the_graph(tmp_path, N, T, name):
    network, session = _exported(tmp_path, **CHANGES[name]), _session(tmp_path / "encoder.onnx")
    x, x_lens = torch.randn(N, T, 80) * 2 - 8, torch.linspace(T, 7, N).long()
    with torch.inference_mode():
        wanted, _ = network.encode(x, x_lens)
    found, lens = session.run(None, {"x": x.numpy(), "x_lens": x_lens.numpy()})
    for i, count in enumerate(lens):
        np.testing.assert_allclose(found[i, :count], wanted[i, :count], rtol=0, atol=1e-4)


@pytest.mark.parametrize("T", range(9))
def test_few_frames_are_no_error(encoder, T):
    found, lens = encoder(torch.randn(2, T, 80), [T, 0])
    assert lens.tolist() == SIZES.encoder.subsampling.lens(np.array([T, 0])).tolist() == [int(T >= 7), 0]
    assert found.shape[1] >= lens.max() and np.isfinite(found).all()


def _exported(folder, **changes):
    sizes = resized(SIZES, num_layers=1, **changes)
    network = build_model(sizes)
    if network.normalizer.norm == "global":
        network.normalizer.fit([(torch.randn(1, 90, 80) * 2 - 8, torch.tensor([90]))])
    with torch.no_grad():
        # a trained decoder would differ where it should
        network.decoder.embedding.weight[1:] *= 3
    write_onnx(folder, Checkpoint(network.state_dict(), sizes, FbankConfig(), TOKENS))
    return network.eval()


@pytest.mark.parametrize("context_size", [2, *(pytest.param(size, marks=pytest.mark.sweep) for size in (1, 3))])
def test_decoder_takes_a_start_that_is_no_token(tmp_path, context_size):
    network, session = _exported(tmp_path, context_size=context_size), _session(tmp_path / "decoder.onnx")
    y = torch.tensor([[-1] * (context_size - 1) + [0], [-1] * (context_size - 1) + [5], [3, 4, 8][:context_size]])
    with torch.inference_mode():
        wanted = network.predict(y.clamp(min=0))
    (found,) = session.run(None, {"y": y.numpy()})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_joiner_gives_logits(talker, model):
    pair = torch.randn(2, 5, SIZES.joiner.joiner_dim)
    with torch.inference_mode():
        wanted = model.join(*pair)
    inputs = {"encoder_out": pair[0].numpy(), "decoder_out": pair[1].numpy()}
    (found,) = _session(talker / "onnx" / "joiner.onnx").run(None, inputs)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


NAMES = {
    "encoder": (["x", "x_lens"], ["encoder_out", "encoder_out_lens"]),
    "decoder": (["y"], ["decoder_out"]),
    "joiner": (["encoder_out", "decoder_out"], ["logit"]),
}
METADATA = {
    "encoder": {"model_type": "conformer", "version": "1"},
    "decoder": {"context_size": "2", "vocab_size": str(len(TOKENS))},
    "joiner": {"joiner_dim": "32"},
}


@pytest.mark.parametrize("suffix", [".onnx", ".int8.onnx"])
@pytest.mark.parametrize("role", NAMES)
def test_graph_has_what_the_clients_ask_for(talker, role, suffix):
    graph = onnx.load(talker / "onnx" / f"{role}{suffix}")
    onnx.checker.check_model(graph, full_check=suffix == ".onnx")
    # the oldest onnxruntime in use takes no more
    assert graph.ir_version <= 9 and {each.version for each in graph.opset_import if not each.domain} == {17}
    assert not any(each.external_data for each in graph.graph.initializer)
    session = _session(talker / "onnx" / f"{role}{suffix}")
    names = tuple([each.name for each in given] for given in (session.get_inputs(), session.get_outputs()))
    assert names == NAMES[role]
    types = {each.name: each.type for each in session.get_inputs() + session.get_outputs()}
    integers = {"x_lens", "encoder_out_lens", "y"}
    assert types == {name: f"tensor({'int64' if name in integers else 'float'})" for name in types}
    assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == "N"
    found = session.get_modelmeta().custom_metadata_map
    assert METADATA[role].items() <= found.items()


def test_front_end_travels_with_the_encoder(talker):
    metadata = _session(talker / "onnx" / "encoder.onnx").get_modelmeta().custom_metadata_map
    assert FbankConfig(**json.loads(metadata["fbank"])) == FbankConfig()


def test_nothing_is_printed(tmp_path, capfd):
    _exported(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_model_stays_as_it_was(talker, tmp_path):
    """The exporter must not leave it in training mode, nor change a weight."""
    checkpoint = load_checkpoint(talker / "model.pt")
    before = {name: value.clone() for name, value in checkpoint.weights.items()}
    write_onnx(tmp_path, checkpoint)
    assert all(torch.equal(checkpoint.weights[name], value) for name, value in before.items())
    assert not checkpoint.model().training


def test_blank_that_clients_do_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="The blank of an exported model must be token 0, but here it is 3"):
        _exported(tmp_path, blank_id=3)


def test_features_that_clients_do_not_compute_are_named():
    assert differs_from_clients(FbankConfig()) == ""
    assert differs_from_clients(FbankConfig(8000, 40)) == "sample_rate 8000, num_mel_bins 40"


def test_words_are_marked_for_clients_and_read_without_marks(tmp_path):
    table = TokenTable((*SPECIAL, "one", "two"), "word")
    table.write(tmp_path, mark_words=True)
    assert (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()[2:] == ["<unk> 2", "▁one 3", "▁two 4"]
    assert TokenTable.read(tmp_path) == table
