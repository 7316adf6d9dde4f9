"""Streaming graphs of our models: torch, this package and sherpa-onnx compute the same from them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import sherpa_onnx
import soundfile
import torch
from model_sizes import SMALL_CONFORMER, SMALL_ZIPFORMER, resized, zipformer_model
from tiny_talker import TOKENS

from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.stream_search import FLUSH_S
from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer
from stateless_transducer.export.onnx_writer import write_streaming_onnx
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.icefall import load_icefall
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.live import LiveTransducer
from stateless_transducer.model.transducer import build_model
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.text.tokens import SPECIAL, UNKNOWN, TokenTable

CHUNKS = {"chunk_ms": 160, "left_ms": 320}
NO_RULES = EndpointRules(1e6, 1e6, 1e6)
CONFIGS = {
    "conformer": resized(
        ModelConfig(len(TOKENS), replace(SMALL_CONFORMER, causal=True), feature_norm="global"), joiner_dim=20
    ),
    "zipformer": zipformer_model(len(TOKENS), replace(SMALL_ZIPFORMER, causal=True), decoder_dim=12, joiner_dim=20),
}


def _sound(seconds: float = 3.2) -> np.ndarray:
    """Noise that swells and fades."""
    samples = np.random.default_rng(3).standard_normal(round(seconds * 16000)).astype(np.float32)
    return 0.2 * samples * np.abs(np.sin(np.arange(len(samples), dtype=np.float32) * 5 / 16000))


@torch.no_grad()
def _talkative(config: ModelConfig) -> Checkpoint:
    """Random weights, and a joiner that emits tokens of all kinds on about every second frame of `_sound`."""
    model = build_model(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    features = torch.from_numpy(fbank(_sound(), FbankConfig()))[None]
    lens = torch.tensor([features.shape[1]])
    if config.feature_norm == "global":
        model.normalizer.fit([(features, lens)])
    encoder_out, _ = model.encode(features, lens)
    joiner = model.joiner.output_linear
    logits = model.join(encoder_out[0], model.predict(torch.full((1, model.context_size), 3)))
    joiner.weight *= 3 / logits.std(0, keepdim=True).T
    joiner.bias.zero_()
    joiner.bias -= model.join(encoder_out[0], model.predict(torch.full((1, model.context_size), 3))).mean(0)
    # sherpa-onnx never emits <unk>
    joiner.bias[0], joiner.bias[TOKENS.ids[UNKNOWN]] = 3.0, -99.0
    return Checkpoint(model.state_dict(), config, FbankConfig(), TOKENS)


@pytest.fixture(scope="module", params=["conformer", pytest.param("zipformer", marks=pytest.mark.sweep)])
def exported(request, tmp_path_factory):
    """A checkpoint, and a folder with it and its graphs."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(4)
    checkpoint = _talkative(CONFIGS[request.param])
    save_checkpoint(folder / "model.pt", checkpoint)
    write_streaming_onnx(folder, checkpoint, **CHUNKS)
    return folder, checkpoint


def test_graph_gives_what_torch_gives_for_streams_of_different_ages(exported):
    folder, checkpoint = exported
    models = LiveTransducer(checkpoint.model(), checkpoint.fbank_config, **CHUNKS), OnnxStreamingTransducer.open(folder)
    assert models[1].subsampling == models[0].subsampling and models[1].chunk_frames == models[0].chunk_frames
    rng, outputs = np.random.default_rng(0), []
    chunks = rng.standard_normal((6, 3, models[0].chunk_frames, 80)).astype(np.float32) * 3 - 8
    for model in models:
        states, parts = [model.initial_state() for _ in range(3)], []
        for tick, features in enumerate(chunks):
            live = [n for n in range(3) if tick >= 2 * n]
            encoder_out, after = model.encode_chunk(features[live], [states[n] for n in live])
            for n, state in zip(live, after, strict=True):
                states[n] = state
            parts.append(np.asarray(encoder_out))
        outputs.append(np.concatenate(parts))
    # rounding of float32 through the layers
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5 * max(1.0, np.abs(outputs[0]).max()))


