"""Models in folders and repositories, recognized by the names of their files.

Supported layouts: three ONNX graphs and tokens.txt, offline or streaming, as sherpa-onnx and icefall publish them and
`transducer export onnx` writes them; and a checkpoint with tokens.txt, as in icefall's repositories
(``exp/pretrained.pt``, ``data/lang_char/tokens.txt``) and as `transducer push` writes it. A pushed causal model has
both, its graphs in the folder ``streaming``. Contents are not read, so that the files of a repository can be chosen
before they are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from stateless_transducer.files import way_from_training

Form = Literal["graphs", "checkpoint"]
"""Form of a model: three ONNX graphs, or weights for torch."""
Precision = Literal["fp32", "bf16", "int8"]

ROLES = ("encoder", "decoder", "joiner")
TOKENS = "tokens.txt"
WEIGHTS, STREAMING = "model.safetensors", "streaming"
"""Checkpoint of a model that `transducer push` wrote, and folder of the graphs for live sound of a causal one."""

_MOST_LISTED = 5
"""Files that a message lists."""
_MOST_FOLDERS = 2
"""Folders between a model and its files: ``data/lang_char/tokens.txt`` has two."""
_CHECKPOINTS = (WEIGHTS, "model.pt", "pretrained.pt", "pretrained*.pt", "epoch-*.pt")
"""Names of checkpoints in a folder or its ``exp``; the first that matches decides."""
_BESIDE_TOKENS = ("bpe.model", "bbpe.model", "bpe.vocab", "lang.json")
_BESIDE_MODEL = ("model.json",)
# precision -> endings of a graph's stem, the preferred one first
_TWINS = {"fp32": ("", ".fp16", ".int8"), "bf16": ("", ".fp16", ".int8"), "int8": (".int8", "", ".fp16")}
# kind of an unsupported model -> what the names of its files (or of its folder) contain
_UNSUPPORTED = {
    "a whisper model": r"whisper|(^|/)[\w.-]+-encoder(\.int8)?\.onnx$",
    "a SenseVoice model": r"sense-?voice",
    "a Paraformer model": r"paraformer|(^|/)am\.mvn$",
    "a Moonshine model": r"moonshine|(^|/)uncached_decode",
    "a CTC model": r"(^|/)(model|ctc)[^/]*\.onnx$|(^|[-_])ctc([-_]|$)",
    "a model of transformers": r"(^|/)(preprocessor_)?config\.json$",
    "a TorchScript model": r"(^|/)(cpu_jit|jit_script|encoder_jit)[^/]*\.pt$",
    "an ncnn model": r"\.ncnn\.(param|bin)$",
}


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model, as paths relative to its folder."""

    form: Form
    model: tuple[str, ...]
    """Encoder, decoder and joiner, or the checkpoint alone."""
    tokens: str
    extras: tuple[str, ...]
    """Files that are used if they exist: weights outside a graph, scores of BPE pieces, settings, card."""

    @property
    def names(self) -> tuple[str, ...]:
        """All files."""
        return (*self.model, self.tokens, *self.extras)


