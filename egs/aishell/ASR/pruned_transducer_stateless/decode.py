#!/usr/bin/env python3
"""Decode the test set with the mean of checkpoints. All numbers are options: see --help.

--epoch is the last one there is, and --avg ten, but no more than half the epochs, unless they are named.
"""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.decoding.config import SearchConfig
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
    search=SearchConfig(decoding_method="greedy_search", max_sym_per_frame=1, beam_size=4),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_decode, NUMBERS))
