"""``transducer prepare aishell``: AISHELL-1, or any corpus in its layout, ready for training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stateless_transducer.commands.console import progress_bar, say
from stateless_transducer.commands.flags import parse
from stateless_transducer.data.config import Limits, PrepareConfig

PREFIX = "aishell"


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare aishell``."""

    corpus_dir: Path
    """Folder that holds data_aishell/."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    limits: Limits = field(default_factory=Limits)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Manifests, fbank features and character tokens of AISHELL-1, each made once."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Manifests, features, tokens."""
    from stateless_transducer.data.corpora.aishell import read_aishell, read_transcript
    from stateless_transducer.data.preparation import prepare_features, prepare_manifests
    from stateless_transducer.text.lang import write_char_lang

    transcript = options.corpus_dir / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    is_new = prepare_manifests(
        lambda: read_aishell(options.corpus_dir),
        source=options.corpus_dir,
        transcripts=transcript,
        prefix=PREFIX,
        config=options.prepare,
        limits=options.limits,
        say=say,
        bar=progress_bar,
    )
    prepare_features(PREFIX, options.prepare, say=say, bar=progress_bar)
    lang_dir = options.prepare.data_dir / "lang_char"
    if (lang_dir / "tokens.txt").exists() and not is_new:
        say(f"{lang_dir}/tokens.txt: already there - skipping")
        return
    texts, _ = read_transcript(transcript)
    # all splits, as the recipe does: so come 4336 tokens for AISHELL-1
    tokens = write_char_lang(lang_dir, list(texts.values()))
    say(f"{lang_dir}: {len(tokens)} tokens")
