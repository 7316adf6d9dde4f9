#!/usr/bin/env python3
"""Train the tutorial's model on AISHELL-1 with a second corpus mixed in. All numbers are options: see --help.

The second corpus is aidatatang_200zh (OpenSLR 62), or another one that --mix-prefix names; it is prepared with

    transducer prepare table TABLE --prefix aidatatang_200zh      # TABLE names its sound files and their transcripts
    transducer prepare lang aishell aidatatang_200zh --lang-dir data/lang_mixed
"""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.data.config import DataConfig
    from stateless_transducer.training.config import TrainConfig
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

# the numbers that are not here are those of transducer_stateless_modified
NUMBERS = recipe.TrainOptions(
    lang_dir=Path("data/lang_mixed"),
    train=TrainConfig(exp_dir=Path("transducer_stateless_modified-2/exp")),
    data=DataConfig(mix_prefix="aidatatang_200zh", mix_prob=0.2),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_train, NUMBERS))
