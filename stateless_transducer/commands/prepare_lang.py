"""``transducer prepare lang``: the tokens of several prepared corpora together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from stateless_transducer.commands.console import say
from stateless_transducer.commands.flags import parse


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare lang``."""

    prefixes: Annotated[tuple[str, ...], Positional, arg(metavar="NAME [NAME ...]")]
    """Names of the corpora; the manifests of their train splits are read."""
    lang_dir: Path
    """Folder to write."""
    data_dir: Path = Path("data")
    """Folder that holds manifests/."""
    token: Literal["char", "word"] = "char"
    """Unit of the model's output."""

    def __post_init__(self) -> None:
        if not self.prefixes:
            raise ValueError("Name at least one corpus.")


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
    from stateless_transducer.text.tokens import build_token_table

    manifest_dir = options.data_dir / "manifests"
    for prefix in options.prefixes:
        path = manifest_path(manifest_dir, prefix, "supervisions", "train")
        if not path.is_file():
            raise ValueError(f"{path} is missing; run `transducer prepare` first.")
    texts = [text for prefix in options.prefixes for text in read_texts(manifest_dir, prefix, "train")]
    tokens = build_token_table(texts, options.token, keep_spaces=options.token == "char")
    tokens.write(options.lang_dir)
    say(f"{options.lang_dir}: {len(tokens)} tokens")
