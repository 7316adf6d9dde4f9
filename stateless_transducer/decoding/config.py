# pyright: strict
"""What the user chooses about the search. Free of torch, so that ``--help`` need not load it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from tyro.conf import arg

from stateless_transducer.files import sha256
from stateless_transducer.options import ADVANCED, check_bounds

Method = Literal["greedy_search", "beam_search", "modified_beam_search"]


@dataclass(frozen=True)
class SearchConfig:
    """Search.

    Example:
        >>> config = SearchConfig("modified_beam_search", beam_size=8, blank_penalty=0.5)
        >>> Recognizer.from_pretrained("model.pt", config).transcribe("a.wav").text
        '今天很好'
    """

    decoding_method: Annotated[Method, arg(aliases=("--method",))] = "greedy_search"
    """greedy_search: best symbol per frame. beam_search: any number of symbols per frame. modified_beam_search: at most
    one."""
    max_sym_per_frame: Annotated[int, Ge(1)] = 1
    """greedy_search: most symbols per frame."""
    beam_size: Annotated[int, Ge(1)] = 4
    """beam_search, modified_beam_search: hypotheses to keep."""
    blank_penalty: Annotated[float, ADVANCED] = 0.0
    """Subtracted from the logit of the blank: a higher value gives fewer deletions and more insertions."""
    temperature: Annotated[float, Gt(0), ADVANCED] = 1.0
    """Divisor of the logits: a value above 1 flattens the model's distribution."""
    hotwords_file: Path | None = None
    """beam_search, modified_beam_search: phrases to boost, one per line; `phrase :3` sets the score per token of that
    phrase."""
    hotwords_score: Annotated[float, ADVANCED] = 2.0
    """Added to the log-probability of a hypothesis per token of a hotword."""
    ngram_lm: Path | None = None
    """beam_search, modified_beam_search: language model over the model's tokens, an ARPA file (.arpa, .arpa.gz)."""
    lm_scale: float = 0.3
    """Weight of the language model's log-probabilities."""
    lodr_lm: Annotated[Path | None, ADVANCED] = None
    """ARPA file of a short language model (2 or 3 tokens) of the training transcripts, whose influence is subtracted
    (low-order density ratio)."""
    lodr_scale: Annotated[float, ADVANCED] = 0.2
    """Weight of the log-probabilities that `--lodr-lm` subtracts."""
    length_norm: Annotated[float, ADVANCED] = 1.0
    """beam_search, modified_beam_search: hypotheses are ranked by log-probability / length ^ this; with 0, by
    log-probability alone."""

    def __post_init__(self) -> None:
        # from Python, paths may be strings
        for name, path in self.scorer_files.items():
            object.__setattr__(self, name, Path(path))
        check_bounds(self)
        for name, path in self.scorer_files.items():
            if self.decoding_method == "greedy_search":
                raise ValueError(f"`{name}` {path} needs a beam: add `decoding_method=modified_beam_search`.")

    @property
    def scorer_files(self) -> dict[str, Path]:
        """What `make_scorer` reads, by name of the option."""
        files = {name: getattr(self, name) for name in ("hotwords_file", "ngram_lm", "lodr_lm")}
        return {name: path for name, path in files.items() if path is not None}

    @property
    def is_modified(self) -> bool:
        """Whether a frame emits one symbol at most."""
        if self.decoding_method == "greedy_search":
            return self.max_sym_per_frame == 1
        return self.decoding_method == "modified_beam_search"

    @property
    def key(self) -> str:
        """Name of the setting in summaries, as icefall's."""
        return self.decoding_method if self.decoding_method == "greedy_search" else f"beam_size_{self.beam_size}"

    def suffix(self, context_size: int) -> str:
        """Tail of the names of result files, as icefall's.

        Raises:
            OSError: a file of hotwords or n-grams cannot be read.
        """
        if self.decoding_method == "greedy_search":
            suffix = f"context-{context_size}-max-sym-per-frame-{self.max_sym_per_frame}"
        else:
            suffix = f"{self.decoding_method}-beam-size-{self.beam_size}"
        # icefall has no such options; results of other settings must not take the place of the plain ones
        if self.blank_penalty:
            suffix += f"-blank-penalty-{self.blank_penalty:g}"
        if self.temperature != 1:
            suffix += f"-temperature-{self.temperature:g}"
        if self.hotwords_file is not None:
            suffix += f"-{_name_and_hash(self.hotwords_file)}-score-{self.hotwords_score:g}"
        if self.ngram_lm is not None:
            suffix += f"-{_name_and_hash(self.ngram_lm)}-scale-{self.lm_scale:g}"
        if self.lodr_lm is not None:
            suffix += f"-lodr-{_name_and_hash(self.lodr_lm)}-scale-{self.lodr_scale:g}"
        if self.length_norm != 1:
            suffix += f"-length-norm-{self.length_norm:g}"
        return suffix


def _name_and_hash(path: Path) -> str:
    """``names-1b4f0e98``: another one when the content is another one, and the same wherever the file lies."""
    name = re.sub(r"\.(txt|arpa(\.gz)?)$", "", path.name)
    return f"{name}-{sha256(path)[:8]}"
