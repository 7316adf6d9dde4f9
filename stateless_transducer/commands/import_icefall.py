"""``transducer import``: a checkpoint of icefall's, or the ONNX graphs of a Zipformer, as a checkpoint of ours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.icefall_sizes import IcefallSizes

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint

_LANG_DIR = Path("data/lang_char")
"""The tutorial's folder of tokens."""


@dataclass(frozen=True)
class Options:
    """Options of ``transducer import``."""

    output: Path
    """Model file to write."""
    model: Annotated[str | None, arg(aliases=("--checkpoint",), metavar="MODEL")] = None
    """icefall's pretrained.pt, epoch-N.pt or best-*.pt, the folder of a published model, or its owner/name."""
    onnx: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Instead of --model: folder with the ONNX graphs of a Zipformer, offline or streaming, or the name of a published
    one."""
    lang_dir: Annotated[Path | None, arg(aliases=("--tokens",))] = None
    """Folder with the model's tokens.txt, or that file; by default that of the published model, or data/lang_char."""
    bpe_model: Path | None = None
    """sentencepiece's model of the tokens, if it is not in their folder."""
    encoder: str | None = None
    """Kind of encoder that the file must have, conformer or zipformer; by default, any."""
    pads_like_icefall: bool = False
    """Let the padding of a batch affect the ends of shorter utterances, as in icefall, to reproduce its results."""
    sizes: IcefallSizes = field(default_factory=IcefallSizes)

    def __post_init__(self) -> None:
        if self.model is None and self.onnx is None:
            raise ValueError("Pass `model` or `onnx`; both are missing.")
        if self.model is not None and self.onnx is not None:
            raise ValueError("Pass either `model` or `onnx`, not both.")
        if self.onnx is not None and self.encoder not in (None, "zipformer"):
            raise ValueError(
                f"`encoder` is {self.encoder}, but graphs of `onnx` are imported as a zipformer. Remove `encoder`, or "
                "pass a checkpoint as `model`."
            )
        if self.onnx is not None and self.sizes.num_heads:
            raise ValueError(f"`num_heads` {','.join(map(str, self.sizes.num_heads))} is for `model`; graphs show it.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(
        parse(
            Options,
            program,
            arguments,
            "Convert a checkpoint of icefall, or the ONNX graphs of a Zipformer, into a model file.",
        )
    )
    return 0


def run(options: Options) -> None:
    """Import the model."""
    from stateless_transducer.checkpoint import save_checkpoint
    from stateless_transducer.model.config import ZipformerConfig

    checkpoint = _from_icefall(options) if options.onnx is None else _from_graphs(options)
    encoder = checkpoint.model_config.encoder
    if options.pads_like_icefall:
        if not isinstance(encoder, ZipformerConfig):
            raise ValueError(f"`pads_like_icefall` is for a zipformer, but the file holds a {encoder.kind}.")
        config = replace(checkpoint.model_config, encoder=replace(encoder, pads_like_icefall=True))
        checkpoint = replace(checkpoint, model_config=config)
    save_checkpoint(options.output, checkpoint)
    num_parameters = sum(weight.numel() for weight in checkpoint.weights.values())
    say(f"{options.output}: {num_parameters:,} parameters, {checkpoint.model_config.summary}")


def _from_icefall(options: Options) -> Checkpoint:
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.files import check_output
    from stateless_transducer.icefall import load_icefall
    from stateless_transducer.recognition.model import find_checkpoint
    from stateless_transducer.text.tokens import TokenTable

    assert options.model is not None
    model, lang_dir = find_checkpoint(find_model(options.model, forms=("checkpoint",)))
    check_output(options.output, model=model)
    tokens = TokenTable.read(options.lang_dir or lang_dir or _LANG_DIR, bpe_model=options.bpe_model)
    return load_icefall(model, tokens, sizes=options.sizes.by_name, encoder=options.encoder)


def _from_graphs(options: Options) -> Checkpoint:
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.files import check_output
    from stateless_transducer.model_files import Listing
    from stateless_transducer.onnx_import.rebuild import NOTES, rebuild

    assert options.onnx is not None
    folder = find_model(options.onnx, forms=("graphs",))
    files = Listing.of_folder(folder).choose(("graphs",)).names
    check_output(options.output, onnx=[folder / name for name in files])
    checkpoint = rebuild(folder, sizes=options.sizes.by_name, lang_dir=options.lang_dir, bpe_model=options.bpe_model)
    for name in NOTES:
        if name in checkpoint.provenance:
            say(f"{name}: {checkpoint.provenance[name]}")
    return checkpoint
