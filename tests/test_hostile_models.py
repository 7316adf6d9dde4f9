"""Models from strangers: damaged or malicious files are refused in one line, before they take memory."""

from __future__ import annotations

import json
import os
import random
import struct
from dataclasses import replace

import pytest
import torch
from model_sizes import conformer_model
from safetensors.torch import load_file, save_file

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ModelConfig, ZipformerConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable, build_token_table

TOKENS = build_token_table(["今天天气"], "char")
SIZES = conformer_model(len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8)


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    return Checkpoint(build_model(SIZES).state_dict(), SIZES, FbankConfig(), TOKENS, {"command": "transducer train"})


def _is_equal(loaded, saved):
    same = (loaded.model_config, loaded.fbank_config, loaded.token_table, loaded.provenance) == (
        saved.model_config,
        saved.fbank_config,
        saved.token_table,
        saved.provenance,
    )
    return same and all(torch.equal(loaded.weights[name], value) for name, value in saved.weights.items())


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_flipped_bit_is_refused_or_harmless(tmp_path, checkpoint, name):
    """Before checksums were compared, half of these files loaded with other weights."""
    path = tmp_path / name
    save_checkpoint(path, checkpoint)
    content = path.read_bytes()
    generator = random.Random(0)
    # half of them in the header and in the directory of the archive, the rest anywhere
    num_bits = 8 * len(content)
    places = [generator.randrange(num_bits) for _ in range(40)] + [generator.randrange(8 * 2000) for _ in range(20)]
    places += [num_bits - 1 - generator.randrange(8 * 2000) for _ in range(20)]
    num_refused = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            loaded = load_checkpoint(path)
        except ValueError as err:
            assert name in str(err)
            num_refused += 1
        else:
            assert _is_equal(loaded, checkpoint), f"bit {place}"
    assert num_refused > 40


