"""``transducer prepare synthetic``: a synthetic Mandarin corpus in AISHELL's layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from stateless_transducer.commands.shared.console import progress_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.corpora.synthetic import SyntheticConfig, is_complete, synthesize_corpus
from stateless_transducer.options import check_bounds
from stateless_transducer.threads import num_cores
from stateless_transducer.wording import counted


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare synthetic``."""

    corpus_dir: Path
    """Folder for data_aishell/ and resource_aishell/."""
    corpus: SyntheticConfig = field(default_factory=SyntheticConfig)
    num_jobs: Annotated[int, Ge(1)] = num_cores()
    """Processes that synthesize."""

    def __post_init__(self) -> None:
        check_bounds(self)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Synthesize a Mandarin corpus in AISHELL's layout; the seed determines it."))
    return 0


def run(options: Options) -> None:
    """Synthesize the corpus unless the folder already holds it."""
    if is_complete(options.corpus_dir, options.corpus):
        say(f"{options.corpus_dir}: already synthesized - skipping")
        return
    with progress_bar("synthesizing voices") as progress:
        synthesize_corpus(options.corpus_dir, options.corpus, num_jobs=options.num_jobs, progress=progress)
    wavs = list((options.corpus_dir / "data_aishell" / "wav").rglob("*.wav"))
    # 16-bit samples after a header of 44 bytes
    hours = sum(path.stat().st_size - 44 for path in wavs) / 2 / 16000 / 3600
    say(f"{options.corpus_dir}: {counted(len(wavs), 'utterance')}, {hours:.2f} h of speech")