@pytest.mark.parametrize(
    ("exported", "method"),
    [
        pytest.param("conformer", "greedy_search", marks=pytest.mark.sweep),
        ("conformer", "modified_beam_search"),
        pytest.param("zipformer", "greedy_search", marks=pytest.mark.sweep),
        pytest.param("zipformer", "modified_beam_search", marks=pytest.mark.sweep),
    ],
    indirect=["exported"],
)
def test_sherpa_onnx_emits_the_same_tokens_at_the_same_times(exported, method):
    folder, checkpoint = exported
    samples, config = _sound(), SearchConfig(method)
    recognizers = [
        StreamingRecognizer.from_pretrained(folder / "model.pt", config, rules=NO_RULES, **CHUNKS),
        StreamingRecognizer.from_pretrained(folder, config, rules=NO_RULES),
    ]
    from_torch, from_graphs = (recognizer.transcribe((samples, 16000)) for recognizer in recognizers)
    assert (from_torch.tokens, from_torch.times) == (from_graphs.tokens, from_graphs.times)
    assert len(from_torch.tokens) > 20 and len(set(from_torch.tokens)) > 4
    num_chunks = -(-round((len(samples) / 16000 + FLUSH_S) * 100) // 16)
    num_frames = 16 * num_chunks + checkpoint.model().encoder.look_ahead
    # sherpa-onnx waits for a frame more than it uses
    tokens, times = _sherpas(folder, np.pad(samples, (0, 160 * num_frames + 280 - len(samples))), method)
    assert tuple(tokens) == from_graphs.tokens
    # here, no token is later than the end of the sound
    assert from_graphs.times == pytest.approx([min(time, 3.2) for time in times], abs=1e-4)


def _sherpas(folder, samples, method):
    """Tokens and times of the samples, of which the last chunk is not decoded if a frame of it is missing."""
    other = sherpa_onnx.OnlineRecognizer.from_transducer(
        **{role: str(folder / f"{role}.onnx") for role in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        num_threads=1,
        decoding_method=method,
    )
    stream = other.create_stream()
    stream.accept_waveform(16000, samples)
    while other.is_ready(stream):
        other.decode_stream(stream)
    return other.tokens(stream), other.timestamps(stream)


@pytest.mark.sweep
def test_icefalls_model_gives_what_its_own_export_gives(zipformer_golden, tmp_path):
    golden = json.loads((zipformer_golden / "onnx" / "sherpa.json").read_text())["online"]["streaming_c16_l64"]
    config = json.loads((zipformer_golden / "causal" / "config.json").read_text())["config"]
    table = TokenTable((*SPECIAL, *(chr(0x4E00 + i) for i in range(config["vocab_size"] - len(SPECIAL)))))
    stated = ("num_heads", "chunk_size", "left_context_frames", "encoder_unmasked_dim")
    sizes = {name: [int(number) for number in config[name].split(",")] for name in stated}
    checkpoint = load_icefall(zipformer_golden / "causal" / "pretrained.pt", table, sizes=sizes)
    write_streaming_onnx(tmp_path, checkpoint, chunk_ms=320, left_ms=1280)
    samples, rate = soundfile.read(zipformer_golden / "onnx" / "speech.wav", dtype="float32")
    assert rate == 16000
    for method in ("greedy_search", "modified_beam_search"):
        tokens, times = _sherpas(tmp_path, np.pad(samples, (0, 10560)), method)
        expected = golden["fp32"][method]["speech"]
        assert [table.ids[token] for token in tokens] == expected["tokens"]
        assert times == pytest.approx(expected["timestamps"], abs=1e-4)


@pytest.mark.parametrize("exported", ["conformer", pytest.param("zipformer", marks=pytest.mark.sweep)], indirect=True)
def test_command_writes_a_model_that_runs_in_both_precisions(exported, tmp_path, capsys):
    folder, _ = exported
    flags = ["export", "onnx", "--model", str(folder / "model.pt"), "--output", str(tmp_path)]
    flags += ["--streaming", "true", "--chunk-ms", "160", "--left-ms", "320"]
    assert main([*flags, "--int8", "true"]) == 0
    fp32, int8 = (OnnxStreamingTransducer.open(tmp_path, prefer_int8=prefers) for prefers in (False, True))
    assert fp32.metadata == OnnxStreamingTransducer.open(folder).metadata
    assert (tmp_path / "encoder.int8.onnx").stat().st_size < (tmp_path / "encoder.onnx").stat().st_size
    features = fbank(_sound(), FbankConfig())[None]
    (exact, lens), (rough, _) = (model.encode(features, np.array([features.shape[1]])) for model in (fp32, int8))
    difference = (rough - exact)[:, : lens[0]]
    assert 0 < difference.std() < 0.1 * exact.std()
    for flag, value in (("--chunk-ms", "150"), ("--left-ms", "330")):
        assert main([*flags, flag, value]) == 1
        message = capsys.readouterr().err
        assert f"`{flag}` must be a multiple of" in message and f"is {value}" in message


def test_model_that_needs_whole_utterances_is_refused(tmp_path, capsys):
    sizes = ModelConfig(len(TOKENS), SMALL_CONFORMER)
    save_checkpoint(tmp_path / "model.pt", Checkpoint(build_model(sizes).state_dict(), sizes, FbankConfig(), TOKENS))
    flags = ["export", "onnx", "--model", str(tmp_path / "model.pt"), "--output", str(tmp_path / "onnx")]
    assert main([*flags, "--streaming", "true"]) == 1
    assert "--causal true" in capsys.readouterr().err and not (tmp_path / "onnx").exists()
    with pytest.raises(SystemExit):
        main([*flags, "--chunk-ms", "640"])
    assert "`--chunk-ms` 640 needs `--streaming true`" in " ".join(capsys.readouterr().err.replace("│", " ").split())