def test_damage_names_the_member(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "m.pt", checkpoint)
    content = bytearray((tmp_path / "m.pt").read_bytes())
    content[content.index(checkpoint.weights["joiner.output_linear.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"m.pt is damaged \(the checksum of .*/data/\d+ differs\). Copy it again"):
        load_checkpoint(tmp_path / "m.pt")


def test_damage_in_the_directory_of_an_archive_is_refused(tmp_path, checkpoint):
    """Of what torch reads differently: as folders, which are empty, or with another size."""
    save_checkpoint(tmp_path / "m.pt", checkpoint)
    content = (tmp_path / "m.pt").read_bytes()
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/5"))
    num_refused = 0
    # sizes, attributes
    for place in (*range(entry + 20, entry + 28), *range(entry + 36, entry + 42)):
        for bit in range(0, 8, 2):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (tmp_path / "m.pt").write_bytes(flipped)
            try:
                loaded = load_checkpoint(tmp_path / "m.pt")
            except ValueError:
                num_refused += 1
            else:
                assert _is_equal(loaded, checkpoint), (place - entry, bit)
    assert num_refused > 30


def test_files_without_checksums_load(tmp_path, checkpoint):
    """Earlier versions wrote none into .safetensors, and torch can be told to write none."""
    save_checkpoint(tmp_path / "m.safetensors", checkpoint)
    content = (tmp_path / "m.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    del metadata["file_crc32"]
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "m.safetensors", metadata)
    assert _is_equal(load_checkpoint(tmp_path / "m.safetensors"), checkpoint)
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "m.pt", checkpoint)
    finally:
        torch.serialization.set_crc32_options(True)
    assert _is_equal(load_checkpoint(tmp_path / "m.pt"), checkpoint)


ENDLESS = []
ENDLESS.append(ENDLESS)


# name of a case -> changes of the fields, and the complaint
INVALID = {
    "huge-count": ({"model_config": {"num_layers": 10**9}}, r"`num_layers` must be in 1..256, but is 1000000000"),
    "huge-width": ({"model_config": {"feedforward_dim": 10**9}}, r"has shape .* instead of \(1000000000, 8\)"),
    "impossible-width": ({"model_config": {"joiner_dim": 2**62}}, "No model of these sizes can exist"),
    "number-as-string": ({"model_config": {"num_layers": "1"}}, "`num_layers` must be a whole number, but is '1'"),
    "no-number": ({"model_config": {"context_size": None}}, "`context_size` must be a whole number, but is None"),
    "list-as-kind": ({"model_config": {"encoder": []}}, "its sizes are invalid"),
    "frame-shift": ({"fbank_config": {"frame_shift_ms": 1e-6}}, "`frame_shift_ms` must be in 1..1000 ms"),
    "front-end-string": ({"fbank_config": {"low_freq": "20"}}, "`low_freq` must be a number, but is '20'"),
    "sample-rate": ({"fbank_config": {"sample_rate": 10**9}}, "`sample_rate` must be in 1000..192000 Hz"),
    "mel-bins": ({"fbank_config": {"num_mel_bins": 10**9}}, "`num_mel_bins` must be in 7..1000"),
    "impossible-front-end": ({"fbank_config": {"low_freq": 9000.0}}, "`low_freq` 9000, .* can exist"),
    "front-end-of-another": ({"fbank_config": {"num_mel_bins": 40}}, "`feature_dim` is 80, .* has 40 mel bins"),
    "few-tokens": ({"tokens": {"symbols": list(TOKENS.symbols[:-1])}}, "has 6 tokens, but its token table 5"),
    "no-symbols": ({"tokens": {"symbols": [*range(6)]}}, "`symbols` must be a list of strings"),
    "other-blank": ({"model_config": {"blank_id": 1}}, "`blank_id` is 1, but the blank of its token table is 0"),
    "list-as-field": ({"provenance": [1]}, "`provenance` must be a dict of strings, but is a list"),
    "endless-provenance": ({"provenance": {"a": ENDLESS}}, "`provenance` cannot be shown"),
    "integers": ({"model": {"joiner.output_linear.bias": torch.zeros(6, dtype=torch.int64)}}, "bias is no dense float"),
    "complex": ({"model": {"joiner.output_linear.bias": torch.zeros(6) * 1j}}, "bias is no dense float"),
    "sparse": ({"model": {"joiner.output_linear.bias": torch.zeros(6).to_sparse()}}, "bias is no dense float"),
    "no-tensor": ({"model": {"joiner.output_linear.bias": [0.0] * 6}}, "bias is no dense float"),
    "heads-as-list": ({"heads": [1]}, "`heads` must be a dict of strings, but is a list"),
    "heads-no-tensor": ({"heads": {"ctc_head.bias": 1}}, "(?<!model: )ctc_head.bias is no dense float"),
    "no-values": ({"model": {"joiner.output_linear.bias": torch.zeros(6, device="meta")}}, "bias has no values"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_field_is_refused_by_name(tmp_path, checkpoint, case):
    path = tmp_path / "m.pt"
    changes, message = INVALID[case]
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"m.pt: .*{message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("field", ["model", "model_config", "fbank_config", "tokens", "provenance", "training_state"])
def test_missing_field_is_named(tmp_path, checkpoint, field):
    path = tmp_path / "m.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    del content[field]
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"m.pt: lacks the field `{field}`"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", ["[" * 100_000, "{", None])
def test_safetensors_with_invalid_json_are_refused(tmp_path, checkpoint, value):
    path = tmp_path / "m.safetensors"
    metadata = {"format": "stateless-transducer-2"} | ({} if value is None else {"model_config": value})
    save_file(dict(checkpoint.weights), path, metadata)
    with pytest.raises(ValueError, match="m.safetensors: `model_config` in its metadata is missing or no JSON"):
        load_checkpoint(path)


def test_building_a_model_draws_no_random_numbers(checkpoint):
    state = torch.get_rng_state()
    model = checkpoint.model()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, checkpoint.weights[name]) for name, value in model.state_dict().items())
    # the model does not share memory with the checkpoint
    with torch.no_grad():
        model.joiner.output_linear.bias.add_(1)
    assert not torch.equal(model.joiner.output_linear.bias, checkpoint.weights["joiner.output_linear.bias"])
    half = replace(checkpoint, weights={name: value.half() for name, value in checkpoint.weights.items()})
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in half.model().parameters())


def test_token_table_of_wrong_scores_is_refused():
    with pytest.raises(ValueError, match="`scores` must be a list of numbers"):
        TokenTable.from_facts({**TOKENS.facts(), "unit": "bpe", "scores": ["a"] * len(TOKENS)})


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    """Opening a pipe waits for a writer, and a device may never end."""
    from stateless_transducer.export.onnx_graph import Graph
    from stateless_transducer.export.onnx_model import OnnxTransducer
    from stateless_transducer.recognition.model import find_checkpoint, load_pretrained
    from stateless_transducer.text.bpe import model_scores, read_scores
    from stateless_transducer.text.symbols import read_vocabulary

    for name in ("m.pt", "m.safetensors", "encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt", "bpe.model"):
        os.mkfifo(tmp_path / name)
    message = "is a pipe or a device, not a file"
    assert find_checkpoint(tmp_path / "m.pt") == (tmp_path / "m.pt", None)
    with pytest.raises(ValueError, match=f"m.pt: {message}"):
        load_pretrained(tmp_path / "m.pt")
    for read in (model_scores, read_scores):
        with pytest.raises(ValueError, match=f"bpe.model: {message}"):
            read(tmp_path / "bpe.model")
    for name in ("m.pt", "m.safetensors"):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match=f"encoder.onnx: {message}"):
        Graph(tmp_path / "encoder.onnx", 1)
    with pytest.raises(ValueError, match="encoder"):
        OnnxTransducer.open(tmp_path)
    with pytest.raises(ValueError, match=f"tokens.txt: {message}"):
        read_vocabulary(tmp_path / "tokens.txt", 6)
    with pytest.raises(ValueError, match=f"zero: {message}"):
        load_checkpoint("/dev/zero")


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, checkpoint, capsys):
    symbols = tuple("\x1b[31m" if symbol == "今" else symbol for symbol in TOKENS.symbols)
    provenance = {"command": "\x1b]0;title\x07", "author": "a\x9b2Jb\tc"}
    hostile = replace(checkpoint, token_table=replace(TOKENS, symbols=symbols), provenance=provenance)
    save_checkpoint(tmp_path / "m.pt", hostile)
    assert main(["info", str(tmp_path / "m.pt")]) == 0
    printed = capsys.readouterr().out
    assert r"\x1b[31m" in printed and r"\x1b]0;title\x07" in printed and "a\\x9b2Jb\tc" in printed
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    content["model"]["\x1b[2J"] = torch.zeros(1)
    torch.save(content, tmp_path / "m.pt")
    assert main(["info", str(tmp_path / "m.pt")]) == 1
    complaint = capsys.readouterr().err
    assert r"\x1b[2J is left over" in complaint and not set(printed + complaint) & set("\x1b\x07\x9b")


ZIPFORMER = ZipformerConfig(
    num_encoder_layers=(1, 1), downsampling_factor=(1, 2), encoder_dim=(8,), encoder_unmasked_dim=(8,), num_heads=(2,),
    feedforward_dim=(8,), query_head_dim=(4,), pos_dim=4, cnn_module_kernel=(3,),
)  # fmt: skip


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_sizes_per_stack_load_and_have_bounds(tmp_path, name):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=len(TOKENS),
        encoder=ZIPFORMER,
        decoder=replace(ZIPFORMER.usual_decoder, decoder_dim=8),
        joiner=replace(ZIPFORMER.usual_joiner, joiner_dim=8),
    )
    model = build_model(config)
    saved = Checkpoint(model.state_dict(), config, FbankConfig(), TOKENS)
    save_checkpoint(tmp_path / name, saved)
    assert _is_equal(loaded := load_checkpoint(tmp_path / name), saved)
    features, lens = torch.randn(1, 60, 80), torch.tensor([60])
    assert torch.equal(loaded.model().encode(features, lens)[0], model.eval().encode(features, lens)[0])
    sizes = config.sizes()
    for change, message in (
        ({"num_encoder_layers": [10**9, 1]}, "`num_encoder_layers` must be in 1..256, but is 1000000000"),
        ({"downsampling_factor": [1] * 100_000}, "`downsampling_factor` must have 1 to 32 numbers, but has 100000"),
        ({"downsampling_factor": [1, 10**6]}, "`downsampling_factor` must be in 1..64, but is 1000000"),
        ({"chunk_size": [10**9]}, "`chunk_size` must be numbers in 1..10000, or -1, but is 1000000000"),
        ({"downsampling_factor": []}, "`downsampling_factor` must have 1 to 32 numbers, but has 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_sizes({**sizes, **change})
