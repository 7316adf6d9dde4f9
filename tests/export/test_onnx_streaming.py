from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_streaming import CHUNK_LEN, KINDS, LOOK_AHEAD, VOCAB_SIZE

from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer

T = CHUNK_LEN + LOOK_AHEAD
NUM_CHUNKS = 12


def _features(seed=0, num_chunks=NUM_CHUNKS):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_chunks * CHUNK_LEN + LOOK_AHEAD, 80)) - 6).astype(np.float32)


def _chunk(features, k):
    return features[None, k * CHUNK_LEN : k * CHUNK_LEN + T]


def _encode(model, features, num_chunks=NUM_CHUNKS, state=None):
    """(T', D) of so many chunks, and the state behind them."""
    state, found = state or model.initial_state(), []
    for k in range(num_chunks):
        encoder_out, (state,) = model.encode_chunk(_chunk(features, k), [state])
        found.append(encoder_out[0])
    return np.concatenate(found), state


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_what_the_whole_gives(tiny_model, kind):
    tiny, features = tiny_model(kind), _features()
    found, _ = _encode(OnnxStreamingTransducer.open(tiny.folder), features)
    wanted = tiny.whole(torch.from_numpy(features)).numpy()
    exact = tiny.whole_in_float64(torch.from_numpy(features)).numpy()
    assert found.shape == wanted.shape
    # no further from the truth than float32 is, times a margin for another order of the sums
    assert np.abs(found - exact).max() <= 10 * np.abs(wanted - exact).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_matters(tiny_model, kind):
    """Else the test above would prove little."""
    model, features = OnnxStreamingTransducer.open(tiny_model(kind).folder), _features()
    _, state = _encode(model, features, 5)
    wanted, _ = model.encode_chunk(_chunk(features, 5), [state])
    for i in range(len(state)):
        spoilt = [np.zeros_like(each) if place == i else each for place, each in enumerate(state)]
        found, _ = model.encode_chunk(_chunk(features, 5), [spoilt])
        assert np.abs(found - wanted).max() > 1e-4, i


@pytest.mark.parametrize("one_stream_only", [False, True], ids=["batched", "one-stream-only"])
@pytest.mark.parametrize("kind", KINDS)
def test_streams_at_once_give_what_each_alone_gives(tiny_model, kind, one_stream_only):
    model = OnnxStreamingTransducer.open(tiny_model(kind, one_stream_only=one_stream_only).folder)
    # three streams, which are not at the same place
    features, places = [_features(seed) for seed in range(3)], (1, 3, 7)
    states = [_encode(model, each, place)[1] for each, place in zip(features, places, strict=True)]
    now = np.concatenate([_chunk(each, place) for each, place in zip(features, places, strict=True)])
    before = [[each.copy() for each in state] for state in states]
    together, new = model.encode_chunk(now, states)
    for i, state in enumerate(states):
        alone, (own,) = model.encode_chunk(now[i : i + 1], [state])
        # matrix products of another number of rows are summed in another order
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=0, atol=1e-4)
        for a, b, old, kept in zip(new[i], own, state, before[i], strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
            assert (old == kept).all(), "a state was changed"
            assert not isinstance(a.base, np.ndarray) or a.base.size == a.size, (
                "a state keeps those of other streams in memory"
            )


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model().folder, tmp_path / "model")


def test_streams_do_not_disturb_one_another_in_a_quantized_graph(folder):
    plain, int8 = folder / "joiner.onnx", folder / "joiner.int8.onnx"
    # seven bits: without VNNI instructions, sums of eight-bit products saturate
    options = {"weight_type": QuantType.QInt8, "reduce_range": True}
    quantize_dynamic(plain, int8, op_types_to_quantize=["MatMul"], **options)
    model = OnnxStreamingTransducer.open(folder, prefer_int8=True)
    rng = np.random.default_rng(0)
    encoder_out, decoder_out = rng.standard_normal((2, 4, 12), np.float32) * np.array([1, 2, 5, 9])[:, None]
    together = model.join(encoder_out, decoder_out)
    for i in range(4):
        assert (model.join(encoder_out[i : i + 1], decoder_out[i : i + 1]) == together[i]).all()
    exact = OnnxStreamingTransducer.open(folder).join(encoder_out, decoder_out)
    assert 0 < np.abs(together - exact).max() < 0.1 * np.abs(exact).max()


def test_graphs_of_two_precisions_are_told_apart(folder):
    shutil.copy(folder / "encoder.onnx", folder / "encoder.int8.onnx")
    # what is not there in the wanted precision is taken in the other one
    (folder / "decoder.onnx").rename(folder / "decoder.int8.onnx")
    (folder / "encoder.onnx").write_text("not read")
    assert OnnxStreamingTransducer.open(folder, prefer_int8=True).vocab_size == VOCAB_SIZE
    with pytest.raises(ValueError, match="encoder.onnx: onnxruntime cannot open the graph: "):
        OnnxStreamingTransducer.open(folder)


def test_sizes_are_read(tiny_model):
    model = OnnxStreamingTransducer.open(tiny_model().folder)
    assert (model.kind, model.chunk_frames, model.chunk_shift, model.encoder_frames) == ("zipformer2", T, CHUNK_LEN, 2)
    assert (model.fbank_config.num_mel_bins, model.context_size, model.vocab_size) == (80, 2, VOCAB_SIZE)


def _with_metadata(path, **changes):
    graph = onnx.load(path)
    entries = {each.key: each.value for each in graph.metadata_props} | changes
    onnx.helper.set_model_props(graph, {key: value for key, value in entries.items() if value is not None})
    onnx.save(graph, path)


