#!/usr/bin/env python3
"""Train the tutorial's model. The recipe's numbers stand here; each of them is an option, too: see --help."""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.commands.train import ModelFlags
    from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
    from stateless_transducer.model.config import ConformerConfig, DecoderConfig, JoinerConfig
    from stateless_transducer.training.config import OptimConfig, TrainConfig
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

NUMBERS = recipe.TrainOptions(
    lang_dir=Path("data/lang_char"),
    train=TrainConfig(
        exp_dir=Path("transducer_stateless_modified/exp"),
        num_epochs=30,
        log_interval=50,
        valid_interval=800,
        seed=42,
        optim=OptimConfig(
            optimizer="noam",
            lr_factor=5.0,
            warm_step=80000,
            max_grad_norm=5.0,
            modified_transducer_prob=0.25,
        ),
    ),
    data=DataConfig(
        manifest_dir=Path("data/fbank"),
        max_duration=200,
        num_buckets=15,
        min_utterance_s=1.0,
        max_utterance_s=12.0,
        num_workers=2,
        spec_augment=SpecAugmentConfig(
            spec_aug_time_warp_factor=80,
            num_feature_masks=2,
            features_mask_size=27,
            num_frame_masks=10,
            frames_mask_size=100,
        ),
    ),
    model=ModelFlags(
        encoder=ConformerConfig(
            num_layers=12, attention_dim=512, num_heads=8, feedforward_dim=2048, conv_kernel=31, dropout=0.1
        ),
        decoder=DecoderConfig(context_size=2),
        joiner=JoinerConfig(joiner_dim=512),
    ),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_train, NUMBERS))
