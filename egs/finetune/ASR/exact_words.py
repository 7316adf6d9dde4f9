#!/usr/bin/env python3
"""Report the share of words that are recognized without any error, from recogs-*.txt of `transducer decode`.

    ./exact_words.py before/log/greedy_search/recogs-*.txt
    ./exact_words.py --graphs onnx/graphs --table units/table.tsv

With --graphs, the words are those that sherpa-onnx recognizes, fp32 and int8, chunk by chunk.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import numpy as np

    from stateless_transducer.audio import read_audio
    from stateless_transducer.export.onnx_graph import find_graph, is_int8
    from stateless_transducer.text.recogs import read_recogs
    from stateless_transducer.text.scoring import ScoredUtterance, score
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed, "
        "with the extra export."
    )

RATE = 16000
SILENCE = np.zeros(RATE, np.float32)
"""Sound after a word, with which the last chunk is full."""


def report(name: str, utterances: Sequence[ScoredUtterance]) -> None:
    """Print unit errors and exact words."""
    errors = score(utterances)
    num_exact = sum(utterance.reference == utterance.hypothesis for utterance in utterances)
    print(
        f"{name}: unit errors {errors.error_rate:.2f} % ({errors.num_errors} of {errors.num_reference}), "
        f"exact words {100 * num_exact / len(utterances):.1f} % ({num_exact} of {len(utterances)})"
    )


def in_sherpa_onnx(graphs: Path, table: Path, split: str, *, prefer_int8: bool) -> list[ScoredUtterance]:
    """Recognize the words of a split."""
    import sherpa_onnx

    files = (str(find_graph(graphs, role, prefer_int8)) for role in ("encoder", "decoder", "joiner"))
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(str(graphs / "tokens.txt"), *files, num_threads=1)
    utterances = []
    with table.open(encoding="utf-8", newline="") as source:
        rows = [row for row in csv.DictReader(source, delimiter="\t") if row["split"] == split]
    for row in rows:
        stream = recognizer.create_stream()
        stream.accept_waveform(RATE, np.concatenate([read_audio(row["path"], RATE), SILENCE]))
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        tokens = (token.strip() for token in recognizer.tokens(stream))
        utterances.append(ScoredUtterance(row["id"], tuple(row["text"].split()), tuple(filter(None, tokens))))
    return utterances


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recogs", nargs="*", type=Path)
    parser.add_argument(
        "--graphs", type=Path, action="append", default=[], help="folder of streaming graphs to run in sherpa-onnx"
    )
    parser.add_argument("--table", type=Path, help="table of pinyin_units.py, for --graphs")
    parser.add_argument("--split", default="test", help="split of the table")
    arguments = parser.parse_args()
    if bool(arguments.graphs) != (arguments.table is not None):
        parser.error("--graphs needs --table, and --table --graphs")
    try:
        for path in arguments.recogs:
            report(str(path), read_recogs(path))
        for graphs in arguments.graphs:
            # a folder may hold graphs in one precision alone
            precisions = {is_int8(find_graph(graphs, "encoder", prefer)) for prefer in (False, True)}
            for prefer_int8 in sorted(precisions):
                words = in_sherpa_onnx(graphs, arguments.table, arguments.split, prefer_int8=prefer_int8)
                report(f"{graphs} in sherpa-onnx, {'int8' if prefer_int8 else 'fp32'}", words)
    except (OSError, ValueError) as err:
        parser.error(str(err))


if __name__ == "__main__":
    main()
