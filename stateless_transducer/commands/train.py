"""``transducer train``: prepared data -> checkpoints."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Suppress

from stateless_transducer.commands.flags import parse
from stateless_transducer.data.config import DataConfig
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.training.config import TrainConfig


@dataclass(frozen=True)
class ModelFlags(ModelConfig):
    """The sizes that a user chooses; the others follow from tokens and features."""

    vocab_size: Annotated[int, Suppress] = 4336
    feature_dim: Annotated[int, Suppress] = 80
    blank_id: Annotated[int, Suppress] = 0


@dataclass(frozen=True)
class Options:
    """Options of ``transducer train``."""

    lang_dir: Path = Path("data/lang_char")
    """Folder with tokens.txt."""
    train_split: str = "train"
    """Split to train on."""
    dev_split: str = "dev"
    """Split to validate on, if it is prepared."""
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelFlags = field(default_factory=ModelFlags)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    options = parse(Options, program, arguments, "Train a stateless transducer; defaults are the tutorial's.")
    run(options, command=shlex.join([*program.split(), *arguments]))
    return 0


def run(options: Options, *, command: str) -> None:
    """Train on this machine's processes."""
    from stateless_transducer.checkpoint import saved_epochs
    from stateless_transducer.text.tokens import TokenTable
    from stateless_transducer.training.distributed import launch
    from stateless_transducer.training.trainer import load_resumable

    # what can be wrong is found before any process starts
    TokenTable.read(options.lang_dir)
    if options.train.start_epoch:
        load_resumable(options.train, options.train.start_epoch)
    elif saved := saved_epochs(options.train.exp_dir):
        raise ValueError(
            f"`--exp-dir` {options.train.exp_dir} holds epoch-{saved[-1]}.pt of an earlier run; go on with "
            f"`--start-epoch {saved[-1] + 1}`, or choose another folder."
        )
    launch(_train_on_rank, options, command, world_size=options.train.world_size, master_port=options.train.master_port)


def _train_on_rank(rank, options: Options, command: str) -> None:
    from stateless_transducer.data.batches import load_cuts, trainable
    from stateless_transducer.data.manifests import manifest_path, noise_cuts_path
    from stateless_transducer.features import FbankConfig
    from stateless_transducer.text.tokens import TokenTable
    from stateless_transducer.training.progress import open_log
    from stateless_transducer.training.trainer import Trainer

    config, data = options.train, options.data
    log = open_log(
        config.exp_dir / "log", "log-train", rank=rank.rank, world_size=rank.world_size, to_console=rank.is_main
    )
    log.info(f"Training started on {rank.device}: {command}")
    tokens = TokenTable.read(options.lang_dir)
    training_set = trainable(load_cuts(data.manifest_dir, data.prefix, options.train_split), tokens, data)
    for reason, count in training_set.left_out.items():
        log.warning(f"Left out {count} utterances {reason}")
    noise = noise_cuts_path(data.manifest_dir)
    if data.enable_musan and not noise.exists():
        log.warning(f"No noise is mixed in: {noise} is missing; `transducer prepare musan` makes it")
    dev_cuts = None
    if manifest_path(data.manifest_dir, data.prefix, "cuts", options.dev_split).exists():
        dev_cuts = load_cuts(data.manifest_dir, data.prefix, options.dev_split)
    else:
        log.warning(f"No split {options.dev_split!r} is prepared: there is no validation loss")
    sizes = {**asdict(options.model), "vocab_size": len(tokens), "blank_id": tokens.blank_id}
    trainer = Trainer(
        config=config,
        data_config=data,
        model_config=ModelConfig(**sizes),
        fbank_config=FbankConfig(),
        token_table=tokens,
        training_set=training_set,
        dev_cuts=dev_cuts,
        rank=rank,
        logger=log,
        command=command,
    )
    log.info(f"Number of model parameters: {trainer.num_parameters}")
    trainer.run()
    log.info("Done!")
