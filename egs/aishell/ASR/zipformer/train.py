#!/usr/bin/env python3
"""Train a Zipformer of size M with the pruned loss, as icefall's published one. All numbers are options: see --help."""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.commands.train import ModelFlags
    from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
    from stateless_transducer.model.config import DecoderConfig, JoinerConfig, ZipformerConfig
    from stateless_transducer.training.config import OptimConfig, PruneConfig, TrainConfig
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

NUMBERS = recipe.ZipformerTrainOptions(
    encoder="zipformer",
    lang_dir=Path("data/lang_char"),
    train=TrainConfig(
        exp_dir=Path("zipformer/exp"),
        num_epochs=60,
        valid_interval=3000,
        save_every=4000,
        keep_last=30,
        seed=42,
        optim=OptimConfig(
            optimizer="scaled-adam",
            base_lr=0.045,
            lr_batches=7500,
            lr_epochs=18,
            ref_duration=600,
            average_period=200,
            modified_transducer_prob=0.0,
        ),
        prune=PruneConfig(
            prune_range=5,
            simple_loss_scale=0.5,
            lm_scale=0.25,
            am_scale=0.0,
            prune_warm_step=2000,
        ),
    ),
    data=DataConfig(
        manifest_dir=Path("data/fbank"),
        # with two processes; 1200 for size S, 800 for L
        max_duration=1000,
        num_buckets=15,
        min_utterance_s=1.0,
        max_utterance_s=12.0,
        num_workers=2,
        enable_musan=False,
        spec_augment=SpecAugmentConfig(spec_aug_time_warp_factor=20),
    ),
    model=ModelFlags(
        encoder=ZipformerConfig(),
        decoder=DecoderConfig(context_size=1, decoder_dim=512, decoder_conv="grouped"),
        joiner=JoinerConfig(joiner_dim=512, joiner_proj=True),
    ),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_zipformer_train, NUMBERS))
