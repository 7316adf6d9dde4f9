#!/usr/bin/env python3
"""Train the tutorial's model with the pruned loss (arXiv 2206.13236). All numbers are options: see --help."""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.training.config import OptimConfig, PruneConfig, TrainConfig
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

# the numbers that are not here are those of transducer_stateless_modified
NUMBERS = recipe.TrainOptions(
    train=TrainConfig(
        exp_dir=Path("pruned_transducer_stateless/exp"),
        optim=OptimConfig(modified_transducer_prob=0.0),
        prune=PruneConfig(
            prune_range=5,
            simple_loss_scale=0.5,
            lm_scale=0.25,
            am_scale=0.0,
            prune_warm_step=2000,
        ),
    ),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_train, NUMBERS))
