"""What the user chooses about the search. Free of torch, so that ``--help`` need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["greedy_search", "modified_beam_search"]


@dataclass(frozen=True)
class SearchConfig:
    """How hypotheses are found."""

    decoding_method: Method = "greedy_search"
    """The best symbol of each frame, or the best few hypotheses (one symbol a frame)."""
    max_sym_per_frame: int = 1
    """greedy_search: symbols that one frame may emit."""
    beam_size: int = 4
    """modified_beam_search: hypotheses kept."""

    def __post_init__(self) -> None:
        for name in ("max_sym_per_frame", "beam_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(self, name)}.")

    @property
    def key(self) -> str:
        """Name of the setting in summaries, as icefall's."""
        return self.decoding_method if self.decoding_method == "greedy_search" else f"beam_size_{self.beam_size}"

    def suffix(self, context_size: int) -> str:
        """Tail of the names of result files, as icefall's."""
        if self.decoding_method == "greedy_search":
            return f"context-{context_size}-max-sym-per-frame-{self.max_sym_per_frame}"
        return f"{self.decoding_method}-beam-size-{self.beam_size}"
