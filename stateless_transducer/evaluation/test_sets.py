"""Evaluation on prepared test sets: hypotheses, error rates, result files in icefall's formats."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stateless_transducer.data.batches import Batch
from stateless_transducer.decoding.arrays import Array
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Scorer
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.search import make_scorer
from stateless_transducer.files import write_text
from stateless_transducer.text.bootstrap import Estimate, bootstrap_report
from stateless_transducer.text.scoring import (
    Report,
    ScoredUtterance,
    errs_text,
    recogs_text,
    score,
    summary_text,
    units,
)
from stateless_transducer.text.tokens import SPACE, TokenTable, tidied

if TYPE_CHECKING:
    import torch

Decode = Callable[[Array, Array, SearchConfig, Scorer | None], list[Hypothesis]]
"""From features, their lengths, a search and its scorer to the best hypotheses: `decode_features`, or
`decode_features_in_chunks`, with the model bound by `functools.partial`."""

CONFIDENCE = 0.95
"""Confidence level of the intervals of error rates."""


@dataclass(frozen=True)
class TestResult:
    """Result of one search on one test set."""

    report: Report
    unknown_units: Counter[str]
    """Reference units that the token table lacks: unavoidable errors."""
    speech_s: float
    """Seconds of speech."""
    wall_s: float
    """Wall-clock seconds for loading features and searching."""
    device: str
    """Device of the search."""
    in_words: TestResult | None = None
    """Word-level result, if the tokens are characters that spell words."""

    @cached_property
    def error_rate(self) -> Estimate | None:
        """Error rate in percent with its confidence interval, reproducible; None without utterances."""
        if not self.report.utterances:
            return None
        return bootstrap_report(self.report, generator=np.random.default_rng(0), confidence=CONFIDENCE)

    @property
    def real_time_factor(self) -> float | None:
        """Processing seconds per second of speech; None without speech."""
        return self.wall_s / self.speech_s if self.speech_s else None


def evaluate(
    decode: Decode,
    batches: Iterable[Batch],
    token_table: TokenTable,
    config: SearchConfig,
    *,
    device: torch.device | None,
    progress: Callable[[int], None] | None = None,
) -> TestResult:
    """Decode and score every utterance in characters, words or both, as the token table demands.

    Args:
        decode: Function that decodes a batch with a model on ``device``.
        batches: Batches of the test set.
        token_table: Token table of the model.
        config: Search settings.
        device: Device of the features; None: the model takes NumPy arrays.
        progress: Called with the number of decoded utterances.
    """
    scored, scored_words, unknown, scorer = [], [], Counter(), make_scorer(config, token_table)
    started, speech_s = time.monotonic(), 0.0
    for batch in batches:
        speech_s += batch.seconds
        features, lens = (
            tensor.numpy() if device is None else tensor.to(device) for tensor in (batch.features, batch.feature_lens)
        )
        hypotheses = decode(features, lens, config, scorer)
        for id_, text, hypothesis in zip(batch.ids, batch.texts, hypotheses, strict=True):
            unknown.update(token_table.unknown_units(text))
            decoded_words = units(tidied(token_table.decode(hypothesis.tokens)), "word")
            in_words = ScoredUtterance(id_, units(tidied(text), "word"), decoded_words)
            if token_table.unit == "bpe":
                scored.append(in_words)
            elif token_table.unit == "bbpe":
                # as icefall scores Mandarin; a piece may be a part of a character
                decoded = units(token_table.decode(hypothesis.tokens), "char")
                scored.append(ScoredUtterance(id_, units(text, "char"), decoded))
            else:
                # symbol by symbol: an unknown token is one unit, not the characters of its name
                symbols = (token_table.symbols[token] for token in hypothesis.tokens)
                decoded_units = tuple(symbol for symbol in symbols if symbol != SPACE)
                scored.append(ScoredUtterance(id_, units(text, token_table.unit), decoded_units))
            if token_table.spells_words:
                scored_words.append(in_words)
        if progress is not None:
            progress(len(scored))
    facts = (speech_s, time.monotonic() - started, str(device or "cpu"))
    # unknown units are characters, reported with the character-level result
    in_words = TestResult(score(scored_words), Counter(), *facts) if token_table.spells_words else None
    return TestResult(score(scored), unknown, *facts, in_words)


def metric_name(token_table: TokenTable) -> str:
    """Return the name of the main metric: CER or WER."""
    return "CER" if token_table.unit in ("char", "bbpe") else "WER"


def write_results(
    folder: Path,
    test_set: str,
    name: str,
    result: TestResult,
    *,
    metric: str,
    config: SearchConfig,
    averaged: Sequence[str],
) -> list[Path]:
    """Write ``recogs-``, ``errs-`` and ``wer-summary-`` files in icefall's formats, and ``result-<...>.json``.

    Args:
        folder: ``exp_dir/log/<decoding_method>`` or a subfolder.
        test_set: Name of the split.
        name: Last part of the file names: epoch, average, search.
        result: Result of `evaluate`.
        metric: CER or WER.
        config: Settings of the search.
        averaged: Names of the averaged checkpoints.
    """
    report = result.report
    numbers = {
        "test_set": test_set,
        "name": name,
        "method": config.decoding_method,
        "setting": config.key,
        **_figures(result, metric),
        "averaged": list(averaged),
        "search": asdict(config),
    }
    texts = {
        f"recogs-{test_set}-{name}.txt": recogs_text(report.utterances),
        f"errs-{test_set}-{name}.txt": errs_text(report),
        f"wer-summary-{test_set}-{name}.txt": summary_text(
            {config.key: round(report.error_rate, 2)}, metric="WER" if metric == "WER" else "CER"
        ),
        # settings may be paths
        f"result-{test_set}-{name}.json": json.dumps(numbers, indent=2, ensure_ascii=False, default=str) + "\n",
    }
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def _figures(result: TestResult, metric: str) -> dict[str, Any]:
    """Return the figures of the result file; infinite and undefined values become null."""
    report, estimate = result.report, result.error_rate
    interval = None if estimate is None else interval_of(estimate)
    return {
        "metric": metric,
        "unit": "word" if metric == "WER" else "character",
        "error_rate": _rounded(report.error_rate, 2),
        "confidence_interval": interval,
        "errors": report.num_errors,
        "reference_units": report.num_reference,
        "insertions": report.num_insertions,
        "deletions": report.num_deletions,
        "substitutions": report.num_substitutions,
        "utterances": len(report.utterances),
        "speech_s": _rounded(result.speech_s, 2),
        "wall_s": _rounded(result.wall_s, 2),
        "real_time_factor": _rounded(result.real_time_factor, 5),
        "device": result.device,
    }


def interval_of(estimate: Estimate) -> dict[str, float | None]:
    """Return confidence level and bounds of an interval, the bounds in percent."""
    return {"confidence": CONFIDENCE, "low": _rounded(estimate.low, 2), "high": _rounded(estimate.high, 2)}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)
