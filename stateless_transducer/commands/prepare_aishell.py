"""``transducer prepare aishell``: AISHELL-1, or any corpus in its layout, ready for training."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stateless_transducer.commands.shared.console import progress_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.config import Limits, PrepareConfig
from stateless_transducer.wording import counted

PREFIX = "aishell"


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare aishell``."""

    corpus_dir: Path
    """Folder that holds data_aishell/."""
    step: Literal["all", "manifests", "fbank", "lang"] = "all"
    """Single step to run."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    limits: Limits = field(default_factory=Limits)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Prepare manifests, fbank features and character tokens of AISHELL-1; skip finished steps."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Manifests, features, tokens."""
    transcript = options.corpus_dir / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    if options.step in ("all", "manifests"):
        _prepare_manifests(transcript, options)
    if options.step in ("all", "fbank"):
        from stateless_transducer.data.preparation import prepare_features

        prepare_features(PREFIX, options.prepare, say=say, bar=progress_bar)
    if options.step in ("all", "lang"):
        _prepare_lang(transcript, options.prepare.data_dir / "lang_char")


def _prepare_manifests(transcript: Path, options: Options) -> None:
    from stateless_transducer.data.corpora.aishell import read_aishell
    from stateless_transducer.data.preparation import prepare_manifests
    from stateless_transducer.files import size_and_time

    prepare_manifests(
        lambda: read_aishell(options.corpus_dir),
        source=options.corpus_dir,
        depends_on={"transcripts": size_and_time(transcript)},
        prefix=PREFIX,
        config=options.prepare,
        limits=options.limits,
        say=say,
        bar=progress_bar,
    )


def _prepare_lang(transcript: Path, lang_dir: Path) -> None:
    """Tokens and words of all splits, as the recipe does: so come 4336 tokens for AISHELL-1."""
    from stateless_transducer.data.corpora.id_lines import read_id_lines
    from stateless_transducer.text.tokens import lang_is_of, write_char_lang

    if not transcript.is_file():
        raise ValueError(f"`--corpus-dir`: {transcript} is missing.")
    # as the manifests have them
    texts = [unicodedata.normalize("NFC", text) for text in read_id_lines(transcript)[0].values()]
    if lang_is_of(lang_dir, texts):
        say(f"{lang_dir}/tokens.txt: already there - skipping")
        return
    say(f"{lang_dir}: {counted(len(write_char_lang(lang_dir, texts)), 'token')}")
