"""A model on a prepared test set: hypotheses, error rate, result files in icefall's formats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from stateless_transducer.data.batches import Batch
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.recognisable import Recognisable
from stateless_transducer.decoding.search import search
from stateless_transducer.files import write_text
from stateless_transducer.text.scoring import (
    Report,
    ScoredUtterance,
    errs_text,
    recogs_text,
    score,
    summary_text,
    units,
)
from stateless_transducer.text.tokens import SPACE, TokenTable


@dataclass(frozen=True)
class TestResult:
    """What one search found on one test set."""

    report: Report
    unknown_units: Counter[str]
    """Units of the references that the token table lacks: errors that no search can avoid."""


def evaluate(
    model: Recognisable,
    batches: Iterable[Batch],
    token_table: TokenTable,
    config: SearchConfig,
    *,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> TestResult:
    """Search every utterance and score what was found, in characters or words as the token table says.

    Args:
        model: in evaluation mode, on ``device``.
        batches: the test set.
        token_table: the model's.
        config: which search.
        device: where to search.
        progress: called with the number of utterances done.
    """
    scored, unknown = [], Counter()
    for batch in batches:
        hypotheses = search(model, batch.features.to(device), batch.feature_lens.to(device), config)
        for id_, text, hypothesis in zip(batch.ids, batch.texts, hypotheses, strict=True):
            unknown.update(token_table.unknown_units(text))
            # symbol by symbol: an unknown token is one unit, not the characters of its name
            symbols = (token_table.symbols[token] for token in hypothesis.tokens)
            found = tuple(symbol for symbol in symbols if symbol != SPACE)
            scored.append(ScoredUtterance(id_, units(text, token_table.unit), found))
        if progress is not None:
            progress(len(scored))
    return TestResult(score(scored), unknown)


def metric_name(token_table: TokenTable) -> str:
    """CER or WER."""
    return "WER" if token_table.unit == "word" else "CER"


def write_results(folder: Path, test_set: str, name: str, key: str, metric: str, report: Report) -> list[Path]:
    """Write ``recogs-``, ``errs-`` and ``wer-summary-`` files as icefall's, and ``result-<...>.json``.

    Args:
        folder: ``exp_dir/log/<decoding_method>``.
        test_set: name of the split.
        name: tail of the file names: epoch, average, search.
        key: name of the search in the summary.
        metric: CER or WER.
        report: the score.
    """
    numbers = {
        "test_set": test_set,
        "name": name,
        "method": folder.name,
        "setting": key,
        "metric": metric,
        "error_rate": round(report.error_rate, 2),
        "errors": report.num_errors,
        "reference_units": report.num_reference,
        "insertions": report.num_insertions,
        "deletions": report.num_deletions,
        "substitutions": report.num_substitutions,
        "utterances": len(report.utterances),
    }
    is_word = metric == "WER"
    texts = {
        f"recogs-{test_set}-{name}.txt": recogs_text(report.utterances),
        f"errs-{test_set}-{name}.txt": errs_text(report),
        f"wer-summary-{test_set}-{name}.txt": summary_text(
            {key: round(report.error_rate, 2)}, metric="WER" if is_word else "CER"
        ),
        f"result-{test_set}-{name}.json": json.dumps(numbers, indent=2) + "\n",
    }
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]
