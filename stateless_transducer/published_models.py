"""List of published transducers, for `transducer models` and docs/models.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_AISHELL = "icefall egs/aishell RESULTS"
_LIBRISPEECH = "icefall egs/librispeech RESULTS"
_WENETSPEECH = "icefall egs/wenetspeech RESULTS"

Check = Literal["run", "layout tested", "not tried"]
"""run: a test runs the model itself, on machines that have it. layout tested: a test opens a model with such names of
files. not tried: its files are not known to us."""


@dataclass(frozen=True)
class PublishedModel:
    """Facts about a model, from public documents."""

    name: str
    """Name that commands take."""
    language: str
    encoder: str
    is_streaming: bool
    parameters: str
    """In millions; empty: not stated."""
    results: str
    """Published error rates in percent; empty: not stated."""
    source: str
    """Document with the results."""
    check: Check
    license: str = ""
    """As its authors state it; empty: see the page of the model."""
    size: str = ""
    """Size of the files; empty: not known."""

    @property
    def mode(self) -> str:
        """Whether it takes whole utterances or chunks."""
        return "streaming" if self.is_streaming else "offline"


MODELS = (
    PublishedModel(
        "csukuangfj/icefall-aishell-transducer-stateless-modified-2022-03-01",
        *("Mandarin", "conformer", False, "", "AISHELL 5.22 greedy, 5.02 beam", _AISHELL, "layout tested"),
    ),
    PublishedModel(
        "zrjin/icefall-asr-aishell-zipformer-2023-10-24",
        *("Mandarin", "zipformer2", False, "73.4", "AISHELL 4.67 greedy, 4.40 beam", _AISHELL, "layout tested"),
    ),
    PublishedModel(
        "zrjin/icefall-asr-aishell-zipformer-small-2023-10-24",
        *("Mandarin", "zipformer2", False, "30.2", "AISHELL 4.97 greedy, 4.67 beam", _AISHELL, "layout tested"),
    ),
    PublishedModel(
        "zrjin/icefall-asr-aishell-zipformer-large-2023-10-24",
        *("Mandarin", "zipformer2", False, "157.3", "AISHELL 4.49 greedy, 4.28 beam", _AISHELL, "layout tested"),
    ),
    PublishedModel(
        "zrjin/icefall-asr-aishell-zipformer-bbpe-2024-01-16",
        *("Mandarin", "zipformer2", False, "65.5", "AISHELL 4.54 greedy, 4.37 beam", _AISHELL, "not tried"),
    ),
    PublishedModel(
        "zrjin/icefall-asr-aishell-zipformer-pruned-transducer-stateless7-streaming-2023-10-16",
        *("Mandarin", "zipformer", True, "", "AISHELL 6.95 greedy, 6.51 beam", _AISHELL, "not tried"),
    ),
    PublishedModel(
        "pkufool/icefall-asr-zipformer-wenetspeech-20230615",
        *(
            "Mandarin",
            "zipformer2",
            False,
            "",
            "WenetSpeech dev 7.32, net 7.61, meeting 12.35",
            _WENETSPEECH,
            "not tried",
        ),
    ),
    PublishedModel(
        "pkufool/icefall-asr-zipformer-streaming-wenetspeech-20230615",
        *("Mandarin", "zipformer2", True, "", "WenetSpeech dev 8.21, net 9.77, meeting 16.07 at 320 ms"),
        *(_WENETSPEECH, "layout tested"),
    ),
    PublishedModel(
        "Zengwei/icefall-asr-librispeech-zipformer-2023-05-15",
        *("English", "zipformer2", False, "65.5", "LibriSpeech 2.21 clean, 4.79 other", _LIBRISPEECH, "layout tested"),
    ),
    PublishedModel(
        "Zengwei/icefall-asr-librispeech-zipformer-small-2023-05-16",
        *("English", "zipformer2", False, "23", "LibriSpeech 2.42 clean, 5.73 other", _LIBRISPEECH, "layout tested"),
    ),
    PublishedModel(
        "Zengwei/icefall-asr-librispeech-zipformer-large-2023-05-16",
        *("English", "zipformer2", False, "148", "LibriSpeech 2.06 clean, 4.63 other", _LIBRISPEECH, "layout tested"),
    ),
    PublishedModel(
        "Zengwei/icefall-asr-librispeech-zipformer-large-transducer-with-CR-CTC-20241019",
        *("English", "zipformer2", False, "148", "LibriSpeech 1.88 clean, 3.95 other", _LIBRISPEECH, "layout tested"),
    ),
    PublishedModel(
        "Zengwei/icefall-asr-librispeech-streaming-zipformer-2023-05-17",
        *(
            "English",
            "zipformer2",
            True,
            "66",
            "LibriSpeech 3.01 clean, 7.69 other at 320 ms",
            _LIBRISPEECH,
            "not tried",
        ),
    ),
    PublishedModel(
        "asr-models/sherpa-onnx-streaming-zipformer-zh-14M-2023-02-23",
        *("Mandarin", "", True, "14", "", "sherpa-onnx releases", "layout tested"),
    ),
    PublishedModel(
        "asr-models/sherpa-onnx-streaming-zipformer-en-20M-2023-02-17",
        *("English", "", True, "20", "", "sherpa-onnx releases", "layout tested"),
    ),
    PublishedModel(
        "asr-models/sherpa-onnx-streaming-zipformer-en-2023-06-26",
        *("English", "", True, "", "", "sherpa-onnx releases", "layout tested"),
    ),
    PublishedModel(
        "pkufool/zipformer-medium",
        *("Mandarin, English", "zipformer2", False, "65", "AISHELL 2.67; LibriSpeech 2.61 clean, 5.36 other"),
        *("pkufool/zipformer README", "not tried"),
    ),
    PublishedModel(
        "pkufool/zipformer-medium-streaming",
        *("Mandarin, English", "zipformer2", True, "65", "AISHELL 3.9; LibriSpeech 3.64 clean, 8.08 other"),
        *("pkufool/zipformer README", "not tried"),
    ),
    PublishedModel(
        "asr-models/sherpa-onnx-streaming-conformer-zh-2023-05-23",
        *("Mandarin", "conformer", True, "", "", "sherpa-onnx releases", "layout tested"),
    ),
    PublishedModel(
        "kws-models/sherpa-onnx-kws-zipformer-wenetspeech-3.3M-2024-01-01-mobile",
        *("Mandarin (toned pinyin)", "zipformer2", True, "3.3", "", "sherpa-onnx releases", "run"),
        license="Apache-2.0",
        size="4.7 MB int8",
    ),
)
"""Published transducers. Names, sizes and error rates are those of the documents named as their sources."""

COLUMNS = (
    "model",
    "language",
    "encoder",
    "mode",
    "parameters (M)",
    "error rates (%)",
    "license",
    "size",
    "check",
    "source",
)


def rows() -> list[tuple[str, ...]]:
    """Return a row of `COLUMNS` per model; - for facts that are not known."""
    return [
        tuple(
            fact or "-"
            for fact in (
                model.name,
                model.language,
                model.encoder,
                model.mode,
                model.parameters,
                model.results,
                model.license,
                model.size,
                model.check,
                model.source,
            )
        )
        for model in MODELS
    ]


def markdown() -> str:
    """Return the table of docs/models.md."""
    header, line = " | ".join(COLUMNS), "|".join("---" for _ in COLUMNS)
    lines = [f"| {header} |", f"|{line}|"]
    lines += ["| " + " | ".join((f"`{name}`", *facts)) + " |" for name, *facts in rows()]
    return "\n".join(lines) + "\n"