@pytest.mark.parametrize(
    ("role", "changes", "message"),
    [
        ("encoder", {"model_type": "lstm"}, r"`model_type` 'lstm' with 20 states is unknown; known are zipformer2 "),
        ("encoder", {"model_type": None}, r"encoder.onnx: `model_type` '' with 20 states is unknown"),
        ("encoder", {"model_type": "conformer"}, r"`model_type` 'conformer' with 20 states is unknown"),
        ("encoder", {"decode_chunk_len": None}, r"is not a streaming encoder: it takes x, .* lacks `decode_chunk_len`"),
        ("encoder", {"T": None}, r"encoder.onnx: the metadata lack `T`"),
        ("encoder", {"T": "many"}, r"encoder.onnx: `T` in the metadata is 'many', not in 1..1000000"),
        ("encoder", {"T": "21"}, r"encoder.onnx: onnxruntime cannot run the graph: .*x"),
        ("encoder", {"feature": "whisper"}, r"encoder.onnx: expects 'whisper' features, not Kaldi's fbank"),
        ("decoder", {"context_size": None}, r"decoder.onnx: the metadata lack `context_size`"),
        ("decoder", {"context_size": "3"}, r"decoder.onnx: onnxruntime cannot run the graph: .*y"),
        ("decoder", {"vocab_size": "21"}, r"joiner.onnx: gives 20 logits, but `vocab_size` of .*decoder.onnx is 21"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 10 else "",
)
def test_metadata_that_do_not_fit_are_named(folder, role, changes, message):
    _with_metadata(folder / f"{role}.onnx", **changes)
    with pytest.raises(ValueError, match=message):
        OnnxStreamingTransducer.open(folder)


def test_folder_that_is_none_or_lacks_a_graph_is_named(folder):
    with pytest.raises(ValueError, match="no: no such folder; a model's folder holds three ONNX graphs"):
        OnnxStreamingTransducer.open(folder / "no")
    with pytest.raises(ValueError, match="`folder` .*joiner.onnx is a file.*`open_streaming_model`"):
        OnnxStreamingTransducer.open(folder / "joiner.onnx")
    shutil.copy(folder / "decoder.onnx", folder / "joiner.onnx")
    with pytest.raises(ValueError, match="joiner.onnx: must take encoder_out and decoder_out .* but takes y"):
        OnnxStreamingTransducer.open(folder)
    (folder / "joiner.onnx").unlink()
    with pytest.raises(ValueError, match=r"model: holds no joiner\*.onnx"):
        OnnxStreamingTransducer.open(folder)


def test_two_graphs_of_one_role_are_named(folder):
    shutil.copy(folder / "decoder.onnx", folder / "decoder-epoch-9.onnx")
    with pytest.raises(ValueError, match="several graphs of the decoder: decoder-epoch-9.onnx, decoder.onnx"):
        OnnxStreamingTransducer.open(folder)


def test_missing_onnxruntime_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"ONNX models need onnxruntime: pip install 'stateless-transducer\[onnx\]'"):
        OnnxStreamingTransducer.open(folder)


def test_file_that_was_not_fetched_is_explained(folder):
    (folder / "encoder.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="encoder.onnx is a Git LFS pointer.*git lfs pull"):
        OnnxStreamingTransducer.open(folder)


def test_encoder_that_takes_whole_utterances_is_refused(folder):
    # the layout of an offline encoder: x, x_lens
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", "T", 80])
    x_lens = onnx.helper.make_tensor_value_info("x_lens", onnx.TensorProto.INT64, ["N"])
    out = onnx.helper.make_tensor_value_info("encoder_out", onnx.TensorProto.FLOAT, ["N", "T", 80])
    node = onnx.helper.make_node("Identity", ["x"], ["encoder_out"])
    graph = onnx.helper.make_model(
        onnx.helper.make_graph([node], "offline", [x, x_lens], [out]),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.helper.set_model_props(graph, {"model_type": "zipformer2"})
    onnx.save(graph, folder / "encoder.onnx")
    with pytest.raises(ValueError, match="encoder.onnx is not a streaming encoder: it takes x, x_lens, and its meta"):
        OnnxStreamingTransducer.open(folder)


def _with_shape(path, name, axis, size):
    graph = onnx.load(path)
    (declared,) = (each for each in graph.graph.input if each.name == name)
    place = declared.type.tensor_type.shape.dim[axis]
    if isinstance(size, int):
        place.dim_value = size
    else:
        place.dim_param = size
    onnx.save(graph, path)


def test_states_with_the_batch_elsewhere_are_named(folder):
    _with_shape(folder / "encoder.onnx", "cached_key_0", 1, 3)
    with pytest.raises(ValueError, match=r"axis 1 of cached_key_0 \[4, 3, 8\] must be the batch"):
        OnnxStreamingTransducer.open(folder)


def test_number_of_mel_bins_must_be_known(folder):
    _with_shape(folder / "encoder.onnx", "x", 2, "F")
    with pytest.raises(ValueError, match=r"x \['N', 13, 'F'\] must be \(N, T, F\) with a known number F of mel bins"):
        OnnxStreamingTransducer.open(folder)


def test_state_that_does_not_come_out_is_missed(folder):
    graph = onnx.load(folder / "encoder.onnx")
    del graph.graph.output[-1]
    onnx.save(graph, folder / "encoder.onnx")
    with pytest.raises(ValueError, match="encoder.onnx: must give encoder_out and 20 states, but has 20 outputs"):
        OnnxStreamingTransducer.open(folder)


def test_states_of_open_size_are_named(folder):
    _with_shape(folder / "encoder.onnx", "cached_key_0", 0, "left")
    with pytest.raises(ValueError, match=r"cached_key_0 \['left', 'N', 8\] needs known sizes"):
        OnnxStreamingTransducer.open(folder)
