"""``transducer report``: the report page of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse


@dataclass(frozen=True)
class Options:
    """Options of ``transducer report``."""

    exp_dir: Path
    """Folder of the experiment, after `transducer train` and `transducer decode`."""
    model: Path
    """Model file, as written by `transducer average`."""
    output: Path = Path("report.html")
    """Page to write."""
    sounds: tuple[Path, ...] = ()
    """Sound files to transcribe on the page; the first one is drawn."""
    references: tuple[str, ...] = ()
    """Reference texts of `--sounds`: one per file, or none."""
    title: str = "Stateless transducer"
    """Title of the page."""

    def __post_init__(self) -> None:
        if self.references and len(self.references) != len(self.sounds):
            raise ValueError(
                f"`--references` must be as many as `--sounds` ({len(self.sounds)}), but are {len(self.references)}."
            )


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Write a page: losses, error rates, token times."))
    return 0


def run(options: Options) -> None:
    """Transcribe the examples and write the page."""
    from stateless_transducer.checkpoint import load_checkpoint
    from stateless_transducer.commands.shared.models import describe_training
    from stateless_transducer.evaluation.report import Example, write_report
    from stateless_transducer.files import check_output
    from stateless_transducer.recognition.recognizer import Recognizer

    check_output(options.output, model=options.model, sounds=options.sounds)
    checkpoint = load_checkpoint(options.model)
    recognizer = Recognizer(checkpoint)
    waves = [recognizer.read(path) for path in options.sounds]
    transcripts = recognizer.transcribe(waves)
    references = options.references or ("",) * len(waves)
    examples = [
        Example(path.name, reference, transcript, recognizer.features(wave))
        for path, reference, transcript, wave in zip(options.sounds, references, transcripts, waves, strict=True)
    ]
    provenance = checkpoint.provenance
    num_parameters = sum(weight.numel() for weight in checkpoint.weights.values())
    facts = {
        "model": f"{num_parameters:,} parameters: {checkpoint.model_config.summary}",
        "trained": "unknown",
        "averaged": "no",
        **describe_training(provenance),
        "command": str(provenance.get("command", "unknown")),
    }
    write_report(options.output, title=options.title, facts=facts, exp_dir=options.exp_dir, examples=examples)
    say(f"{options.output}: open it in a browser")
