"""``transducer prepare lang``: the tokens of several prepared corpora together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from stateless_transducer.commands.console import say
from stateless_transducer.commands.flags import parse
from stateless_transducer.text.tokens import Unit, build_token_table, check_vocab_size


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare lang``."""

    prefixes: Annotated[tuple[str, ...], Positional, arg(metavar="NAME [NAME ...]")]
    """Names of the corpora; the manifests of their train splits are read."""
    lang_dir: Path
    """Folder to write."""
    data_dir: Path = Path("data")
    """Folder that holds manifests/."""
    token: Unit = "char"
    """Unit of the model's output; bpe: pieces of words."""
    vocab_size: int | None = None
    """Number of tokens with `--token bpe`; None: 500."""

    def __post_init__(self) -> None:
        if not self.prefixes:
            raise ValueError("Name at least one corpus.")
        check_vocab_size(self.vocab_size, self.token)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Tokens of the training texts of several prepared corpora together."))
    return 0


def run(options: Options) -> None:
    """Read the texts, write the tokens.

    Raises:
        ValueError: a corpus is not prepared.
    """
    from stateless_transducer.data.manifests import manifest_path, read_texts

    manifest_dir = options.data_dir / "manifests"
    for prefix in options.prefixes:
        path = manifest_path(manifest_dir, prefix, "supervisions", "train")
        if not path.is_file():
            raise ValueError(f"{path} is missing; run `transducer prepare` first.")
    texts = [text for prefix in options.prefixes for text in read_texts(manifest_dir, prefix, "train")]
    tokens = build_token_table(texts, options.token, keep_spaces=options.token == "char", vocab_size=options.vocab_size)
    tokens.write(options.lang_dir)
    say(f"{options.lang_dir}: {len(tokens)} tokens")
