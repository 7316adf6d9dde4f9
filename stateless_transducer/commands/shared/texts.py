"""Input texts of commands, split into a model's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from stateless_transducer.commands.shared.console import complain, progress_bar
from stateless_transducer.files import check_file
from stateless_transducer.text.sentences import read_sentences
from stateless_transducer.text.tokens import TokenTable


def check_texts(paths: Sequence[Path], output: Path | None) -> None:
    """Check the paths of texts before reading any.

    Raises:
        ValueError: A text is missing, is a table, or is the output.
    """
    for path in paths:
        check_file(path)
        if Path(path.name.removesuffix(".gz")).suffix.lower() in (".tsv", ".csv"):
            # lines of tables are not sentences, and those of dev and test must not be learned
            raise ValueError(
                f"{path} is a table, not a text with a sentence per line. `transducer prepare table` writes one of "
                "the training sentences: data/manifests/table_supervisions_train.jsonl.gz."
            )
        if output is not None and output.exists() and output.samefile(path):
            raise ValueError(f"`--output` {output} is one of the texts. Name another file.")


class Sentences:
    """The units of each sentence of some texts, with counts of the sentences and units read."""

    def __init__(self, paths: Sequence[Path], tokens: TokenTable) -> None:
        self._paths, self._tokens = paths, tokens
        self.num_sentences: int = 0
        self.num_units: int = 0
        self._unknown: Counter[str] = Counter()

    def __iter__(self) -> Iterator[list[str]]:
        with progress_bar("sentences") as move:
            for path in self._paths:
                for sentence in read_sentences(path):
                    units = self._tokens.split(sentence)
                    if not units:
                        continue
                    self.num_sentences, self.num_units = self.num_sentences + 1, self.num_units + len(units)
                    self._unknown.update(unit for unit in units if unit not in self._tokens.ids)
                    if self.num_sentences % 1000 == 0:
                        move(self.num_sentences, 0)
                    yield units

    def complain(self, lang_dir: Path) -> None:
        """Report the units without a token, if any."""
        if self._unknown:
            first = " ".join(unit for unit, _ in self._unknown.most_common(20))
            complain(f"{self._unknown.total()} of {self.num_units} units are not tokens of {lang_dir}: {first}")
