#!/usr/bin/env python3
"""Decode the test set with the mean of the weights over the last epochs. All numbers are options: see --help.

Epochs count from 0: icefall's --epoch 55 is --epoch 54 here. By default, --epoch is the last one that exists, and
--avg is 10, but at most half of the epochs.
"""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.decoding.config import SearchConfig
    from stateless_transducer.training.averaging import Average
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

NUMBERS = recipe.DecodeOptions(
    # that of the recipe in whose folder the script, or a link to it, is
    exp_dir=Path(Path(__file__).parent.name, "exp"),
    manifest_dir=Path("data/fbank"),
    test_sets=("test",),
    max_duration=200,
    average=Average(use_averaged_model=True),
    search=SearchConfig(decoding_method="greedy_search", max_sym_per_frame=1, beam_size=4),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_decode, NUMBERS))
