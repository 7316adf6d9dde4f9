"""``transducer demo``: from synthetic speech to a trained recognizer in minutes.

Every step is the command of the same name, with small sizes; finished steps are skipped.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from tyro.conf import arg

from stateless_transducer.commands import (
    average,
    decode,
    prepare_aishell,
    prepare_synthetic,
    report,
    stream,
    train,
    transcribe,
)
from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.config import DataConfig, PrepareConfig, SpecAugmentConfig
from stateless_transducer.data.corpora.synthetic import SyntheticConfig
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.sizes import ENCODER_SIZES
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.training.averaging import Average
from stateless_transducer.training.config import OptimConfig, TrainConfig
from stateless_transducer.wording import counted

_TINY = ENCODER_SIZES["conformer"]["tiny"]

SIZES = ModelConfig(
    vocab_size=181,  # overridden by the token table
    encoder=replace(_TINY.encoder, dropout=0.0),
    joiner=_TINY.joiner,
    # the synthetic voices are equally loud; real recordings are not
    feature_norm="level",
)
"""Sizes of the demo's model: the modules of the full model with a million parameters."""


@dataclass(frozen=True)
class Options:
    """Options of ``transducer demo``."""

    dir: Path = Path("demo")
    """Folder for corpus, prepared data, checkpoints, results and report."""
    num_epochs: Annotated[Annotated[int, Ge(1)] | None, arg(metavar="INT")] = None
    """Epochs to train. By default 3, or 8 for live sound."""
    corpus: Annotated[SyntheticConfig, ADVANCED] = field(default_factory=SyntheticConfig)
    streaming: bool = False
    """Train a model for live sound, and report its error rates on live sound and on whole utterances."""
    num_jobs: Annotated[int, Ge(1)] = os.cpu_count() or 1
    """Processes for synthesis and features."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def total_epochs(self) -> int:
        """Epochs to train."""
        return self.num_epochs or (8 if self.streaming else 3)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Synthesize a corpus, train on it, decode, transcribe, write a report."))
    return 0


def run(options: Options) -> None:
    """Run the seven steps."""
    started = time.monotonic()
    corpus_dir, data_dir = options.dir / "corpus", options.dir / "data"
    # both demos share corpus and data
    suffix = "-streaming" if options.streaming else ""
    exp_dir = options.dir / f"exp{suffix}"
    model_path, page = options.dir / f"model{suffix}.pt", options.dir / f"report{suffix}.html"
    minutes = 16 if options.streaming else 7
    say(f"Seven steps, about {minutes} minutes on two cores. Training takes most of them, and shows the time left.")

    _head(1, "synthesize a Mandarin corpus")
    prepare_synthetic.run(prepare_synthetic.Options(corpus_dir, options.corpus, options.num_jobs))

    _head(2, "prepare it as AISHELL is prepared: manifests, fbank, tokens")
    # the voices already differ in speaking rate
    prepare = PrepareConfig(data_dir=data_dir, perturb_speed=False, num_jobs=options.num_jobs)
    prepare_aishell.run(prepare_aishell.Options(corpus_dir, prepare=prepare))

    _head(3, "train a small model")
    if not _train(options, data_dir, exp_dir):
        say("\nStopped. Run the same command to resume.")
        return

    # of three epochs, the second is not yet worth averaging with the last
    num_averaged = min(2, options.total_epochs) if options.streaming else 1
    averaged = Average(epoch=options.total_epochs - 1, avg=num_averaged)
    _head(4, f"average the last {num_averaged} checkpoints" if num_averaged > 1 else "write the model")
    average.run(average.Options(exp_dir, model_path, averaged))

    _head(5, "decode the test set: voices and sentences that training has not heard")
    for search in (SearchConfig("greedy_search"), SearchConfig("modified_beam_search", beam_size=4)):
        for is_live in (False, True) if options.streaming else (False,):
            decode.run(
                decode.Options(
                    exp_dir=exp_dir,
                    average=averaged,
                    manifest_dir=data_dir / "fbank",
                    search=search,
                    streaming=is_live,
                )
            )

    sounds = _three_sounds(corpus_dir)
    if options.streaming:
        _compare(exp_dir)
        _head(6, "transcribe three of its files as they sound: transducer stream")
        for sound in sounds:
            stream.run(stream.Options(str(model_path), sound))
    else:
        _head(6, "transcribe three of its files: transducer transcribe")
        transcribe.run(transcribe.Options(str(model_path), tuple(map(str, sounds))))

    _head(7, "report")
    report.run(
        report.Options(
            exp_dir=exp_dir,
            model=model_path,
            output=page,
            sounds=tuple(sounds),
            references=tuple(sounds.values()),
            title="Stateless transducer: demo on synthetic Mandarin",
        )
    )
    say(f"\nAll done in {(time.monotonic() - started) / 60:.1f} minutes. Try a file of yours:")
    say(f"  transducer transcribe {model_path} {next(iter(sounds))}")
    if options.streaming:
        say("Or speak: the page of the server shows words as they come.")
        say(f"  transducer serve {model_path}")


def _compare(exp_dir: Path) -> None:
    """Print the error rates of whole utterances and of live sound side by side."""
    from stateless_transducer.evaluation.report import read_results

    rates: dict[str, dict[bool, float]] = {}
    for result in read_results(exp_dir):
        rates.setdefault(result["method"], {})["-streaming-" in result["name"]] = result["error_rate"]
    for method, rate in rates.items():
        say(f"{method}: CER {rate[False]:.2f} % of whole utterances, {rate[True]:.2f} % of live sound")


def train_options(options: Options, data_dir: Path, exp_dir: Path) -> train.Options:
    """Return the training options of the demo, chosen by experiments (docs/experiments.md)."""
    streaming = options.streaming
    return train.Options(
        lang_dir=data_dir / "lang_char",
        train=TrainConfig(
            exp_dir=exp_dir,
            num_epochs=options.total_epochs,
            resume=True,
            optim=OptimConfig(
                optimizer="muon",
                peak_lr=2.5e-3 if streaming else 4e-3,
                warm_step=300,
                ctc_loss_scale=0.5,
                ctc_epochs=3 if streaming else 2,
                whole_epochs=3 if streaming else 0,
            ),
        ),
        data=DataConfig(
            manifest_dir=data_dir / "fbank",
            max_duration=16.0,
            num_buckets=4,
            min_utterance_s=0.3,
            num_workers=0,
            enable_musan=False,
            # espeak-ng's recordings are short and have no leading silence
            silence_s=0.5,
            join_up_to_s=12.0,
            lengthen_from_epoch=3 if streaming else 1,
            spec_augment=SpecAugmentConfig(
                spec_aug_time_warp_factor=0, features_mask_size=20, num_frame_masks=0, spec_aug_probability=1.0
            ),
        ),
        model=train.ModelFlags(
            encoder=replace(SIZES.encoder, causal=streaming),
            joiner=SIZES.joiner,
            # live sound has no level yet that could be subtracted
            feature_norm="global" if streaming else SIZES.feature_norm,
        ),
    )


def _train(options: Options, data_dir: Path, exp_dir: Path) -> bool:
    """Train; return whether all epochs are finished."""
    from stateless_transducer.checkpoint import epoch_path
    from stateless_transducer.training.state import find_resumable

    config = train_options(options, data_dir, exp_dir)
    resumable, last = find_resumable(config.train), epoch_path(exp_dir, options.total_epochs - 1)
    prepared = (data_dir / "manifests" / ".aishell_manifests.done").stat().st_mtime
    if resumable is not None and resumable.path.stat().st_mtime < prepared:
        raise ValueError(f"{exp_dir} was trained on other data. Remove it, or choose another `--dir`.")
    if last.exists():
        say(f"{exp_dir}: already trained for {counted(options.total_epochs, 'epoch')} - skipping")
        return True
    if resumable is not None:
        say(f"{exp_dir}: resuming from {resumable.path.name}")
    streaming = " --streaming true" if options.streaming else ""
    train.run(config, command=f"transducer demo --dir {options.dir}{streaming}")
    return last.exists()


def _three_sounds(corpus_dir: Path) -> dict[Path, str]:
    """Return test files of three voices with their transcripts."""
    from stateless_transducer.data.corpora.aishell import read_aishell

    utterances, _ = read_aishell(corpus_dir)
    by_speaker = {u.speaker: u for u in utterances if u.split == "test" and len(u.text) > 20}
    return {u.path: u.text.replace(" ", "") for u in list(by_speaker.values())[:3]}


def _head(number: int, title: str) -> None:
    say(f"\n=== {number} of 7: {title}")
