"""``transducer prepare ngram``: an n-gram language model for the beam searches, counted from texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Interval
from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.texts import Sentences, check_texts
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.text.arpa import END, START, write_arpa
from stateless_transducer.text.kneser_ney import MAX_ORDER, estimate
from stateless_transducer.text.ngram import Ngrams, ngrams_of
from stateless_transducer.text.tokens import BLANK, SOS_EOS, TokenTable
from stateless_transducer.wording import counted


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare ngram``."""

    texts: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE [FILE ...]")]
    """UTF-8 texts, one sentence per line, or manifests: .jsonl with a "text" per object. Both may be .gz."""
    output: Path
    """ARPA file to write (.arpa, .arpa.gz)."""
    lang_dir: Path = Path("data/lang_char")
    """Folder with the model's tokens.txt: that of its training, or an exported model."""
    order: Annotated[int, Interval(ge=1, le=MAX_ORDER)] = 4
    """Tokens of the longest n-gram: 3 to 5 for Chinese characters, 6 to 8 for letters."""
    min_count: Annotated[int, Ge(1), ADVANCED] = 1
    """Drop n-grams of three or more tokens that occur less often than this."""
    held_out: Path | None = None
    """Text like that to be recognized; its perplexity is reported."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.texts:
            raise ValueError("Name at least one text.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = (
        "Estimate an n-gram language model over a model's tokens (modified Kneser-Ney), for `decode --ngram-lm`."
    )
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Estimate the model, write it and report its size and perplexity.

    Raises:
        ValueError: A text cannot be read, or the texts are empty.
    """
    table = TokenTable.read(options.lang_dir)
    held_out = () if options.held_out is None else (options.held_out,)
    check_texts((*options.texts, *held_out), options.output)
    if held_out and next(iter(Sentences(held_out, table)), None) is None:
        raise ValueError(f"`--held-out` {options.held_out} holds no token.")
    sentences = Sentences(options.texts, table)
    levels = estimate(
        map(table.ids_of, sentences),
        vocab_size=len(table),
        unsaid=[table.ids[symbol] for symbol in (BLANK, SOS_EOS) if symbol in table.ids],
        order=options.order,
        min_count=options.min_count,
    )
    sentences.complain(options.lang_dir)
    write_arpa(options.output, levels, [*table.symbols, START, END])
    counts = ", ".join(f"{len(level.tokens)} {n}-grams" for n, level in enumerate(levels, start=1))
    say(
        f"{options.output}: {counts} of {counted(sentences.num_sentences, 'sentence')}, "
        + counted(sentences.num_units, "token")
    )
    if held_out:
        held_out_sentences = Sentences(held_out, table)
        ngrams = ngrams_of(levels, vocab_size=len(table), unknown_id=table.unknown_id)
        perplexity = _perplexity(ngrams, held_out_sentences, table)
        held_out_sentences.complain(options.lang_dir)
        say(
            f"{options.held_out}: perplexity {perplexity:.1f} per token, "
            + counted(held_out_sentences.num_sentences, "sentence")
        )


def _perplexity(ngrams: Ngrams, sentences: Iterable[Sequence[str]], table: TokenTable) -> float:
    """Return the perplexity per token, ends of sentences included."""
    total, count = 0.0, 0
    for units in sentences:
        scores = ngrams.log_probs_of(table.ids_of(units))
        total, count = total - float(scores.sum()), count + len(scores)
    return math.exp(total / max(count, 1))