@dataclass(frozen=True)
class Listing:
    """Names of the files in a folder, or in a repository that is not here yet."""

    place: str
    """The folder or repository, as messages name it."""
    names: tuple[str, ...]
    """Relative paths, with ``/``."""
    advice: str = ""
    """End of the message if there is no model."""

    @classmethod
    def of_folder(cls, folder: Path) -> Listing:
        """List a folder, down to the depth at which models have files; hidden files are skipped.

        Raises:
            ValueError: There is no such folder.
        """
        if not folder.is_dir():
            fault = "is a file, not a folder" if folder.exists() else "no such folder"
            raise ValueError(f"{folder}: {fault}; a model's folder holds three ONNX graphs, or a checkpoint.")
        patterns = ["/".join("*" * depth) for depth in range(1, _MOST_FOLDERS + 2)]
        paths = (path.relative_to(folder) for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        names = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
        return cls(str(folder), tuple(sorted(names)), way_from_training(folder))

    def choose(self, forms: Sequence[Form], precision: Precision = "fp32") -> ModelFiles:
        """Return the files of the model, in the first of the forms that exists.

        Args:
            forms: Acceptable forms, the preferred one first.
            precision: Preferred precision of graphs; another one is chosen if it is the only one.

        Raises:
            ValueError: There is no model in these forms, or several; the message says what there is instead.
        """
        for form in forms:
            # the checkpoint beside these graphs serves whole utterances as well
            if form == "graphs" and "checkpoint" in forms and self._has_streaming_graphs_alone():
                continue
            files = self._find(form, precision)
            if files is not None:
                return files
        raise ValueError(f"{self.place}: {self._content(forms)}.")

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint with its tokens."""
        return self._find("checkpoint", "fp32") is not None

    def graph(self, role: str, precision: Precision = "fp32") -> str:
        """Return the graph of one role; x.onnx, x.fp16.onnx and x.int8.onnx are one graph in three precisions.

        Raises:
            ValueError: There is none, or several.
        """
        graphs = self.nearest(f"{role}*.onnx")
        if not graphs:
            raise ValueError(f"{self.place}: holds no {role}*.onnx{self.advice}.")
        candidates = next(
            twins for ending in _TWINS[precision] if (twins := [graph for graph in graphs if _ending(graph) == ending])
        )
        return self._only(candidates, f"graphs of the {role}", "Pass a folder with the files of one model.")

    def tokens(self, model: str) -> str | None:
        """Return the tokens.txt of a model: beside it, or the nearest one.

        Raises:
            ValueError: There are several.
        """
        beside = str(PurePosixPath(model).with_name(TOKENS))
        if beside in self.names:
            return beside
        # phones are the units of icefall's CTC models and of its lexicons
        tables = [name for name in self.nearest(TOKENS) if "phone" not in name]
        way_out = f"Copy that of the model beside {model}."
        return self._only(tables, "token tables", way_out) if tables else None

    def nearest(self, pattern: str) -> list[str]:
        """Return the files whose last part matches, those in the fewest folders alone."""
        matches = [name for name in self.names if fnmatchcase(PurePosixPath(name).name, pattern)]
        least = min((name.count("/") for name in matches), default=0)
        return sorted(name for name in matches if name.count("/") == least <= _MOST_FOLDERS)

    def _has_streaming_graphs_alone(self) -> bool:
        """Whether the model is a pushed causal one: a checkpoint, with graphs for live sound in a folder below."""
        joiners = self.nearest("joiner*.onnx")
        return WEIGHTS in self.names and bool(joiners) and all(name.startswith(f"{STREAMING}/") for name in joiners)

    def _find(self, form: Form, precision: Precision = "fp32") -> ModelFiles | None:
        return self._graphs(precision) if form == "graphs" else self._checkpoint()

    def _graphs(self, precision: Precision) -> ModelFiles | None:
        # an encoder alone may be that of another architecture
        if not self.nearest("joiner*.onnx"):
            return None
        graphs = tuple(self.graph(role, precision) for role in ROLES)
        tokens = self.tokens(graphs[0])
        if tokens is None:
            raise ValueError(f"{self.place}: holds ONNX graphs, but no {TOKENS}.")
        stems = {graph.removesuffix(".onnx") for graph in graphs}
        outside = [name for name in self.names if any(name in (f"{s}.onnx.data", f"{s}.weights") for s in stems)]
        return ModelFiles("graphs", graphs, tokens, (*outside, *self._extras(graphs[0], tokens)))

    def _checkpoint(self) -> ModelFiles | None:
        for pattern in _CHECKPOINTS:
            matches = [n for n in self.names if fnmatchcase(n, pattern) or fnmatchcase(n, f"exp/{pattern}")]
            # a folder of training checkpoints holds no tokens
            tokens = self.tokens(matches[0]) if matches else None
            if tokens is not None:
                example = f", such as {self.place}/{matches[-1]}" if Path(self.place).is_dir() else " after a download"
                checkpoint = self._only(matches, "checkpoints", f"Pass the path of one{example}.")
                return ModelFiles("checkpoint", (checkpoint,), tokens, self._extras(checkpoint, tokens))
        return None

    def _extras(self, model: str, tokens: str) -> tuple[str, ...]:
        beside = [*((model, name) for name in _BESIDE_MODEL), *((tokens, name) for name in _BESIDE_TOKENS)]
        paths = dict.fromkeys(str(PurePosixPath(file).with_name(name)) for file, name in beside)
        return tuple(path for path in paths if path in self.names)

    def _only(self, names: Sequence[str], kind: str, way_out: str) -> str:
        if len(names) > 1:
            listed = ", ".join([*names[:_MOST_LISTED], *(["..."] if len(names) > _MOST_LISTED else [])])
            raise ValueError(f"{self.place}: found several {kind}: {listed}. {way_out}")
        return names[0]

    def _content(self, forms: Sequence[Form]) -> str:
        """Say what there is instead of a model in these forms."""
        if "graphs" not in forms and self._find("graphs"):
            return "holds ONNX graphs, but a checkpoint is needed here"
        if "checkpoint" not in forms and self._find("checkpoint"):
            return "holds a checkpoint, but ONNX graphs are needed here"
        lacking = [f"{role}*.onnx" for role in ROLES if not self.nearest(f"{role}*.onnx")]
        kind = next((kind for kind, pattern in _UNSUPPORTED.items() if self._has(pattern)), None)
        if kind is not None and "joiner*.onnx" in lacking:
            return f"holds {kind}, which is not supported; transducers are"
        missing = [", ".join(lacking)] if "graphs" in forms else []
        missing += [f"checkpoint with {TOKENS}"] if "checkpoint" in forms else []
        return f"holds no {', and no '.join(missing)}{self.advice}"

    def _has(self, pattern: str) -> bool:
        return any(re.search(pattern, name, re.IGNORECASE) for name in (PurePosixPath(self.place).name, *self.names))


def _ending(graph: str) -> str:
    stem = graph.removesuffix(".onnx")
    return next((ending for ending in (".int8", ".fp16") if stem.endswith(ending)), "")
