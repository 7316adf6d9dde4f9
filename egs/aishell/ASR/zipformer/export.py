#!/usr/bin/env python3
"""Write the mean of the weights over the last epochs as exp/pretrained.pt, which icefall reads, too: see --help."""

import sys
from pathlib import Path

try:
    from stateless_transducer.cli import run_script
    from stateless_transducer.commands import recipe
    from stateless_transducer.training.averaging import Average
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

NUMBERS = recipe.ExportOptions(
    # that of the recipe in whose folder the script, or a link to it, is
    exp_dir=Path(Path(__file__).parent.name, "exp"),
    average=Average(use_averaged_model=True),
)

if __name__ == "__main__":
    sys.exit(run_script(recipe.run_export, NUMBERS))
