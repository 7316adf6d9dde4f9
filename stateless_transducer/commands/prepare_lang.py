"""``transducer prepare lang``: one token table of several prepared corpora."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.config import TokenConfig
from stateless_transducer.text.tokens import build_token_table


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare lang``."""

    prefixes: Annotated[tuple[str, ...], Positional, arg(metavar="NAME [NAME ...]")]
    """Names of the corpora, whose train splits are read."""
    lang_dir: Path
    """Folder to write."""
    data_dir: Path = Path("data")
    """Folder that holds manifests/."""
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        if not self.prefixes:
            raise ValueError("Name at least one corpus.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Make one token table for the training texts of several prepared corpora."))
    return 0


def run(options: Options) -> None:
    """Build and write the token table.

    Raises:
        ValueError: A corpus is not prepared.
    """
    from stateless_transducer.data.manifests import manifest_path, read_texts

    manifest_dir = options.data_dir / "manifests"
    for prefix in options.prefixes:
        path = manifest_path(manifest_dir, prefix, "supervisions", "train")
        if not path.is_file():
            raise ValueError(f"{path} is missing; run `transducer prepare` first.")
    texts = [text for prefix in options.prefixes for text in read_texts(manifest_dir, prefix, "train")]
    kind = options.tokens
    tokens = build_token_table(texts, kind.token, keep_spaces=kind.token == "char", vocab_size=kind.num_pieces)
    tokens.write(options.lang_dir)
    say(f"{options.lang_dir}: {kind.told(len(tokens))}")
