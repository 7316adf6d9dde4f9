"""Models are recognized by the names of their files alone, and anything else is named."""

from __future__ import annotations

import pytest

from stateless_transducer.model_files import Listing

ICEFALL = ("README.md", "exp/pretrained.pt", "exp/cpu_jit.pt", "data/lang_char/tokens.txt", "data/lang_char/L.pt")
ICEFALL_BPE = ("exp/pretrained-epoch-30.pt", "data/lang_bpe_500/tokens.txt", "data/lang_bpe_500/bpe.model")
GRAPHS = tuple(f"{role}-epoch-99-avg-1.onnx" for role in ("encoder", "decoder", "joiner"))
INT8 = tuple(name.replace(".onnx", ".int8.onnx") for name in GRAPHS)
SHERPA = (*GRAPHS, *INT8, "tokens.txt", "bpe.vocab", "test_wavs/0.wav", "README.md")
CHUNKS = ("encoder-chunk-16-left-64.fp16.onnx", "encoder-chunk-16-left-64.onnx", "decoder.onnx", "joiner.onnx")
OUTSIDE = ("encoder.onnx.data", "decoder.onnx", "joiner.onnx", "tokens.txt")
OURS = ("model.safetensors", "encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt", "lang.json", "model.json")

# files, forms, precision -> files of the model
CHOSEN = {
    "sherpa-onnx": (SHERPA, "graphs", "fp32", {*GRAPHS, "tokens.txt", "bpe.vocab"}),
    "sherpa-onnx int8": (SHERPA, "graphs", "int8", {*INT8, "tokens.txt", "bpe.vocab"}),
    "fp16 beside fp32, for int8": ((*CHUNKS, "tokens.txt"), "graphs", "int8", {*CHUNKS[1:], "tokens.txt"}),
    "phones": (
        (*ICEFALL, "data/lang_phone/tokens.txt"), "checkpoint", "fp32",
        {"exp/pretrained.pt", "data/lang_char/tokens.txt"},
    ),
    "int8 alone": ((*INT8, "tokens.txt"), "graphs", "fp32", {*INT8, "tokens.txt"}),
    "streaming": ((*CHUNKS, "tokens.txt"), "graphs", "fp32", {*CHUNKS[1:], "tokens.txt"}),
    "weights outside": ((*OUTSIDE, "encoder.onnx"), "graphs", "fp32", {*OUTSIDE, "encoder.onnx"}),
    "one of two": ((*SHERPA, "64/encoder.onnx", "64/tokens.txt"), "graphs", "int8", {*INT8, "tokens.txt", "bpe.vocab"}),
    "icefall": (ICEFALL, "checkpoint", "fp32", {"exp/pretrained.pt", "data/lang_char/tokens.txt"}),
    "icefall BPE": (ICEFALL_BPE, "checkpoint", "fp32", set(ICEFALL_BPE)),
    "icefall graphs": (
        (*ICEFALL, *(f"exp/{name}" for name in GRAPHS)), "graphs", "fp32",
        {*(f"exp/{name}" for name in GRAPHS), "data/lang_char/tokens.txt"},
    ),
    "ours": (OURS, "checkpoint", "fp32", {"model.safetensors", "tokens.txt", "lang.json", "model.json"}),
    "ours in graphs": (OURS, "graphs", "fp32", set(OURS[1:])),
}  # fmt: skip

# files -> what the refusal says
REFUSED = {
    "whisper": (("tiny.en-encoder.onnx", "tiny.en-decoder.onnx", "tiny.en-tokens.txt"), "whisper"),
    "Paraformer": (("encoder.onnx", "decoder.onnx", "tokens.txt", "am.mvn"), "Paraformer"),
    "CTC": (("model.int8.onnx", "tokens.txt"), "a CTC model"),
    "transformers": (("config.json", "model.safetensors", "vocab.json"), "transformers"),
    "nothing": (("README.md",), r"no encoder\*.onnx, decoder\*.onnx, joiner\*.onnx, and no checkpoint with tokens.txt"),
    "no joiner": (("encoder.onnx", "decoder.onnx"), r"no joiner\*.onnx"),
    "no tokens": (GRAPHS, "but no tokens.txt"),
    "two models": ((*GRAPHS, "encoder.onnx", "tokens.txt"), "several graphs of the encoder: encoder-.*, encoder.onnx"),
    "two tables": ((*GRAPHS, "a/tokens.txt", "b/tokens.txt"), "several token tables: a/tokens.txt, b/tokens.txt"),
    "checkpoints": (
        (*(f"exp/epoch-{n}.pt" for n in range(1, 8)), "tokens.txt"),
        r"several checkpoints: exp/epoch-1.pt, .*exp/epoch-5.pt, \.\.\.\. Pass the path of one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN)
def test_files_of_a_model_are_chosen(case, tmp_path):
    names, form, precision, chosen = CHOSEN[case]
    files = Listing("there", names).choose((form,), precision)
    assert files.form == form and set(files.names) == chosen
    for name in (*names, ".cache/encoder.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # a folder is read as the list of a repository is
    assert Listing.of_folder(tmp_path).choose((form,), precision) == files


@pytest.mark.parametrize("case", REFUSED)
def test_other_contents_are_named(case):
    names, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"there: .*{message}"):
        Listing("there", names).choose(("graphs", "checkpoint"))


def test_forms_are_looked_for_in_their_order():
    assert Listing("there", OURS).choose(("checkpoint", "graphs")).form == "checkpoint"
    assert Listing("there", SHERPA).choose(("checkpoint", "graphs")).form == "graphs"
    with pytest.raises(ValueError, match="holds ONNX graphs, but a checkpoint is needed"):
        Listing("there", SHERPA).choose(("checkpoint",))
    with pytest.raises(ValueError, match="holds a checkpoint, but ONNX graphs are needed"):
        Listing("there", ICEFALL).choose(("graphs",))
